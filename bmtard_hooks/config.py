"""Every option of a run, with the paper's values as defaults."""

from __future__ import annotations

import logging
import math
import signal
from dataclasses import dataclass, field
from typing import Any, cast

import torch
from transformers import TrainingArguments

from bmtard_hooks.attacks.pgd import PGDSettings, default_step
from bmtard_hooks.callbacks.entropy_balance import EntropyBalance
from bmtard_hooks.callbacks.loss_balance import LossBalance
from bmtard_hooks.data import AUGMENTATIONS
from bmtard_hooks.environment_checks import require_environment
from bmtard_hooks.methods import make_method, method_class
from bmtard_hooks.option_checks import require_kinds, require_ranges
from bmtard_hooks.option_names import naming_unknown_options
from bmtard_hooks.options import FilledNumber, FilledTruth, FilledWord, MethodOptions, option, require, require_finite
from bmtard_hooks.stopping import SIGNALS

logger = logging.getLogger(__name__)

PAPER_PGD = PGDSettings()
EVALUATION_STEP = 0.003
PAPER_AUGMENT = "crop_flip"
PAPER_PADDING = 4


@naming_unknown_options
@dataclass
class BMTARDConfig(MethodOptions, TrainingArguments):
    """Training arguments of transformers, plus the method, the attack, the balance and the optimizer of the paper.

    Use with ``HfArgumentParser`` or ``bmtard_hooks.arguments.parse``. The help of each option is in its metadata
    (``--help`` on the command line).

    Raises:
        ValueError: if an option is outside its range; the message names the value, the range and the fix.
        TypeError: for an option that does not exist, with those that may have been meant.
    """

    method: str = option("bmtard", "Training method: bmtard or another name of the README's table of methods.")

    entropy_balance: bool | None = option(None, "Move the temperatures (None: as the method does).")
    loss_balance: bool | None = option(None, "Move the loss weights (None: as the method does).")
    clean_temperature: float = option(1.0, "Clean teacher's temperature at the start (paper: 2 for MobileNet-v2).")
    robust_temperature: float = option(1.0, "Robust teacher's temperature at the start.")
    min_temperature: float = option(1.0, "Lower bound of the temperatures.")
    max_temperature: float = option(10.0, "Upper bound of the temperatures.")
    temperature_rate: float = option(0.001, "Step of a temperature (r_tau of Eq. 12).")
    entropy_rule: str = option("difference", "Compare entropies by 'difference' (paper) or 'ratio' (authors' code).")
    clean_weight: float | None = option(None, "Weight of the clean images' loss at the start (None: the method's).")
    robust_weight: float | None = option(None, "Weight of the adversarial images' loss at the start (the same).")
    weight_rate: float = option(0.025, "Rate of the weights' moving average (r_w of Eq. 19).")
    loss_balance_power: float = option(1.0, "Power of the relative losses (beta of Eq. 17).")
    balance_follows_lr: bool = option(True, "Let both balance rates fall with the learning rate (authors' code).")
    loss_scale: float | None = option(
        None, "Factor on every teacher KL, sum over classes, mean over batch (None: the method's, 0.1 for most)."
    )
    log_eps: float = option(1e-5, "Added inside the teacher's logarithm (authors' code); 0 gives the true KL.")

    eps: float = option(8 / 255, "Radius of the training attack in pixel scale.")
    step_size: float | None = option(
        None,
        "Step of the training attack (None: the method's, 2/255 for most; in L2 the same share of eps as of 8/255 in linf).",
    )
    steps: int = option(10, "Steps of the training attack.")
    norm: str = option("linf", "Norm of the attacks: linf or l2.")
    start: str | None = option(None, "Start of the training attack: normal, uniform, zero (None: the method's).")
    attack_train_mode: bool | None = option(
        None, "Attack the student in training mode, so BatchNorm statistics move (None: the method's)."
    )
    augment: str | None = option(
        None,
        "Augmentation on the training device: crop_flip, crop, flip, none (None: crop_flip; none with a collator of your own).",
    )
    crop_padding: int = option(PAPER_PADDING, "Zero padding of the random crop, in pixels per side.")

    eval_attack: bool = option(True, "Attack the evaluation set too and report robust accuracy and W-Robust.")
    eval_attack_eps: float | None = option(None, "Radius of the evaluation attack (None: that of training).")
    eval_attack_step_size: float | None = option(
        None,
        "Step of the evaluation attack (None: 0.003, authors' checkpoint selection; in L2 the same share of the radius as of "
        "8/255 in linf).",
    )
    eval_attack_steps: int = option(20, "Steps of the evaluation attack.")
    w_robust_clean_weight: float = option(0.5, "Weight of clean accuracy in W-Robust (Eq. 22).")

    momentum: float = option(0.9, "Momentum of SGD.")
    nesterov: bool = option(False, "Nesterov momentum.")
    weight_decay_all: bool = option(True, "Decay every parameter, BatchNorm and biases included (authors' code).")
    lr_milestones: list[float] | None = option(
        None, "Epochs after which the learning rate falls (None: the method's, in proportion to the run)."
    )
    lr_gamma: float = option(0.1, "Factor on the learning rate at each milestone.")
    channels_last: bool = option(True, "Keep images and convolutions in channels_last layout (faster).")
    fold_batch_norm: bool = option(
        True, "Attack the student, and ask the teachers, on copies with BatchNorm folded into convolutions (faster)."
    )
    sync_batch_norm: bool = option(
        False, "Take the student's BatchNorm statistics over the images of all GPUs, not of each (DDP on GPUs)."
    )
    max_skipped_steps: int = option(
        0, "Leave out so many steps in a row whose numbers are not finite, and count them; 0 stops at the first."
    )
    stop_signals: list[str] = field(
        default_factory=lambda: ["SIGTERM"],
        metadata={
            "help": "Signals on which the run saves a checkpoint and exits with code 0 (SIGUSR1 for Slurm's --signal)."
        },
    )
    overwrite_output_dir: bool = option(False, "Allow an output_dir that already holds another run.")

    optim: str = option("sgd", "Optimizer, see transformers.TrainingArguments.")
    learning_rate: float = option(0.1, "Initial learning rate.")
    weight_decay: float = option(2e-4, "Weight decay.")
    lr_scheduler_type: str = option(
        "constant", "'constant' falls at lr_milestones; any other transformers schedule replaces the milestones."
    )
    max_grad_norm: float = option(0.0, "Gradient clipping; 0 is off, as in the paper.")
    num_train_epochs: float = option(300.0, "Number of epochs.")
    per_device_train_batch_size: int = option(128, "Images per device and micro-batch.")
    per_device_eval_batch_size: int = option(256, "Images per device in evaluation.")
    logging_steps: float = option(50, "Log every so many steps.")
    logging_nan_inf_filter: bool = option(False, "Off: losses that are not finite stop the run by name instead.")
    save_strategy: str = option("epoch", "When to save checkpoints.")
    remove_unused_columns: bool = option(False, "Off: the collator finds the columns it needs.")
    label_names: list[str] | None = field(default_factory=lambda: ["labels"], metadata={"help": "Label columns."})

    def __post_init__(self) -> None:
        self._take_back()
        no_accelerator = not torch.accelerator.is_available()
        if self.fp16 and (self.use_cpu or no_accelerator):
            raise ValueError("fp16=True on a CPU would silently train in float32: pass bf16=True, or no precision")
        if no_accelerator:
            self.use_cpu = True
        if self.bf16 and self.use_cpu and not _has_fast_bf16():
            logger.warning("this CPU has no bf16 instructions: bf16=True will be about 10 times slower than float32")
        self._check_ranges()
        if self.load_best_model_at_end and self.metric_for_best_model is None:
            attacked = self.eval_attack and method_class(self.method).attack is not None
            self.metric_for_best_model = FilledWord("w_robust" if attacked else "clean_accuracy")
        if self.data_seed is None:
            self.data_seed = FilledNumber(self.seed)
        if self.ddp_broadcast_buffers is None:
            # The Trainer broadcasts before every attack, evaluation and checkpoint, which is where it matters. DDP's own
            # broadcast, between the two forwards of a step, breaks BatchNorm's backward before pytorch#175851.
            self.ddp_broadcast_buffers = False
        direction_is_given = self.greater_is_better is not None
        super().__post_init__()
        if self.greater_is_better is not None and not direction_is_given:
            self.greater_is_better = cast(bool, FilledTruth(self.greater_is_better))
        if self.eval_attack and (self.bf16_full_eval or self.fp16_full_eval):
            raise ValueError("bf16_full_eval/fp16_full_eval would quantise the attacked images: leave them off")

    def _take_back(self) -> None:
        """Take back what was filled in for the config that this one is a changed copy of (``dataclasses.replace``)."""
        if isinstance(self.data_seed, FilledNumber):
            self.data_seed = None
        if isinstance(self.metric_for_best_model, FilledWord):
            self.metric_for_best_model = None
        if isinstance(self.greater_is_better, FilledTruth):
            self.greater_is_better = None

    def to_dict(self) -> dict[str, Any]:
        """Return the options as plain values, also those that were filled in. See ``TrainingArguments``."""
        kinds = {FilledNumber: int, FilledWord: str, FilledTruth: bool}
        return {name: kinds.get(type(value), lambda kept: kept)(value) for name, value in super().to_dict().items()}

    @property
    def device(self) -> torch.device:
        """The device of this process; a CPU without the index that Accelerate may give it, which torch.load refuses."""
        device = super().device
        return torch.device("cpu") if device.type == "cpu" else device

    def _check_ranges(self) -> None:
        require_kinds(self)
        require_ranges(self)
        require_environment(self)
        method_class(self.method)
        self.check_method_options()
        for name in (
            "clean_weight",
            "robust_weight",
            "loss_scale",
            "temperature_rate",
            "loss_balance_power",
            "lr_gamma",
        ):
            require_finite(name, getattr(self, name))
        self.train_attack()  # PGDSettings checks eps, step_size, steps, norm and start
        try:
            self.evaluation_attack()
        except ValueError as error:  # the settings do not know whose they are
            raise ValueError(f"eval_attack_{error}") from error
        EntropyBalance(self.temperature_rate, self.min_temperature, self.max_temperature, self.entropy_rule)
        power = self.loss_balance_power
        require("loss_balance_power", power, power > 0, "a number that must be positive, 1 as in the paper")
        LossBalance(self.weight_rate, self.loss_balance_power)
        for name in ("clean_temperature", "robust_temperature"):
            value = getattr(self, name)
            if not self.min_temperature <= value <= self.max_temperature:
                raise ValueError(
                    f"{name}={value} is outside [min_temperature, max_temperature] = "
                    f"[{self.min_temperature}, {self.max_temperature}]: move the bounds or the start"
                )
        self._check_weights()
        self._check_method()
        scale = self.loss_scale
        require("loss_scale", scale, scale is None or scale > 0, "a positive number, 0.1 for the authors' scale")
        require("log_eps", self.log_eps, 0 <= self.log_eps < 0.1, "a small non-negative number, 1e-5 or 0")
        require("nesterov", self.nesterov, not self.nesterov or self.momentum > 0, "False, or a positive momentum")
        require("momentum", self.momentum, 0 <= self.momentum < 1, "a number in [0, 1)")
        require("lr_gamma", self.lr_gamma, 0 < self.lr_gamma <= 1, "a number in (0, 1]")
        require("crop_padding", self.crop_padding, self.crop_padding >= 0, "pixels, 0 or more")
        require("augment", self.augment, self.augment in (None, *AUGMENTATIONS), f"one of {', '.join(AUGMENTATIONS)}")
        weight = self.w_robust_clean_weight
        require("w_robust_clean_weight", weight, 0 <= weight <= 1, "a number in [0, 1]; the robust weight is the rest")
        self._check_milestones()

    def _check_method(self) -> None:
        method = make_method(self)
        method.callbacks()  # refuses a balance that would have nothing to do
        _ = method.weights  # refuses weights that are all 0
        if self.max_skipped_steps and (method.trained_teachers or self.awp_gamma):
            raise ValueError(
                f"max_skipped_steps={self.max_skipped_steps} does not go with method {method.name!r} and awp_gamma={self.awp_gamma}: a "
                "step that also trains a teacher or perturbs weights cannot be left out as a whole. Set it to 0"
            )
        require(
            "max_skipped_steps", self.max_skipped_steps, self.max_skipped_steps >= 0, "a number of steps, 0 or more"
        )
        known = [name for name in SIGNALS if hasattr(signal, name)]
        require(
            "stop_signals", self.stop_signals, set(self.stop_signals) <= set(known), f"names among {', '.join(known)}"
        )

    def _check_milestones(self) -> None:
        milestones = self.lr_milestones or []
        increasing = all(a < b < math.inf for a, b in zip([0, *milestones], milestones, strict=False))
        require("lr_milestones", milestones, increasing, "increasing positive epochs such as 215 260 285")
        if milestones and self.lr_scheduler_type != "constant":
            raise ValueError(
                f"lr_milestones={milestones} and lr_scheduler_type={self.lr_scheduler_type!r} contradict each other: "
                "drop one of them"
            )

    def _check_weights(self) -> None:
        given = (self.clean_weight, self.robust_weight)
        if any(weight is not None and weight < 0 for weight in given) or given == (0, 0):
            raise ValueError(
                f"clean_weight={self.clean_weight}, robust_weight={self.robust_weight}: pass two non-negative numbers "
                "that are not both 0 (they are scaled to sum to what the method's weights sum to)"
            )

    def train_attack(self) -> PGDSettings:
        """Describe the inner attack of training: B-MTARD's, changed by the method, changed by explicit options."""
        settings = PAPER_PGD.replace(**(method_class(self.method).attack or {}))
        settings = settings.replace(
            eps=self.eps, steps=self.steps, norm=self.norm, start=self.start, train_mode=self.attack_train_mode
        )
        step = default_step(settings.step_size, settings) if self.step_size is None else self.step_size
        return settings.replace(step_size=step)

    @property
    def evaluation_attack_name(self) -> str:
        """Name of the attack of ``evaluate()``, for example ``PGD-20``; part of the key of its noise."""
        return f"PGD-{self.eval_attack_steps}"

    def evaluation_attack(self) -> PGDSettings:
        """Describe the attack of ``evaluate()``: PGD-20 with cross-entropy from a uniform start."""
        settings = PGDSettings(
            eps=self.eps if self.eval_attack_eps is None else self.eval_attack_eps,
            steps=self.eval_attack_steps,
            norm=self.norm,
            start="uniform",
            clip_start=True,
        )
        given = self.eval_attack_step_size
        return settings.replace(step_size=default_step(EVALUATION_STEP, settings) if given is None else given)


def _has_fast_bf16() -> bool:
    try:
        return bool(torch.ops.mkldnn._is_mkldnn_bf16_supported())
    except (AttributeError, RuntimeError):  # a build without oneDNN cannot tell
        return True
