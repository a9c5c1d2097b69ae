"""Is one model better than another? From two reports on the same images, or from several training runs each."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from scipy import stats

from bmtard_hooks.evaluation.comparability import (
    differing_settings,
    doubts,
    require_same_attack,
    require_same_images,
    shared_columns,
)
from bmtard_hooks.evaluation.report import RobustnessReport
from bmtard_hooks.evaluation.statistics import Difference, McNemar, holm, mcnemar, paired_difference, weighted_outcomes


@dataclass(frozen=True)
class ColumnComparison:
    """One column of two reports; every difference is the first model's share minus the second's.

    Args:
        column: name of the column.
        images: number of images compared.
        clean: difference of clean accuracies.
        robust: difference of robust accuracies.
        w_robust: difference of W-Robust.
        clean_test: test of the clean outcomes.
        robust_test: test of the robust outcomes.
        clean_p: p-value of ``clean_test``, adjusted for the number of columns.
        robust_p: p-value of ``robust_test``, adjusted for the number of columns.
    """

    column: str
    images: int
    clean: Difference
    robust: Difference
    w_robust: Difference
    clean_test: McNemar
    robust_test: McNemar
    clean_p: float
    robust_p: float

    @property
    def spread(self) -> float:
        """Standard deviation over images of the difference in W-Robust."""
        return self.w_robust.error * math.sqrt(self.images)


@dataclass(frozen=True)
class Comparison:
    """Two models on the same images.

    Args:
        first: name of the first model.
        second: name of the second.
        dataset: name of the data set and split.
        columns: the columns that both reports have.
        confidence: of the intervals.
        warnings: what a reader must know before the numbers.
    """

    first: str
    second: str
    dataset: str
    columns: list[ColumnComparison]
    confidence: float = 0.95
    warnings: list[str] = field(default_factory=list)

    def to_markdown(self, difference: float = 0.005) -> str:
        """Write a table in percent points, and what it takes to call a difference one.

        Args:
            difference: of W-Robust, a share, for the remark on how many images would show it.
        """
        level = f"{100 * self.confidence:g} %"
        lines = [
            f"{self.first} minus {self.second} on {self.dataset}, percent points ± standard error over the same images:",
            "",
            f"| column | images | clean | robust | W-Robust | {level} of W-Robust | only first : only second robust | p |",
            "|---|---:|---:|---:|---:|---:|---:|---:|",
            *(_line(entry) for entry in self.columns),
            "",
            f"A difference in W-Robust is significant if its {level} interval leaves out 0, one in robust accuracy if p "
            f"(McNemar's exact test, Holm's adjustment for {len(self.columns)} column{'s' * (len(self.columns) != 1)}) is below "
            f"{1 - self.confidence:.2g}; both speak of these two trained models, not of training them again.",
            self._images_remark(difference),
            *(f"Warning: {warning}" for warning in self.warnings),
        ]
        return "\n".join(lines)

    def _images_remark(self, difference: float) -> str:
        widest = max(self.columns, key=lambda entry: entry.spread)
        if widest.spread == 0:
            return "The models do not differ in W-Robust on single images, so no number of images can be recommended."
        needed = images_needed(widest.spread, difference)
        return (
            f"To show a difference of {100 * difference:g} points in W-Robust with 80 % power takes {needed:,} images at the "
            f"spread seen under {widest.column} (sd {100 * widest.spread:.1f} points); {widest.images:,} were compared."
        )


def compare(
    first: RobustnessReport,
    second: RobustnessReport,
    columns: Sequence[str] | None = None,
    *,
    resamples: int = 10_000,
    confidence: float = 0.95,
    seed: int = 0,
) -> Comparison:
    """Compare two models image by image, column by column.

    If a column speaks of more images in one report than in the other, the first so many that both have are compared.

    Args:
        first: report of one model.
        second: report of the other on the same images.
        columns: names of columns; by default those that both reports have.
        resamples: of the bootstrap over images.
        confidence: of its intervals, in (0, 1).
        seed: of the bootstrap.

    Raises:
        ValueError: if the images, a column's radius or norm, the weight in W-Robust or the mode differ, or no column is
            shared.
        KeyError: for a column that a report does not have.
    """
    require_same_images(first, second)
    names = shared_columns(first, second) if columns is None else list(columns)
    warnings = doubts(first, second)
    measured = []
    for name in names:
        pair = first.robust(name), second.robust(name)  # also raises KeyError for an unknown column
        require_same_attack(first, second, name)
        warnings += differing_settings(first, second, name)
        images = min(map(len, pair))
        if len(pair[0]) != len(pair[1]):
            warnings.append(f"{name}: {len(pair[0])} and {len(pair[1])} images, the first {images} are compared")
        measured.append(
            _measure(first, second, name, images, dict(resamples=resamples, confidence=confidence, seed=seed))
        )
    clean_p = holm([entry["clean_test"].p_value for entry in measured])
    robust_p = holm([entry["robust_test"].p_value for entry in measured])
    compared = [
        ColumnComparison(**entry, clean_p=clean, robust_p=robust)
        for entry, clean, robust in zip(measured, clean_p, robust_p, strict=True)
    ]
    return Comparison(first.model, second.model, first.dataset, compared, confidence, warnings)


def images_needed(sd: float, difference: float) -> int:
    """Count the images that show a difference with 80 % power in a paired test at 5 %.

    Formula: ``n = (2.8 sd / D)^2``.

    Args:
        sd: standard deviation over images of the difference between the models, positive, in the unit of ``difference``.
        difference: ``D``, the difference to be shown, not 0.

    Raises:
        ValueError: if one of them is not as said.
    """
    if not sd > 0 or difference == 0:
        raise ValueError(f"sd={sd}, difference={difference}: pass a positive spread and a difference that is not 0")
    return math.ceil((2.8 * sd / difference) ** 2)


@dataclass(frozen=True)
class RunComparison:
    """Two methods, each trained several times with other seeds; the unit is that of the numbers passed.

    Args:
        runs: number of runs of each.
        difference: mean of the first minus mean of the second.
        low: lower end of the interval of the difference.
        high: its upper end.
        p_value: two-sided, under the hypothesis that the means are equal.
        warnings: what a reader must know before the numbers.
    """

    runs: tuple[int, int]
    difference: float
    low: float
    high: float
    p_value: float
    warnings: list[str] = field(default_factory=list)


def compare_runs(first: Sequence[float], second: Sequence[float], confidence: float = 0.95) -> RunComparison:
    """Compare the means of two methods over training seeds with Welch's t interval.

    Args:
        first: one number per run of the first method, for example W-Robust; 2 runs or more.
        second: the same of the second.
        confidence: of the interval, in (0, 1).

    Raises:
        ValueError: for fewer than two runs, numbers that are not finite, or runs that do not vary at all.
    """
    samples = [np.asarray(values, dtype=float) for values in (first, second)]
    runs = len(samples[0]), len(samples[1])
    if min(runs) < 2:
        raise ValueError(
            f"{runs[0]} and {runs[1]} runs: a spread over training seeds needs at least 2 of each, better 3"
        )
    if not all(np.isfinite(values).all() for values in samples):
        raise ValueError(f"runs {list(first)} and {list(second)}: every number must be finite")
    if all(np.ptp(values) == 0 for values in samples):
        raise ValueError(
            f"runs {list(first)} and {list(second)} do not vary: pass runs that were trained with different seeds"
        )
    result: Any = stats.ttest_ind(*samples, equal_var=False)
    interval = result.confidence_interval(confidence)
    warnings = []
    if min(runs) < 3:
        warnings.append(
            f"{runs[0]} and {runs[1]} runs: with fewer than 3 the spread is hardly known, so the interval is wide"
        )
    difference = float(samples[0].mean() - samples[1].mean())
    return RunComparison(runs, difference, float(interval.low), float(interval.high), float(result.pvalue), warnings)


def _measure(
    first: RobustnessReport, second: RobustnessReport, column: str, images: int, bootstrap: Mapping[str, Any]
) -> dict[str, Any]:
    clean = [report.correct[:images] for report in (first, second)]
    robust = [report.robust(column)[:images] for report in (first, second)]
    weighted = [weighted_outcomes(*bits, first.clean_weight) for bits in zip(clean, robust, strict=True)]
    return dict(
        column=column,
        images=images,
        clean=paired_difference(*clean, **bootstrap),
        robust=paired_difference(*robust, **bootstrap),
        w_robust=paired_difference(*weighted, **bootstrap),
        clean_test=mcnemar(*clean),
        robust_test=mcnemar(*robust),
    )


def _line(entry: ColumnComparison) -> str:
    def points(value: Difference) -> str:
        return f"{100 * value.value:+.2f} ± {100 * value.error:.2f}"

    interval = f"[{100 * entry.w_robust.low:+.2f}, {100 * entry.w_robust.high:+.2f}]"
    bits = f"{entry.robust_test.only_first} : {entry.robust_test.only_second}"
    numbers = [
        points(entry.clean),
        points(entry.robust),
        points(entry.w_robust),
        interval,
        bits,
        f"{entry.robust_p:.2g}",
    ]
    return f"| {entry.column} | {entry.images} | {' | '.join(numbers)} |"
