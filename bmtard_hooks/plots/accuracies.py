"""Accuracies of runs that may stand side by side: from evaluation reports, or else from the Trainer's log."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from bmtard_hooks.evaluation.comparability import (
    differing_settings,
    doubts,
    require_same_attack,
    require_same_images,
    shared_columns,
)
from bmtard_hooks.evaluation.report import RobustnessReport
from bmtard_hooks.evaluation.statistics import accuracy_error
from bmtard_hooks.plots.runs import Run
from bmtard_hooks.reporting.presentation import attack_name, ball_name, model_name
from bmtard_hooks.reporting.report_file import load_report

REPORT = "report.json"
LOGGED = ("eval_clean_accuracy", "eval_robust_accuracy", "eval_w_robust")
Measured = tuple[float, float | None]
"""A share in [0, 1] and its standard error, None if the number of images is not known."""


class SeveralReports(ValueError):
    """Several evaluations name the model of one run."""


@dataclass(frozen=True)
class Bars:
    """Clean accuracy, robust accuracy and W-Robust of a run.

    Args:
        name: of the run.
        clean: share of images that are classified correctly.
        robust: share that still is after the attack.
        w_robust: their weighted mean (Eq. 22).
        images: number of images, None if not known.
    """

    name: str
    clean: Measured
    robust: Measured
    w_robust: Measured
    images: int | None


@dataclass(frozen=True)
class Accuracies:
    """What the ablation figure shows.

    Args:
        bars: one entry per run that was measured.
        source: in words: which attack, on which images, and where the numbers come from.
        notes: what a reader must know besides.
    """

    bars: list[Bars]
    source: str
    notes: list[str]


def accuracies(runs: Sequence[Run], reports: Mapping[str, RobustnessReport], attack: str | None = None) -> Accuracies:
    """Choose where the accuracies of all runs come from, so that every bar of the figure means the same.

    That is a column which the evaluation reports of all runs share; if a run has no report or if they do not agree, the last
    evaluation in the logs.

    Args:
        runs: in the order of the figure.
        reports: run name to its evaluation.
        attack: column of the reports; by default the shared one with the lowest robust accuracy.

    Returns:
        The numbers of the runs that were measured; without bars if none was.

    Raises:
        ValueError: if ``attack`` is named and not every run has a report with it.
    """
    missing = [run.name for run in runs if run.name not in reports]
    problem = f"no {REPORT} for {', '.join(missing)}"
    if not missing:
        try:
            return _from_reports([(run.name, reports[run.name]) for run in runs], attack)
        except ValueError as error:
            problem = str(error)
    if attack is not None:
        raise ValueError(f"--attack {attack}: {problem}; evaluate all runs alike, or leave it out to use the logs")
    notes = [f"the reports of {', '.join(reports)} are not used, because all bars must mean the same: {problem}"]
    return _from_logs(runs, notes if reports else [])


def _from_reports(named: Sequence[tuple[str, RobustnessReport]], attack: str | None) -> Accuracies:
    first, others = named[0][1], [report for _, report in named[1:]]
    columns = list(first.columns)
    for other in others:
        require_same_images(first, other)
        columns = [column for column in columns if column in shared_columns(first, other)]
    columns = [column for column in columns if len({report.scope(column) for _, report in named}) == 1]
    if attack is not None or not columns:
        if attack not in columns:
            raise ValueError(f"the reports share {', '.join(columns) or 'no column'} on the same images")
        columns = [attack]
    column = min(columns, key=lambda name: (-first.scope(name), sum(report.row(name).robust for _, report in named)))
    notes: list[str] = []
    for other in others:
        require_same_attack(first, other, column)
        notes += [*differing_settings(first, other, column), *doubts(first, other)]
    bars = []
    for name, report in named:
        row = report.row(column)
        mark = model_name(report).removesuffix(report.model)
        shares = (row.clean, row.clean_error), (row.robust, row.robust_error), (row.w_robust, row.w_robust_error)
        bars.append(Bars(f"{mark}{name}", *shares, row.images))
    source = (
        f"robust under {attack_name(column)}, {ball_name(first.ball(column))}; {bars[0].images} images of {first.dataset} "
        "(evaluation reports)"
    )
    return Accuracies(bars, source, list(dict.fromkeys(notes)))


def _from_logs(runs: Sequence[Run], notes: list[str]) -> Accuracies:
    bars = []
    for run in runs:
        evaluations = [entry for entry in run.log if all(key in entry for key in LOGGED)]
        if evaluations:
            bars.append(_logged_bars(run.name, evaluations[-1]))
        else:
            notes.append(f"{run.name} has no {REPORT} and no {LOGGED[1]} in its log")
    if not bars:
        return Accuracies([], "", notes)
    counts = {bar.images for bar in bars}
    images = f"{counts.pop()} images" if len(counts) == 1 and None not in counts else "images"
    if images == "images":
        told = ", ".join(f"{bar.name} {bar.images or 'unknown'}" for bar in bars)
        notes.append(f"the runs may have been evaluated on different images; their numbers: {told}")
    source = f"robust under the attack of evaluate(); {images} of the evaluation set (last evaluation in the log)"
    return Accuracies(bars, source, notes)


def _logged_bars(name: str, entry: Mapping[str, Any]) -> Bars:
    clean, robust, weighted = (float(entry[key]) for key in LOGGED)
    images = _count_images(entry, clean, robust)
    if images is None:
        return Bars(name, (clean, None), (robust, None), (weighted, None), None)
    # A robust image is also correct when clean, so the two shares tell how many images have which part in W-Robust.
    clean_weight = (weighted - robust) / (clean - robust) if clean > robust else 0.5
    square = robust + clean_weight**2 * (clean - robust)
    error = math.sqrt(max(0.0, square - weighted**2) / images)
    shares = (clean, accuracy_error(clean, images)), (robust, accuracy_error(robust, images)), (weighted, error)
    return Bars(name, *shares, images)


def _count_images(entry: Mapping[str, Any], clean: float, robust: float) -> int | None:
    """Restore the number of images from the rounded speed; None unless the accuracies are shares of that many."""
    speed, seconds = entry.get("eval_samples_per_second"), entry.get("eval_runtime")
    if not speed or not seconds:
        return None
    images = round(float(speed) * float(seconds))
    whole = images > 0 and all(abs(share * images - round(share * images)) < 1e-3 for share in (clean, robust))
    return images if whole else None


def find_report(run: Run) -> RobustnessReport | None:
    """Find the evaluation of a run in its directory, or beside it under the run's name.

    That is ``report.json`` in the run's directory, in a ``report`` or ``evaluation`` directory within, or, if its model has
    the name of the run's directory, in a directory beside the run.

    Raises:
        SeveralReports: if several directories beside the run claim to evaluate it.
    """
    if run.directory is None:
        return None
    directory = run.directory.resolve()
    for inside in (directory, directory / "report", directory / "evaluation"):
        if (inside / REPORT).is_file():
            return load_report(inside / REPORT)
    found = list(_beside(directory))
    if len(found) > 1:
        paths = ", ".join(str(path) for path, _ in found)
        raise SeveralReports(f"{paths} all evaluate a model named {directory.name}: say which with --reports")
    return found[0][1] if found else None


def _beside(directory: Path) -> Iterator[tuple[Path, RobustnessReport]]:
    for path in sorted(directory.parent.glob(f"*/{REPORT}")):
        try:
            report = load_report(path)
        except ValueError:  # some other program's report.json
            continue
        if report.model == directory.name:
            yield path, report
