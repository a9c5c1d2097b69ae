"""Declaring options, and those of the methods that B-MTARD is compared with."""

from __future__ import annotations

import math
from dataclasses import dataclass, field
from numbers import Real
from typing import Any

from bmtard_hooks.attacks.pgd import PGDSettings


class FilledNumber(int):
    """A whole number that nobody gave, so that ``dataclasses.replace`` finds it anew; otherwise like any other."""


class FilledWord(str):
    """A word that nobody gave, likewise."""


class FilledTruth(int):
    """A yes or no that nobody gave, likewise; Python allows no subclass of ``bool``."""

    def __repr__(self) -> str:
        return repr(bool(self))


def option(default: Any, help: str) -> Any:
    """Declare a field of a dataclass of options, with its line for ``--help``."""
    return field(default=default, metadata={"help": help})


def require(name: str, value: Any, is_good: bool, wanted: str) -> None:
    """Refuse a value that is not good.

    Raises:
        ValueError: naming the option, the value and what is wanted.
    """
    if not is_good:
        raise ValueError(f"{name}={value!r} is not allowed: pass {wanted}")


def require_finite(name: str, value: Any) -> None:
    """Refuse what is neither None nor a finite number.

    Raises:
        ValueError: naming the option and the value.
    """
    require(name, value, value is None or (isinstance(value, Real) and math.isfinite(value)), "a finite number")


def read_number(text: str) -> float:
    """Read ``0.031`` or ``8/255``; raises ``ValueError`` for anything else."""
    upper, slash, lower = text.partition("/")
    if slash and float(lower) == 0:
        raise ValueError(f"{text}: division by zero")
    return float(upper) / (float(lower) if slash else 1.0)


