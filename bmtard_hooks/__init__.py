"""Balanced multi-teacher adversarial robustness distillation for Hugging Face Trainer and timm."""

from bmtard_hooks._version import __version__
from bmtard_hooks.attacks import PGDSettings, attack_mode, pgd
from bmtard_hooks.callbacks import (
    AdversarialWeightPerturbation,
    DistillationCallback,
    EntropyBalance,
    LossBalance,
    WeightAveraging,
)
from bmtard_hooks.callbacks.robust_evaluation import RobustEvaluation
from bmtard_hooks.collator import PGDCollator
from bmtard_hooks.config import BMTARDConfig
from bmtard_hooks.evaluation.evaluator import evaluate_robustness
from bmtard_hooks.evaluation.report import RobustnessReport
from bmtard_hooks.image_tensors import ImageTensors, as_image_tensors, load_images
from bmtard_hooks.methods import Method, method_names, register
from bmtard_hooks.models import PixelClassifier, create_model, load_teacher
from bmtard_hooks.state import DistillationState
from bmtard_hooks.trainer import BMTARDTrainer

__all__ = [
    "AdversarialWeightPerturbation",
    "BMTARDConfig",
    "BMTARDTrainer",
    "DistillationCallback",
    "DistillationState",
    "EntropyBalance",
    "ImageTensors",
    "LossBalance",
    "Method",
    "PGDCollator",
    "PGDSettings",
    "PixelClassifier",
    "RobustEvaluation",
    "RobustnessReport",
    "WeightAveraging",
    "__version__",
    "as_image_tensors",
    "attack_mode",
    "create_model",
    "evaluate_robustness",
    "load_images",
    "load_teacher",
    "method_names",
    "pgd",
    "register",
]
