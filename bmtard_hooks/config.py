"""Every option of a run, with the paper's values as defaults."""

from __future__ import annotations

import logging
from dataclasses import dataclass, field
from typing import Any

import torch
from transformers import TrainingArguments

from bmtard_hooks.attacks.pgd import PGDSettings
from bmtard_hooks.callbacks.entropy_balance import EntropyBalance
from bmtard_hooks.callbacks.loss_balance import LossBalance
from bmtard_hooks.data import AUGMENTATIONS
from bmtard_hooks.methods.base import method_class

logger = logging.getLogger(__name__)

PAPER_EPOCHS = 300
PAPER_MILESTONES = (215, 260, 285)
PAPER_PGD = PGDSettings()
PAPER_AUGMENT = "crop_flip"
PAPER_PADDING = 4


def _option(default: Any, help: str) -> Any:
    return field(default=default, metadata={"help": help})


@dataclass
class BMTARDConfig(TrainingArguments):
    """Training arguments of transformers, plus the method, the attack, the balance and the optimizer of the paper.

    Use with ``HfArgumentParser`` or ``bmtard_hooks.arguments.parse``. The help of each option is in its metadata
    (``--help`` on the command line).

    Raises:
        ValueError: if an option is outside its range; the message names the value, the range and the fix.
    """

    method: str = _option("bmtard", "Training method: bmtard, mtard, baseline, natural, sat or trades.")

    entropy_balance: bool | None = _option(None, "Move the temperatures (None: as the method does).")
    loss_balance: bool | None = _option(None, "Move the loss weights (None: as the method does).")
    clean_temperature: float = _option(1.0, "Clean teacher's temperature at the start (paper: 2 for MobileNet-v2).")
    robust_temperature: float = _option(1.0, "Robust teacher's temperature at the start.")
    min_temperature: float = _option(1.0, "Lower bound of the temperatures.")
    max_temperature: float = _option(10.0, "Upper bound of the temperatures.")
    temperature_rate: float = _option(0.001, "Step of a temperature (r_tau of Eq. 12).")
    entropy_rule: str = _option("difference", "Compare entropies by 'difference' (paper) or 'ratio' (authors' code).")
    clean_weight: float = _option(0.5, "Weight of the clean teacher's loss at the start.")
    robust_weight: float = _option(0.5, "Weight of the robust teacher's loss at the start.")
    weight_rate: float = _option(0.025, "Rate of the weights' moving average (r_w of Eq. 19).")
    loss_balance_power: float = _option(1.0, "Power of the relative losses (beta of Eq. 17).")
    balance_follows_lr: bool = _option(True, "Let both balance rates fall with the learning rate (authors' code).")
    loss_scale: float = _option(
        0.1, "Factor on every teacher KL (sum over classes, mean over batch); 0.1 is the authors' scale."
    )
    log_eps: float = _option(1e-5, "Added inside the teacher's logarithm (authors' code); 0 gives the true KL.")
    trades_beta: float = _option(6.0, "Weight of the robust term of TRADES.")

    eps: float = _option(8 / 255, "Radius of the training attack in pixel scale.")
    step_size: float | None = _option(None, "Step of the training attack (None: the method's; 2/255 for most).")
    steps: int = _option(10, "Steps of the training attack.")
    norm: str = _option("linf", "Norm of the attacks: linf or l2.")
    start: str | None = _option(None, "Start of the training attack: normal, uniform, zero (None: the method's).")
    attack_train_mode: bool | None = _option(
        None, "Attack the student in training mode, so BatchNorm statistics move (None: the method's)."
    )
    augment: str | None = _option(
        None,
        "Augmentation on the training device: crop_flip, crop, flip, none (None: crop_flip; none with a collator of your own).",
    )
    crop_padding: int = _option(PAPER_PADDING, "Zero padding of the random crop, in pixels per side.")

    eval_attack: bool = _option(True, "Attack the evaluation set too and report robust accuracy and W-Robust.")
    eval_attack_eps: float | None = _option(None, "Radius of the evaluation attack (None: that of training).")
    eval_attack_step_size: float = _option(0.003, "Step of the evaluation attack (authors' checkpoint selection).")
    eval_attack_steps: int = _option(20, "Steps of the evaluation attack.")
    w_robust_clean_weight: float = _option(0.5, "Weight of clean accuracy in W-Robust (Eq. 22).")

    momentum: float = _option(0.9, "Momentum of SGD.")
    nesterov: bool = _option(False, "Nesterov momentum.")
    weight_decay_all: bool = _option(True, "Decay every parameter, BatchNorm and biases included (authors' code).")
    lr_milestones: list[float] | None = _option(
        None, "Epochs after which the learning rate falls (None: 215, 260, 285 of 300, in proportion to the run)."
    )
    lr_gamma: float = _option(0.1, "Factor on the learning rate at each milestone.")
    channels_last: bool = _option(True, "Keep images and convolutions in channels_last layout (faster).")
    overwrite_output_dir: bool = _option(False, "Allow an output_dir that already holds another run.")

    optim: str = _option("sgd", "Optimizer, see transformers.TrainingArguments.")
    learning_rate: float = _option(0.1, "Initial learning rate.")
    weight_decay: float = _option(2e-4, "Weight decay.")
    lr_scheduler_type: str = _option(
        "constant", "'constant' falls at lr_milestones; any other transformers schedule replaces the milestones."
    )
    max_grad_norm: float = _option(0.0, "Gradient clipping; 0 is off, as in the paper.")
    num_train_epochs: float = _option(float(PAPER_EPOCHS), "Number of epochs.")
    per_device_train_batch_size: int = _option(128, "Images per device and micro-batch.")
    per_device_eval_batch_size: int = _option(256, "Images per device in evaluation.")
    logging_steps: float = _option(50, "Log every so many steps.")
    logging_nan_inf_filter: bool = _option(False, "Off: losses that are not finite stop the run by name instead.")
    save_strategy: str = _option("epoch", "When to save checkpoints.")
    remove_unused_columns: bool = _option(False, "Off: the collator finds the columns it needs.")
    label_names: list[str] | None = field(default_factory=lambda: ["labels"], metadata={"help": "Label columns."})

    def __post_init__(self) -> None:
        no_accelerator = not torch.accelerator.is_available()
        if self.fp16 and (self.use_cpu or no_accelerator):
            raise ValueError("fp16=True on a CPU would silently train in float32: pass bf16=True, or no precision")
        if no_accelerator:
            self.use_cpu = True
        if self.bf16 and self.use_cpu and not _has_fast_bf16():
            logger.warning("this CPU has no bf16 instructions: bf16=True will be about 10 times slower than float32")
        self._check_ranges()
        if self.data_seed is None:
            self.data_seed = self.seed
        if self.ddp_broadcast_buffers is None:
            # The Trainer broadcasts before every attack, evaluation and checkpoint, which is where it matters. DDP's own
            # broadcast, between the two forwards of a step, breaks BatchNorm's backward before pytorch#175851.
            self.ddp_broadcast_buffers = False
        super().__post_init__()
        if self.eval_attack and (self.bf16_full_eval or self.fp16_full_eval):
            raise ValueError("bf16_full_eval/fp16_full_eval would quantise the attacked images: leave them off")

    @property
    def device(self) -> torch.device:
        """The device of this process; a CPU without the index that Accelerate may give it, which torch.load refuses."""
        device = super().device
        return torch.device("cpu") if device.type == "cpu" else device

    def _check_ranges(self) -> None:
        method_class(self.method)
        self.train_attack()  # PGDSettings checks eps, step_size, steps, norm and start
        self.evaluation_attack()
        EntropyBalance(self.temperature_rate, self.min_temperature, self.max_temperature, self.entropy_rule)
        LossBalance(self.weight_rate, self.loss_balance_power)
        for name in ("clean_temperature", "robust_temperature"):
            value = getattr(self, name)
            if not self.min_temperature <= value <= self.max_temperature:
                raise ValueError(
                    f"{name}={value} is outside [min_temperature, max_temperature] = "
                    f"[{self.min_temperature}, {self.max_temperature}]: move the bounds or the start"
                )
        if self.clean_weight < 0 or self.robust_weight < 0 or self.clean_weight + self.robust_weight <= 0:
            raise ValueError(
                f"clean_weight={self.clean_weight}, robust_weight={self.robust_weight}: pass two non-negative numbers "
                "that are not both 0 (they are scaled to sum to 1)"
            )
        _check("loss_scale", self.loss_scale, self.loss_scale > 0, "a positive number, 0.1 for the authors' scale")
        _check("log_eps", self.log_eps, 0 <= self.log_eps < 0.1, "a small non-negative number, 1e-5 or 0")
        _check("trades_beta", self.trades_beta, self.trades_beta >= 0, "a non-negative number, 6 in the paper")
        _check("nesterov", self.nesterov, not self.nesterov or self.momentum > 0, "False, or a positive momentum")
        _check("momentum", self.momentum, 0 <= self.momentum < 1, "a number in [0, 1)")
        _check("lr_gamma", self.lr_gamma, 0 < self.lr_gamma <= 1, "a number in (0, 1]")
        _check("crop_padding", self.crop_padding, self.crop_padding >= 0, "pixels, 0 or more")
        _check("augment", self.augment, self.augment in (None, *AUGMENTATIONS), f"one of {', '.join(AUGMENTATIONS)}")
        weight = self.w_robust_clean_weight
        _check("w_robust_clean_weight", weight, 0 <= weight <= 1, "a number in [0, 1]; the robust weight is the rest")
        milestones = self.lr_milestones or []
        increasing = all(a < b for a, b in zip([0, *milestones], milestones, strict=False))
        _check("lr_milestones", milestones, increasing, "increasing positive epochs such as 215 260 285")
        if milestones and self.lr_scheduler_type != "constant":
            raise ValueError(
                f"lr_milestones={milestones} and lr_scheduler_type={self.lr_scheduler_type!r} contradict each other: "
                "drop one of them"
            )

    def train_attack(self) -> PGDSettings:
        """Describe the inner attack of training: B-MTARD's, changed by the method, changed by explicit options."""
        settings = PAPER_PGD.replace(**(method_class(self.method).attack or {}))
        return settings.replace(
            eps=self.eps,
            step_size=self.step_size,
            steps=self.steps,
            norm=self.norm,
            start=self.start,
            train_mode=self.attack_train_mode,
        )

    @property
    def evaluation_attack_name(self) -> str:
        """Name of the attack of ``evaluate()``, for example ``PGD-20``; part of the key of its noise."""
        return f"PGD-{self.eval_attack_steps}"

    def evaluation_attack(self) -> PGDSettings:
        """Describe the attack of ``evaluate()``: PGD-20 with cross-entropy from a uniform start."""
        return PGDSettings(
            eps=self.eps if self.eval_attack_eps is None else self.eval_attack_eps,
            step_size=self.eval_attack_step_size,
            steps=self.eval_attack_steps,
            norm=self.norm,
            start="uniform",
            clip_start=True,
        )


def _has_fast_bf16() -> bool:
    try:
        return bool(torch.ops.mkldnn._is_mkldnn_bf16_supported())
    except (AttributeError, RuntimeError):  # a build without oneDNN cannot tell
        return True


def _check(name: str, value: Any, is_good: bool, wanted: str) -> None:
    if not is_good:
        raise ValueError(f"{name}={value!r} is not allowed: pass {wanted}")
