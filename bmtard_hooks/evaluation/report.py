"""What an evaluation measured: the outcome of every image under every attack, and the numbers that follow."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from bmtard_hooks.attacks.suite import UNIONS
from bmtard_hooks.evaluation.statistics import accuracy_error, per_class_accuracy, weighted_error
from bmtard_hooks.functional import w_robust

WORST_CASE = "worst_case"
"""Name of the column in which an image is robust only if none of the attacks of one ball on the same images broke it."""


@dataclass
class AttackOutcome:
    """What one attack did to each of the ``N`` images of the data set.

    Args:
        settings: ``Attack.settings()``.
        attacked: ``(N,)`` bool, the images it was run on.
        broken: ``(N,)`` bool, those it got misclassified, judged in float32 on its answer.
        broken_on_the_way: ``(N,)`` bool, also those where only an earlier iterate was misclassified; None if not told.
        queries: ``(N,)`` int64 forward passes per image until broken or given up; None if not told.
        forwards: forward passes in total, one per image.
        backwards: backward passes in total.
        seconds: time spent, summed over processes.
        notes: what a reader must know, for example that a loss was replaced for want of classes.
    """

    settings: dict[str, Any]
    attacked: np.ndarray
    broken: np.ndarray
    broken_on_the_way: np.ndarray | None = None
    queries: np.ndarray | None = None
    forwards: int = 0
    backwards: int = 0
    seconds: float = 0.0
    notes: list[str] = field(default_factory=list)

    @property
    def ball(self) -> tuple[str, float]:
        """Norm and radius."""
        return str(self.settings.get("norm", "linf")), round(float(self.settings.get("eps", math.nan)), 9)

    @property
    def scope(self) -> int:
        """Number of images it was meant for: the data set's first so many."""
        limit = self.settings.get("images")
        return len(self.attacked) if limit is None else min(int(limit), len(self.attacked))


@dataclass(frozen=True)
class CheckResult:
    """The result of one check against false robustness.

    Args:
        id: ``P1`` … ``P4`` (the paper's), ``A1`` … ``A13``.
        title: what a model must do to pass.
        status: ``pass``, ``fail`` or ``not run``.
        severity: what a failure means: ``error`` (the robust accuracies are not to be believed) or ``warning``.
        evidence: the measured numbers in one sentence, or why it was not run.
    """

    id: str
    title: str
    status: str
    severity: str
    evidence: str


@dataclass(frozen=True)
class Example:
    """A clean image and what an attack made of it, for figures.

    Args:
        index: position in the data set.
        attack: column it belongs to.
        label: true class.
        prediction: class of the adversarial image.
        clean: ``(C, H, W)`` uint8.
        adversarial: ``(C, H, W)`` uint8, rounded.
    """

    index: int
    attack: str
    label: int
    prediction: int
    clean: np.ndarray
    adversarial: np.ndarray


@dataclass(frozen=True)
class Row:
    """The numbers of one column of the evaluation; shares in [0, 1], errors are standard errors over images."""

    column: str
    images: int
    clean: float
    clean_error: float
    robust: float
    robust_error: float
    w_robust: float
    w_robust_error: float
    worst_class: int
    worst_class_robust: float


