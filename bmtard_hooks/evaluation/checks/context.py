"""What the checks against false robustness measure with, and what they compare by."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, fields, replace

import numpy as np
from torch import Tensor

from bmtard_hooks.attacks.base import Attack, Target
from bmtard_hooks.attacks.gradient import CW_INF, PGD, PGD_SAT
from bmtard_hooks.attacks.guard import attack_mode
from bmtard_hooks.evaluation.report import AttackOutcome, RobustnessReport
from bmtard_hooks.evaluation.runner import AttackRunner
from bmtard_hooks.models.precision import exact_arithmetic, full_precision

POINTS = 0.005
"""Least difference of two accuracies that counts: half a point."""

STRAY_SHARE = 0.002
"""Share of the images that a weaker attacker may break alone, see ``strays_allowed``."""


class NotRun(Exception):
    """A check cannot be run; the message says why."""


@dataclass(frozen=True)
class Finding:
    """What a check saw.

    Args:
        passed: whether the model passes.
        evidence: the measured numbers in one sentence.
        severity: of a failure, where it depends on what failed; None is the check's own.
    """

    passed: bool
    evidence: str
    severity: str | None = None


class Context:
    """The model, what is known of it already, and the images that the active checks use.

    Args:
        runner: runs further attacks.
        report: outcomes of the evaluation so far; the attacks of another ``eps`` or ``norm`` are left out.
        images: the active checks use the data set's first so many.
        eps: radius of the evaluation in pixel scale.
        norm: ``linf`` or ``l2``.

    Attributes:
        count: number of images of the active checks, ``n``.
        clean: ``(n,)`` bool, classified correctly.
        chosen: positions of the correctly classified ones, which are attacked.
        sweeps: curves found on the way, see ``RobustnessReport``.
    """

    def __init__(self, runner: AttackRunner, report: RobustnessReport, *, images: int, eps: float, norm: str) -> None:
        self.runner = runner
        self.report = report
        self.eps = eps
        self.norm = norm
        self.count = min(images, len(runner.correct))
        self.clean = runner.correct[: self.count]
        self.chosen = np.flatnonzero(self.clean)
        self.sweeps: dict[str, list[tuple[float, float, int]]] = {}

    @property
    def chance(self) -> float:
        """Accuracy of guessing."""
        return 1 / self.runner.num_classes

    def require_images(self) -> np.ndarray:
        """Return ``chosen``; without any there is nothing to attack."""
        if not len(self.chosen):
            raise NotRun(f"none of the first {self.count} images is classified correctly")
        return self.chosen

    def batches(self) -> Iterator[np.ndarray]:
        """Cut ``chosen`` into batches."""
        chosen = self.require_images()
        for start in range(0, len(chosen), self.runner.batch_size):
            yield chosen[start : start + self.runner.batch_size]

    def run(self, attack: Attack, name: str, indices: np.ndarray | None = None) -> AttackOutcome:
        """Attack images beyond those of the evaluation.

        Args:
            attack: the attack.
            name: tells it apart from the checks' other attacks.
            indices: positions; all of ``chosen`` by default.
        """
        chosen = self.require_images() if indices is None else indices
        return self.runner.run(attack, f"check:{name}", chosen)

    def left_by(self, *outcomes: AttackOutcome) -> np.ndarray:
        """Tell which of the ``n`` images are correct when clean and broken by none of the attacks; ``(n,)`` bool."""
        left = self.clean.copy()
        for outcome in outcomes:
            left &= ~outcome.broken[: self.count]
        return left

    def baseline(self, loss: str) -> tuple[PGD, AttackOutcome]:
        """Give the evaluation's own white-box attack with a loss, or run it here if the evaluation did not.

        The preset's step is a quarter of its radius, and so it is here for other radii.

        Args:
            loss: ``ce`` (the column ``pgd_sat``) or ``margin`` (``cw_inf``).

        Returns:
            The attack, limited to the images of the checks, and what it did.
        """
        column, preset = ("pgd_sat", PGD_SAT) if loss == "ce" else ("cw_inf", CW_INF)
        known = self.outcome(column)
        if known is not None and known.settings.get("class") == "PGD" and known.scope >= self.count:
            names = {entry.name for entry in fields(PGD)}
            settings = {name: value for name, value in known.settings.items() if name in names}
            return PGD(**{**settings, "images": self.count}), known
        attack = replace(preset, eps=self.eps, norm=self.norm, step_size=self.eps / 4, images=self.count)
        return attack, self.run(attack, f"{column} of the evaluation's radius")

    def outcome(self, column: str) -> AttackOutcome | None:
        """Look up a column that stands for one attack on every correct image; None if there is none."""
        parts = self.report.columns.get(column, [])
        if self.report.mode != "columns" or len(parts) != 1 or parts[0] not in self.report.outcomes:
            return None
        found = self.report.outcomes[parts[0]]
        return found if self._same_ball(found) else None

    def columns(self) -> dict[str, list[str]]:
        """List the columns that can be compared with each other, each with its attacks.

        Raises:
            NotRun: if the attacks saw different images.
        """
        if self.report.mode != "columns":
            raise NotRun(f"the report's mode is {self.report.mode}: each attack saw only what the others had left")
        known = self.report.columns.items()
        return {
            name: parts
            for name, parts in known
            if all(part in self.report.outcomes and self._same_ball(self.report.outcomes[part]) for part in parts)
        }

    def _same_ball(self, outcome: AttackOutcome) -> bool:
        eps, norm = outcome.settings.get("eps", self.eps), outcome.settings.get("norm", self.norm)
        return norm == self.norm and math.isclose(eps, self.eps, rel_tol=1e-6)

    @contextmanager
    def asking(self) -> Iterator[Target]:
        """Prepare the model as for the verdicts of an attack, and refuse answers that are not finite."""
        model = self.runner.model
        target = Target(model)
        with attack_mode(model), full_precision(model.backbone), exact_arithmetic():
            yield target
        target.require_finite()

    def shown(self, radius: float) -> str:
        """Write a radius: in units of 1/255 for L-infinity, as it is for L2."""
        return f"{255 * radius:g}/255" if self.norm == "linf" else f"{radius:g}"

    def batch(self, indices: np.ndarray) -> tuple[Tensor, Tensor]:
        """Load images ``(B, C, H, W)`` in [0, 1] and labels ``(B,)``."""
        return self.runner.pixels(indices), self.runner.labels_of(indices)


def tolerance(first: np.ndarray, second: np.ndarray, least: float = POINTS) -> float:
    """Compute how far two accuracies on the same images may be apart by chance.

    Formula: ``max(least, 2 * sd(a_i - b_i) / sqrt(n))``.

    Args:
        first: ``(n,)`` bool.
        second: ``(n,)`` bool.
        least: smallest tolerance, a share.
    """
    differences = first.astype(float) - second.astype(float)
    return max(least, 2 * float(differences.std()) / math.sqrt(len(differences)))


def not_above(first: np.ndarray, second: np.ndarray, least: float = POINTS) -> bool:
    """Tell whether the first accuracy is at most the second, up to ``tolerance``, on the images that both have."""
    first, second = aligned(first, second)
    return float(first.mean() - second.mean()) <= tolerance(first, second, least)


def aligned(*robust: np.ndarray) -> list[np.ndarray]:
    """Cut outcomes to the images that all of them have: the first so many."""
    shortest = min(len(values) for values in robust)
    return [values[:shortest] for values in robust]


def strays_allowed(count: int) -> int:
    """Count the images that a weaker attacker may break alone: 0.2 %, but one in any case.

    A single image of a small sample is luck: an iterate of the stronger attack passed it by.
    """
    return max(1, int(STRAY_SHARE * count))


def percent(share: float | np.ndarray) -> str:
    """Write a share, or the mean of bits, in percent."""
    return f"{100 * float(np.mean(share)):.1f} %"


def listed(indices: Sequence[int] | np.ndarray, most: int = 5) -> str:
    """Name the first few images."""
    if not len(indices):
        return "none"
    names = ", ".join(str(int(index)) for index in indices[:most])
    return f"{len(indices)} (images {names}{', …' if len(indices) > most else ''})"
