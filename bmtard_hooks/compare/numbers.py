"""The numbers of a comparison: every run, means over seeds, and each row against the first on the same images."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from bmtard_hooks.compare.retraining import Retraining, retraining, uncertainty
from bmtard_hooks.evaluation.comparison import compare
from bmtard_hooks.evaluation.report import RobustnessReport
from bmtard_hooks.evaluation.statistics import accuracy_error, holm, weighted_outcomes

Reports = Mapping[int | None, RobustnessReport]
"""Seed to report; None is the seed of a teacher."""

Again = Mapping[str, Retraining]
"""Measure to what training again does to it."""

MEASURES = ("clean", "robust", "w_robust")
WEIGHTED = "w_robust"


def outcomes(report: RobustnessReport, column: str) -> dict[str, np.ndarray]:
    """Give every image in a column's scope its share of clean accuracy, robust accuracy and W-Robust.

    Args:
        report: of one model.
        column: of the report.

    Returns:
        Measure to ``(n,)`` float64 in [0, 1].
    """
    robust = report.robust(column)
    clean = report.correct[: len(robust)]
    weighted = weighted_outcomes(clean, robust, report.clean_weight)
    return {"clean": clean.astype(float), "robust": robust.astype(float), "w_robust": weighted}


def single(report: RobustnessReport) -> dict[str, Any]:
    """Sum up one model: clean accuracy and every column, each with its standard error over images."""
    share = float(report.correct.mean())
    columns = {}
    for row in report.rows():
        columns[row.column] = {
            "images": row.images,
            "robust": row.robust,
            "robust_error": row.robust_error,
            "w_robust": row.w_robust,
            "w_robust_error": row.w_robust_error,
        }
    return {"clean": share, "clean_error": accuracy_error(share, len(report.labels)), "columns": columns}


def mean_over_seeds(reports: Reports, column: str, again: Again | None = None) -> dict[str, Any]:
    """Average a column over seeds.

    Args:
        reports: of one row, at least one.
        column: of the reports.
        again: of ``training_again``, for the errors of students; by default from this row alone.

    Returns:
        ``seeds``, and for clean, robust and w_robust what ``_summary`` says, on the images in the column's scope.
    """
    again = training_again({"row": reports}, column) if again is None else again
    found = [outcomes(report, column) for report in reports.values()]
    result: dict[str, Any] = {"seeds": len(found)}
    for measure in MEASURES:
        values = np.stack([entry[measure] for entry in found])
        result |= _summary(measure, values, None if None in reports else again.get(measure))
    return result


def clean_over_seeds(rows: Mapping[str, Reports]) -> dict[str, dict[str, Any]]:
    """Average the clean accuracy of every row over seeds, on all images, whatever part of them the attacks saw.

    Args:
        rows: label to reports; rows without any are left out.

    Returns:
        Label to what ``_summary`` says of ``clean``.
    """
    right = {
        label: np.stack([report.correct.astype(float) for report in reports.values()])
        for label, reports in rows.items()
        if reports
    }
    again = retraining(values for label, values in right.items() if None not in rows[label])
    return {
        label: _summary("clean", values, None if None in rows[label] else again) for label, values in right.items()
    }


def _summary(name: str, values: np.ndarray, again: Retraining | None) -> dict[str, Any]:
    """Sum up ``(S, n)`` numbers of a row, a line per seed.

    Returns:
        The mean as ``name``; ``name_error_images`` (standard error from the choice of the test images, these models taken
        as they are); ``name_error_seeds`` (sd over seeds / sqrt(seeds); None with a single seed); and ``name_error``, from the
        images and from training again as ``again`` has it, see ``uncertainty``.
    """
    over_images = _error_over_images(values.mean(axis=0))
    return {
        name: float(values.mean()),
        f"{name}_error": uncertainty(over_images, again, len(values), trained=1).error,
        f"{name}_error_images": over_images,
        f"{name}_error_seeds": error_over_seeds(values.mean(axis=1)),
    }


def error_over_seeds(values: Sequence[float] | np.ndarray) -> float | None:
    """Compute the standard error of a mean over seeds; None for a single one.

    Formula: ``sd / sqrt(S)`` with the divisor ``S - 1`` in the variance.
    """
    count = len(values)
    return None if count < 2 else float(np.std(values, ddof=1) / math.sqrt(count))


def _error_over_images(values: np.ndarray) -> float:
    return float(values.std() / math.sqrt(len(values)))


def training_again(rows: Mapping[str, Reports], column: str) -> Again:
    """Estimate from all rows together how much training again moves each measure, see ``retraining``.

    Args:
        rows: label to reports.
        column: of the reports.

    Returns:
        Measure to estimate; nothing if no row was trained twice.
    """
    found = [
        [outcomes(report, column) for seed, report in reports.items() if seed is not None] for reports in rows.values()
    ]
    estimates = {
        measure: retraining(np.stack([entry[measure] for entry in row]) for row in found if row)
        for measure in MEASURES
    }
    return {measure: estimate for measure, estimate in estimates.items() if estimate is not None}


def paired(row: Reports, other: Reports, column: str, again: Again | None = None) -> dict[str, Any]:
    """Compare two rows on the same images, seed by seed; every difference is the first argument's share minus the second's.

    A teacher, which has no seed, is paired with every seed of a student.

    Args:
        row: reports of one row.
        other: reports of the other; ``share_seeds`` is true of them.
        column: of the reports.
        again: of ``training_again``; by default from these two rows alone.

    Returns:
        ``seeds`` that both have; for every measure the mean difference, its ``_error_images``, its ``_error`` (over images and
        over training again, see ``uncertainty``; over images alone if no row was trained twice); ``freedom`` and ``p`` (of
        Student's t) for W-Robust, freedom None if it is infinite; and McNemar's ``tests`` of robust accuracy, one per seed.
    """
    pairs = _pairs(row, other)
    again = training_again({"row": row, "other": other}, column) if again is None else again
    trained = (None not in row) + (None not in other)
    result: dict[str, Any] = {"seeds": [seed for seed, _, _ in pairs]}
    differences = []
    for _, first, second in pairs:
        mine, theirs = outcomes(first, column), outcomes(second, column)
        images = min(len(mine["clean"]), len(theirs["clean"]))
        differences.append({name: mine[name][:images] - theirs[name][:images] for name in MEASURES})
    for measure in MEASURES:
        values = np.stack([entry[measure] for entry in differences])
        over_images = _error_over_images(values.mean(axis=0))
        found = uncertainty(over_images, again.get(measure), len(pairs), trained)
        result[measure] = float(values.mean())
        result[f"{measure}_error_images"] = over_images
        result[f"{measure}_error"] = found.error
        if measure == WEIGHTED:
            result["freedom"] = found.freedom if math.isfinite(found.freedom) else None
            result["p"] = found.p(result[measure])
    result["tests"] = [_test(seed, first, second, column) for seed, first, second in pairs]
    return result


def share_seeds(row: Reports, other: Reports) -> bool:
    """Tell whether two rows can be paired."""
    return bool(_pairs(row, other))


def _pairs(row: Reports, other: Reports) -> list[tuple[int | None, RobustnessReport, RobustnessReport]]:
    if None in row and None in other:
        return [(None, row[None], other[None])]
    if None in row:
        return [(seed, row[None], report) for seed, report in other.items()]
    if None in other:
        return [(seed, report, other[None]) for seed, report in row.items()]
    return [(seed, report, other[seed]) for seed, report in row.items() if seed in other]


def _test(seed: int | None, first: RobustnessReport, second: RobustnessReport, column: str) -> dict[str, Any]:
    found = compare(first, second, [column], resamples=1).columns[0].robust_test  # also refuses other images or radii
    return {
        "seed": seed,
        "only_row": found.only_first,
        "only_other": found.only_second,
        "p": found.p_value,
    }


def against_first(
    rows: Mapping[str, Reports], first: str, column: str, again: Again | None = None
) -> list[dict[str, Any]]:
    """Compare every row with one of them, p-values adjusted over the rows (Holm), McNemar's for each seed.

    Args:
        rows: label to reports; rows without any are left out.
        first: label of the row to compare with.
        column: of the reports.
        again: of ``training_again`` for these rows; computed if None.

    Returns:
        One entry per other row that shares a seed with it, see ``paired``, with ``row``, ``column`` and ``p_holm``, also in tests.
    """
    if not rows.get(first):
        return []
    again = training_again(rows, column) if again is None else again
    entries = []
    for label, reports in rows.items():
        if label != first and share_seeds(reports, rows[first]):
            entries.append({"row": label, "column": column, **paired(reports, rows[first], column, again)})
    for entry, adjusted in zip(entries, holm([entry["p"] for entry in entries]), strict=True):
        entry["p_holm"] = adjusted
    seeds = dict.fromkeys(test["seed"] for entry in entries for test in entry["tests"])
    for seed in seeds:
        tests = [test for entry in entries for test in entry["tests"] if test["seed"] == seed]
        for test, adjusted in zip(tests, holm([test["p"] for test in tests]), strict=True):
            test["p_holm"] = adjusted
    return entries


def best_and_second(
    rows: Mapping[str, Reports], column: str, again: Again | None = None
) -> tuple[str, str, dict[str, Any]] | None:
    """Find the rows with the highest and the second highest mean W-Robust, and their paired difference.

    Args:
        rows: label to reports, of the rows that compete.
        column: of the reports.
        again: of ``training_again`` for these rows; computed if None.

    Returns:
        Their labels and what ``paired`` says of them; None with fewer than two rows, or if they share no seed, or if the
        second is ahead on the seeds that they share.
    """
    again = training_again(rows, column) if again is None else again
    means = {label: mean_over_seeds(reports, column, again)[WEIGHTED] for label, reports in rows.items() if reports}
    if len(means) < 2:
        return None
    best, second = sorted(means, key=lambda label: -means[label])[:2]
    if not share_seeds(rows[best], rows[second]):
        return None
    found = paired(rows[best], rows[second], column, again)
    return (best, second, found) if found[WEIGHTED] >= 0 else None
