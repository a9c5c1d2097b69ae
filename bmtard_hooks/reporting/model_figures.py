"""Figures in which several models share the axes: curves, and clean against robust accuracy."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

from bmtard_hooks.evaluation.report import RobustnessReport
from bmtard_hooks.evaluation.statistics import accuracy_error
from bmtard_hooks.reporting.drawing import Picture, add_legend, new_figure, plain, styles_of, to_png
from bmtard_hooks.reporting.presentation import attack_name, model_name, strongest

SHORT_NAME = 22
MOST_TICKS = 7
WIDE_RANGE = 30
"""Largest over smallest x positive x from which a curve is drawn over a logarithmic axis."""
X_LABELS = {
    "eps": "radius eps (units of 1/255)",
    "steps": "steps of the attack",
    "queries": "queries per image",
}


def draw_sweep(reports: Sequence[RobustnessReport], name: str, dpi: int) -> Picture:
    """Draw a curve, one line per model that has it, with a band of one standard error.

    Args:
        reports: the models.
        name: of the curve, a key of ``RobustnessReport.sweeps``.
        dpi: pixels per inch.
    """
    figure = new_figure(3.2)
    axes = figure.subplots()
    drawn = [report for report in reports if report.sweeps.get(name)]
    ends = []
    for report, (color, marker) in zip(drawn, styles_of(len(drawn)), strict=True):
        points = sorted(report.sweeps[name])
        x, share = np.array([point[0] for point in points]), np.array([point[1] for point in points])
        error = np.array([accuracy_error(point[1], point[2]) for point in points])
        axes.fill_between(x, 100 * (share - error), 100 * (share + error), color=color, alpha=0.2, linewidth=0)
        axes.plot(x, 100 * share, color=color, marker=marker, markersize=5, label=plain(model_name(report)))
        ends.append(
            f"{model_name(report)} from {100 * share[0]:.1f} % at {x[0]:g} to {100 * share[-1]:.1f} % at {x[-1]:g}"
        )
    what = name.partition("against ")[2] or name
    _space_ticks(axes, sorted({point[0] for report in drawn for point in report.sweeps[name]}))
    if what == "eps":
        chance = 100 / drawn[0].num_classes
        axes.axhline(chance, color="0.4", linestyle=":", linewidth=1.2, label="chance")
    axes.set(xlabel=plain(X_LABELS.get(what, what)), ylabel="robust accuracy (%)", ylim=(-3, 103))
    axes.grid(alpha=0.3)
    add_legend(figure, axes)
    sizes = sorted({point[2] for report in drawn for point in report.sweeps[name]})
    images = f"{sizes[0]}" if len(sizes) == 1 else f"{sizes[0]} to {sizes[-1]}"
    title = f"{name[:1].upper()}{name[1:]} (n = {images} images; band: ± one standard error)"
    stem = "".join(letter if letter.isascii() and letter.isalnum() else "_" for letter in name)
    return Picture(stem, title, f"{name}: {'; '.join(ends)}.", to_png(figure, dpi))


def _space_ticks(axes: Any, places: Sequence[float]) -> None:
    positive = [place for place in places if place > 0]
    if positive and places[0] >= 0 and positive[-1] / positive[0] > WIDE_RANGE:
        # Zero has no logarithm: below the smallest positive place, the axis is linear.
        axes.set_xscale("symlog", linthresh=positive[0], linscale=0.4)
        if len(places) <= MOST_TICKS:
            axes.set_xticks(places, [f"{place:g}" for place in places])
            axes.minorticks_off()
    else:
        axes.xaxis.get_major_locator().set_params(integer=True)


def draw_scatter(reports: Sequence[RobustnessReport], dpi: int) -> Picture:
    """Draw robust against clean accuracy, a point per model, over lines of equal W-Robust.

    Args:
        reports: the models; those without any attack are left out.
        dpi: pixels per inch.
    """
    rows = [(report, row) for report in reports if (row := strongest(report)) is not None]
    attacks = list(dict.fromkeys(attack_name(row.column) for _, row in rows))
    figure = new_figure(3.9)
    axes = figure.subplots()
    told = []
    for (report, row), (color, marker) in zip(rows, styles_of(len(rows)), strict=True):
        name = plain(model_name(report))
        if len(attacks) > 1:
            name = f"{plain(model_name(report), SHORT_NAME)} ({plain(attack_name(row.column), SHORT_NAME // 2)})"
        axes.errorbar(
            100 * row.clean,
            100 * row.robust,
            xerr=100 * row.clean_error,
            yerr=100 * row.robust_error,
            fmt=marker,
            color=color,
            markersize=8,
            capsize=2,
            zorder=3,
            label=name,
        )
        told.append(
            f"{model_name(report)} clean {100 * row.clean:.1f} %, robust {100 * row.robust:.1f} % "
            f"under {attack_name(row.column)}"
        )
    axes.margins(0.15)
    if len({report.clean_weight for report, _ in rows}) == 1:
        _draw_weighted_lines(axes, rows[0][0].clean_weight)
    robust = f"robust under {plain(attacks[0])} (%)" if len(attacks) == 1 else "robust accuracy (%)"
    axes.set(xlabel="clean accuracy (%)", ylabel=robust)
    axes.grid(alpha=0.2)
    add_legend(figure, axes)
    title = "Clean and robust accuracy under each model's strongest attack (W: lines of equal W-Robust)"
    return Picture("clean_and_robust", title, f"{'; '.join(told)}.", to_png(figure, dpi))


def _draw_weighted_lines(axes: Any, clean_weight: float) -> None:
    (left, right), (bottom, top) = axes.get_xlim(), axes.get_ylim()
    # Accuracies of equal models give no range of their own.
    left, right = max(0.0, min(left, right - 4)), min(100.0, max(right, left + 4))
    bottom, top = max(-1.0, min(bottom, top - 4)), min(101.0, max(top, bottom + 4))
    clean, robust = np.meshgrid(np.linspace(left, right, 60), np.linspace(bottom, top, 60))
    lines = axes.contour(
        clean, robust, clean_weight * clean + (1 - clean_weight) * robust, levels=6, colors="0.45", linewidths=0.8
    )
    axes.clabel(lines, fmt="W %g", fontsize=8)
    axes.set(xlim=(left, right), ylim=(bottom, top))
