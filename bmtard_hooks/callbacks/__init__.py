"""Trainer callbacks: the paper's two balances, further balances, and what can be added to any method."""

from bmtard_hooks.callbacks.adversarial_weights import AdversarialWeightPerturbation
from bmtard_hooks.callbacks.base import DistillationCallback
from bmtard_hooks.callbacks.class_balance import ClassTemperatureBalance, ClassWeightBalance
from bmtard_hooks.callbacks.entropy_balance import EntropyBalance
from bmtard_hooks.callbacks.loss_balance import LossBalance
from bmtard_hooks.callbacks.weight_averaging import WeightAveraging

__all__ = [
    "AdversarialWeightPerturbation",
    "ClassTemperatureBalance",
    "ClassWeightBalance",
    "DistillationCallback",
    "EntropyBalance",
    "LossBalance",
    "WeightAveraging",
]