@dataclass
class RobustnessReport:
    """Everything an evaluation measured.

    Args:
        model: name of the model.
        dataset: name of the data set and split.
        labels: ``(N,)`` true classes.
        predictions: ``(N,)`` classes of the clean images.
        num_classes: number of classes.
        label_names: name of each class, if known.
        outcomes: attack name to what it did.
        columns: column name to the attacks whose union it is; ``autoattack`` has four.
        mode: ``columns`` (each attack on every clean-correct image) or ``worst_case`` (survivors only).
        clean_weight: weight of clean accuracy in W-Robust (Eq. 22).
        checks: see ``CheckResult``; empty if they were switched off.
        sweeps: curves, for example ``accuracy against eps`` to ``[(x, robust accuracy, images), …]``.
        examples: a few images for the figures.
        environment: commit, versions, device, seed, start of the run, seconds …
        warnings: what a reader must know before the numbers.
    """

    model: str
    dataset: str
    labels: np.ndarray
    predictions: np.ndarray
    num_classes: int
    label_names: list[str] | None
    outcomes: dict[str, AttackOutcome]
    columns: dict[str, list[str]]
    mode: str = "columns"
    clean_weight: float = 0.5
    checks: list[CheckResult] = field(default_factory=list)
    sweeps: dict[str, list[tuple[float, float, int]]] = field(default_factory=dict)
    examples: list[Example] = field(default_factory=list)
    environment: dict[str, Any] = field(default_factory=dict)
    warnings: list[str] = field(default_factory=list)

    @property
    def correct(self) -> np.ndarray:
        """``(N,)`` bool, classified correctly when clean."""
        return self.predictions == self.labels

    def scope(self, column: str) -> int:
        """Count the images a column speaks of: the data set's first so many, which all its attacks were meant for."""
        return min(self.outcomes[part].scope for part in self._parts(column))

    def ball(self, column: str) -> tuple[str, float] | None:
        """Tell the norm and the radius of a column; None if its attacks have several."""
        balls = {self.outcomes[part].ball for part in self._parts(column)}
        return balls.pop() if len(balls) == 1 else None

    def robust(self, column: str) -> np.ndarray:
        """``(n,)`` bool, correct when clean and not broken by any attack of the column, for the images in its scope.

        Raises:
            KeyError: for a column that was not measured, listing those that were.
        """
        broken = np.any([self.outcomes[part].broken for part in self._parts(column)], axis=0)
        return (self.correct & ~broken)[: self.scope(column)]

    def row(self, column: str) -> Row:
        """Sum up a column, clean accuracy on the same images."""
        robust = self.robust(column)
        images = len(robust)
        clean = self.correct[:images]
        by_class = per_class_accuracy(self.labels[:images], robust, self.num_classes)
        clean_share, robust_share = float(clean.mean()), float(robust.mean())
        return Row(
            column=column,
            images=images,
            clean=clean_share,
            clean_error=accuracy_error(clean_share, images),
            robust=robust_share,
            robust_error=accuracy_error(robust_share, images),
            w_robust=w_robust(clean_share, robust_share, self.clean_weight),
            w_robust_error=weighted_error(clean, robust, self.clean_weight),
            worst_class=int(np.nanargmin(by_class)),
            worst_class_robust=float(np.nanmin(by_class)),
        )

    def rows(self) -> list[Row]:
        """Sum up every column, in order."""
        return [self.row(column) for column in self.columns]

    @property
    def failed_checks(self) -> list[CheckResult]:
        """The checks that say the robust accuracies are not to be believed."""
        return [check for check in self.checks if check.status == "fail" and check.severity == "error"]

    @property
    def verdict(self) -> str:
        """What a reader must know first, for the head of every output."""
        if self.failed_checks:
            names = ", ".join(check.id for check in self.failed_checks)
            return f"FAILED the checks against false robustness ({names}): do not believe the robust accuracies."
        if not self.correct.any():
            return "No image is classified correctly, so there was nothing to attack and nothing to check."
        sentence = self._passed()
        if not self._had_autoattack() and any(self.robust(column).any() for column in self.columns):
            sentence += " AutoAttack was not run on all images: it may leave less than the attacks here."
        return sentence

    def _had_autoattack(self) -> bool:
        attacks = {name.rpartition("/")[2]: outcome for name, outcome in self.outcomes.items()}
        parts = [attacks.get(part) for part in UNIONS["autoattack"]]
        return all(part is not None and part.scope == len(self.labels) for part in parts)

    def _passed(self) -> str:
        if not any(check.status != "not run" for check in self.checks):
            return "The checks against false robustness were not run."
        warned = [check.id for check in self.checks if check.status == "fail"]
        remark = f", with warnings from {', '.join(warned)}" if warned else ""
        skipped = sum(check.status == "not run" for check in self.checks)
        passed = sum(check.status == "pass" for check in self.checks)
        left_out = f"{skipped} {'was' if skipped == 1 else 'were'} not run"
        return f"Passed {passed} checks against false robustness{remark}" + (f"; {left_out}." if skipped else ".")

    def _parts(self, column: str) -> Sequence[str]:
        if column not in self.columns:
            raise KeyError(f"no column {column!r}: this report has {', '.join(self.columns)}")
        return self.columns[column]
