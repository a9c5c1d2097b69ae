"""The settings of an evaluation."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, fields
from typing import Any

MODES = ("columns", "worst_case")


@dataclass(frozen=True)
class EvaluationSettings:
    """How an evaluation runs.

    Args:
        eps: radius of the attacks that do not state their own, in pixel scale.
        norm: ``linf`` or ``l2``.
        mode: ``columns`` runs each attack on every clean-correct image, as the paper's tables need; ``worst_case`` runs
            the cheapest first and each on the survivors only: the same union for less.
        batch_size: images at a time; changes speed, not results.
        seed: of the attacks.
        clean_weight: weight of clean accuracy in W-Robust (Eq. 22), in [0, 1].
        checks: run the checks against false robustness.
        check_images: number of images for those checks that need attacks of their own.
        examples: number of adversarial images kept for the report's figure.
        fold_batch_norm: search on a copy of the network with its BatchNorm folded into the convolutions, where that is
            possible: the same function, faster. Verdicts are always the network's own.

    Raises:
        ValueError: for a value outside its range.
    """

    eps: float = 8 / 255
    norm: str = "linf"
    mode: str = "columns"
    batch_size: int = 256
    seed: int = 0
    clean_weight: float = 0.5
    checks: bool = True
    check_images: int = 200
    examples: int = 4
    fold_batch_norm: bool = True

    def __post_init__(self) -> None:
        if self.mode not in MODES:
            raise ValueError(f"mode={self.mode!r} is unknown: choose one of {', '.join(MODES)}")
        if not 0 <= self.clean_weight <= 1:
            raise ValueError(f"clean_weight={self.clean_weight} is outside [0, 1]: the robust weight is the rest")
        for name, least in (("batch_size", 1), ("check_images", 1), ("examples", 0)):
            if getattr(self, name) < least:
                raise ValueError(f"{name}={getattr(self, name)}: pass a whole number, {least} or more")


def make_settings(given: Mapping[str, Any]) -> EvaluationSettings:
    """Make settings of keyword arguments.

    Args:
        given: name to value.

    Raises:
        ValueError: for a name that is no setting, with those that are, and for a value outside its range.
    """
    known = [entry.name for entry in fields(EvaluationSettings)]
    unknown = [name for name in given if name not in known]
    if unknown:
        raise ValueError(f"{', '.join(unknown)}: no setting of an evaluation, which has {', '.join(known)}")
    return EvaluationSettings(**given)
