"""Figures of one or more reports as PNG, made to be read at the width of a phone."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np

from bmtard_hooks.evaluation.report import RobustnessReport
from bmtard_hooks.evaluation.statistics import accuracy_error
from bmtard_hooks.reporting.drawing import DPI, STYLES, Picture, add_legend, new_figure, plain, to_png
from bmtard_hooks.reporting.example_figure import draw_examples
from bmtard_hooks.reporting.files import write_file
from bmtard_hooks.reporting.model_figures import draw_scatter, draw_sweep
from bmtard_hooks.reporting.presentation import attack_name, class_name, model_name, require_reports, strongest

MOST_CLASSES = 20


def write_figures(reports: Sequence[RobustnessReport], directory: str | Path) -> list[Path]:
    """Draw every figure that the reports have data for.

    Args:
        reports: the models; curves are drawn together, bars and examples for each.
        directory: where to write; made if missing.

    Returns:
        The paths of the PNG files.

    Raises:
        ImportError: if matplotlib is missing.
        ValueError: without reports.
    """
    return [write_file(Path(directory) / f"{picture.name}.png", picture.png) for picture in draw_figures(reports)]


def draw_figures(reports: Sequence[RobustnessReport], dpi: int = DPI) -> list[Picture]:
    """Draw every figure that the reports have data for; see ``write_figures``.

    Args:
        reports: the models.
        dpi: pixels per inch; figures are 4 inches wide.
    """
    require_reports(reports)
    pictures = []
    if sum(bool(report.columns) for report in reports) > 1:
        pictures.append(draw_scatter(reports, dpi))
    for name in dict.fromkeys(name for report in reports for name, points in report.sweeps.items() if points):
        pictures.append(draw_sweep(reports, name, dpi))
    for number, report in enumerate(reports, 1):
        ending = f"_{number}" if len(reports) > 1 else ""
        pictures.append(_class_bars(report, f"per_class{ending}", dpi))
        if report.examples:
            pictures.append(draw_examples(report, f"examples{ending}", dpi))
    return pictures


def _class_bars(report: RobustnessReport, name: str, dpi: int) -> Picture:
    row = strongest(report)
    images = len(report.labels) if row is None else row.images
    labels, outcomes = report.labels[:images], {"clean": report.correct[:images]}
    if row is not None:
        outcomes[f"robust, {attack_name(row.column)}"] = report.robust(row.column)
    present = np.unique(labels)
    last = list(outcomes.values())[-1]
    order = sorted(present, key=lambda index: float(last[labels == index].mean()))
    shown = sorted(order[:MOST_CLASSES])
    figure = new_figure(1.3 + 0.33 * len(shown))
    axes = figure.subplots()
    height = 0.8 / len(outcomes)
    for position, ((label, correct), (color, _)) in enumerate(zip(outcomes.items(), STYLES, strict=False)):
        shares = np.array([correct[labels == index].mean() for index in shown])
        errors = [
            accuracy_error(share, int((labels == index).sum())) for share, index in zip(shares, shown, strict=True)
        ]
        places = np.arange(len(shown)) + (position - (len(outcomes) - 1) / 2) * height
        axes.barh(places, 100 * shares, height, color=color, label=plain(label))
        axes.errorbar(100 * shares, places, xerr=100 * np.array(errors), color="0.1", linestyle="none", elinewidth=1.2)
    axes.set_yticks(range(len(shown)), [plain(class_name(report, int(index))) for index in shown])
    axes.set(xlabel="accuracy (%)", xlim=(0, 103), ylim=(len(shown) - 0.4, -0.6))
    axes.grid(axis="x", alpha=0.3)
    axes.set_axisbelow(True)
    add_legend(figure, axes)
    title = f"{model_name(report)}: accuracy per class"
    if len(present) > MOST_CLASSES:
        title += f", the {MOST_CLASSES} of {len(present)} classes with the lowest robust accuracy"
    worst = class_name(report, int(order[0]))
    alt = f"{title}; lowest robust accuracy for {worst}, {100 * float(last[labels == order[0]].mean()):.1f} %."
    return Picture(name, f"{title} (lines: ± one standard error)", alt, to_png(figure, dpi))