@dataclass
class MethodOptions:
    """Options that belong to one method or one addition; the names begin with it. Defaults are the authors' for CIFAR-10."""

    trades_beta: float = option(6.0, "TRADES: weight of the robust term.")
    score_lambda: float = option(6.0, "SCORE: weight of the robust term.")
    score_clip: float = option(0.3, "SCORE: errors below this shortfall of the true class cost nothing; 0 is no clip.")
    score_clip_robust_only: bool = option(False, "SCORE: clip the robust term alone.")
    ard_temperature: float = option(30.0, "ARD, Fair-ARD: temperature of teacher and student (5 on 100 classes).")
    ard_alpha: float = option(1.0, "ARD, Fair-ARD: weight of the teacher against the labels (0.95 on 100 classes).")
    ard_second_drop: bool = option(
        False, "ARD, Fair-ARD, IAD: lower the rate again at 3/4 of the run, as their code means to but does not."
    )
    fair_ard_power: float = option(2.0, "Fair-ARD: power of the class difficulty.")
    min_class_weight: float = option(5 / 6, "Fair-ARD: lower bound of a class weight.")
    max_class_weight: float = option(5 / 2, "Fair-ARD: upper bound of a class weight.")
    absld_targets: str = option(
        "aliased",
        "ABSLD: 'aliased' divides both targets by both class temperatures (its code); 'separate' by one each.",
    )
    class_temperature_rate: float = option(0.1, "ABSLD: largest step of a class temperature per epoch.")
    min_class_temperature: float = option(0.5, "ABSLD: lower bound.")
    max_class_temperature: float = option(5.0, "ABSLD: upper bound.")
    lmtn_teacher_input: str = option("own", "LMTN: teachers see the student's 'own' images, or 'clean' ones always.")
    iad_variant: int = option(1, "IAD: 1 is built on ARD, 2 on AKD2 with a clean teacher too.")
    iad_temperature: float = option(1.0, "IAD: temperature of teacher and student.")
    iad_alpha: float | None = option(
        None, "IAD, AdaIAD: weight of the robust teacher (None: 1, or 0.5 for variant 2)."
    )
    iad_clean_alpha: float = option(0.25, "IAD, variant 2: weight of the clean teacher.")
    iad_trust_power: float = option(0.1, "IAD, AdaIAD: power of the teacher's probability of the true class.")
    iad_begin: float | None = option(
        None,
        "IAD, AdaIAD: share of the run after which the student trusts itself too (None: 0.3, or 0.2 for variant 2).",
    )
    adaad_alpha: float = option(1.0, "AdaAD: weight of the adversarial against the clean images.")
    adaad_clean_forward: bool = option(
        True, "AdaAD: with alpha 1, still show the student the clean images, which moves BatchNorm (its code)."
    )
    adaiad_temperature: float = option(30.0, "AdaIAD: temperature of teacher and student.")
    saad_entropy_order: float = option(1.0, "SAAD: order of the Renyi entropy of the teacher; 1 is Shannon's.")
    saad_entropy_scale: float = option(5.0, "SAAD: factor on the entropy above the batch's lowest.")
    saad_clean_weight: float = option(0.0, "SAAD: weight of clean images (above 0: SAAD-C).")
    saad_slope: float = option(1.0, "SAAD: factor on the slope of the teacher's true logit in the attack.")
    ciard_push_temperature: float = option(5.0, "CIARD: student's temperature in the push term.")
    ciard_push_weight: float = option(1.0, "CIARD: weight of the push away from the fooled clean teacher.")
    ciard_weighted: bool = option(False, "CIARD: weigh both losses by Normalization Loss Balance (first release).")
    ciard_rates_per_step: bool = option(
        True, "CIARD: shrink the balance rates in every step of epochs 215, 260, 285 (its code), not once."
    )
    ciard_teacher_lr: float = option(1e-4, "CIARD: highest learning rate of the robust teacher.")
    ciard_teacher_momentum: float = option(0.1, "CIARD: momentum of the robust teacher's SGD.")
    ciard_teacher_weight_decay: float = option(2e-4, "CIARD: weight decay of the robust teacher.")
    l2_eps: float = option(0.5, "bmtard_union: radius of the L2 attack.")
    l2_step_size: float = option(0.125, "bmtard_union: step of the L2 attack.")

    igdm_weight: float | None = option(
        None, "Add IGDM, which matches input gradients with the robust teacher's, to any method (None: 0; 1 for saad)."
    )
    igdm_balanced: bool = option(False, "IGDM: let Normalization Loss Balance weigh it as a further part.")
    igdm_forward: float = option(1.0, "IGDM: how far ahead to look, in units of the perturbation.")
    igdm_backward: float = option(1.0, "IGDM: how far back to look; 0 is one-sided.")
    weight_averaging: str | None = option(
        None, "Evaluate and save averaged weights: none, ema or swa (None: as the method does; swa for saad)."
    )
    averaging_decay: float = option(0.995, "EMA: share of the average that is kept per step.")
    averaging_start: float | None = option(
        None, "Share of the run before averaging starts (None: 0.025 for ema, 0.275 for swa, 0.475 for saad)."
    )
    averaging_statistics: str | None = option(
        None,
        "BatchNorm of averaged weights: the trained model's ('live'), averaged too ('average'), or estimated on the training "
        "images, each image ('samples') or batch ('batches') counting the same (None: live for ema, samples for swa, batches "
        "for saad).",
    )
    averaging_warmup: bool = option(True, "EMA: let the decay rise as (1 + d) / (10 + d), d steps after the start.")
    awp_gamma: float = option(0.0, "Adversarial weight perturbation: its relative size; 0 is off (0.005 or 0.01).")
    awp_begin: int = option(0, "AWP: epochs to finish before it starts (9 for TRADES).")
    awp_restore: str = option("after_step", "AWP: put the weights back 'after_step' (its code) or 'before_step'.")

    def check_method_options(self) -> None:
        """Refuse values outside their ranges.

        Raises:
            ValueError: naming the first option that is wrong.
        """
        for name, declared in MethodOptions.__annotations__.items():  # fields lose them once a parser was made
            if str(declared).startswith(("float", "int")):
                require_finite(name, getattr(self, name))
        for name in _POSITIVE:
            require(name, getattr(self, name), getattr(self, name) > 0, "a positive number")
        for name in _NOT_NEGATIVE:
            require(name, getattr(self, name), getattr(self, name) >= 0, "a number of 0 or more")
        for name in _SHARES:
            value = getattr(self, name)
            require(name, value, value is None or 0 <= value <= 1, "a share in [0, 1]")
        for name, choices in _CHOICES.items():
            wanted = f"one of {', '.join(str(choice) for choice in choices if choice is not None)}"
            require(name, getattr(self, name), getattr(self, name) in choices, wanted)
        for low, high in (
            ("min_class_weight", "max_class_weight"),
            ("min_class_temperature", "max_class_temperature"),
        ):
            value = getattr(self, low)
            require(low, value, value <= getattr(self, high), f"a number up to {high}={getattr(self, high)}")
        require("averaging_decay", self.averaging_decay, self.averaging_decay < 1, "a number in (0, 1)")
        require("igdm_weight", self.igdm_weight, (self.igdm_weight or 0) >= 0, "a number of 0 or more")
        momentum = self.ciard_teacher_momentum
        require("ciard_teacher_momentum", momentum, momentum < 1, "a number in [0, 1)")
        total = (0.5 if self.iad_alpha is None else self.iad_alpha) + self.iad_clean_alpha
        fits = self.iad_variant == 1 or total <= 1
        require("iad_clean_alpha", self.iad_clean_alpha, fits, "two weights that sum to at most 1 with iad_alpha")
        try:
            PGDSettings(eps=self.l2_eps, step_size=self.l2_step_size, norm="l2")
        except ValueError as error:  # the settings do not know whose they are
            raise ValueError(f"l2_{error}") from error


_POSITIVE = (
    *("ard_temperature", "fair_ard_power", "min_class_weight", "class_temperature_rate", "min_class_temperature"),
    *("iad_temperature", "adaiad_temperature", "saad_entropy_order", "saad_entropy_scale", "ciard_push_temperature"),
    *("averaging_decay", "igdm_forward"),
)
_NOT_NEGATIVE = (
    *("trades_beta", "score_lambda", "score_clip", "iad_trust_power", "saad_clean_weight", "saad_slope"),
    *("ciard_push_weight", "ciard_teacher_lr", "ciard_teacher_momentum", "ciard_teacher_weight_decay"),
    *("igdm_backward", "awp_gamma", "awp_begin"),
)
_SHARES = ("ard_alpha", "iad_alpha", "iad_clean_alpha", "iad_begin", "adaad_alpha", "averaging_start")
_CHOICES: dict[str, tuple[Any, ...]] = {
    "absld_targets": ("aliased", "separate"),
    "lmtn_teacher_input": ("own", "clean"),
    "iad_variant": (1, 2),
    "weight_averaging": (None, "none", "ema", "swa"),
    "averaging_statistics": (None, "live", "average", "samples", "batches"),
    "awp_restore": ("after_step", "before_step"),
}
