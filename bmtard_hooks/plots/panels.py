"""What the figures of runs share: a grid of panels, one line per teacher or loss part, one legend."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import numpy as np

from bmtard_hooks.plots.runs import Run, Series
from bmtard_hooks.reporting.drawing import new_figure, plain, styles_of

DASHES = ("-", "--", "-.", (0, (5, 1, 1, 1, 1, 1)), ":")
USUAL = ("clean", "robust", "robust_l2")
"""Names that have the same style in every figure, whatever else is drawn."""
MARKERS_PER_LINE = 12
PANEL_WIDTH, PANEL_HEIGHT = 3.3, 2.5
MOST_COLUMNS = 3
LONGEST_TITLE = 32
Style = tuple[str, str, Any]
"""Colour, marker and dashes: any one of them tells lines apart."""


def styles_by_name(names: Iterable[str]) -> dict[str, Style]:
    """Give every teacher and loss part a style that it keeps in all panels: the usual ones first, then by the alphabet."""
    distinct = sorted(set(names), key=lambda name: (USUAL.index(name) if name in USUAL else len(USUAL), name))
    return {
        name: (*style, DASHES[index % len(DASHES)])
        for index, (name, style) in enumerate(zip(distinct, styles_of(len(distinct)), strict=True))
    }


def grid(panels: int, columns: int | None = None, **shared: Any) -> tuple[Any, list[Any]]:
    """Make a figure with panels in rows.

    Args:
        panels: how many.
        columns: panels in a row; by default up to ``MOST_COLUMNS``.
        **shared: ``sharex`` and ``sharey`` of ``Figure.subplots``.

    Returns:
        The figure, and the panels in reading order.
    """
    if columns is None:
        rows = math.ceil(panels / MOST_COLUMNS)
        columns = math.ceil(panels / rows)
    rows = math.ceil(panels / columns)
    figure = new_figure(0.4 + PANEL_HEIGHT * rows, PANEL_WIDTH * columns + 0.5)
    axes = list(figure.subplots(rows, columns, squeeze=False, **shared).flat)
    for left_over in axes[panels:]:
        left_over.remove()
    for panel in axes[:panels]:
        panel.tick_params(labelbottom=True, labelleft=True)
    return figure, axes[:panels]


def draw_lines(axes: Any, lines: Mapping[str, Series], styles: Mapping[str, Style], smooth: int = 1) -> None:
    """Draw a line per name: the raw points or, if asked for, a running mean over them.

    Args:
        axes: the panel.
        lines: name to series.
        styles: name to style.
        smooth: logged points in the running mean; 1 draws the points alone.
    """
    for position, name in enumerate(name for name in styles if name in lines):
        series, (color, marker, dashes) = lines[name], styles[name]
        if series.low is not None and series.high is not None:
            axes.fill_between(series.places, series.low, series.high, color=color, alpha=0.2, linewidth=0)
        values = series.values
        if smooth > 1:
            axes.plot(series.places, values, color=color, linewidth=0.6, alpha=0.4)
            values = running_mean(values, smooth)
        # Lines that lie on each other show their markers by turns, if there are points enough.
        turns = len(lines) if len(values) >= 2 * len(lines) else 1
        every = max(turns, len(values) // MARKERS_PER_LINE)
        first = position * every // len(lines)
        axes.plot(
            series.places,
            values,
            color=color,
            marker=marker,
            linestyle=dashes,
            linewidth=1.2,
            markersize=4.5,
            markevery=(first, every),
            label=plain(name),
        )
    axes.grid(alpha=0.3)
    axes.set_axisbelow(True)


def running_mean(values: Sequence[float], count: int) -> list[float]:
    """Average each value with up to ``count - 1`` before it, so that nothing is known before it was logged."""
    return [float(np.mean(values[max(0, end - count) : end])) for end in range(1, len(values) + 1)]


def head(axes: Any, *lines: str) -> None:
    """Write the panel's title: the run in the first line, what to know about it in small letters below."""
    axes.set_title(plain(lines[0], LONGEST_TITLE), fontsize=10, pad=4 + 10 * len(lines[1:]))
    for row, line in enumerate(reversed(lines[1:])):
        place = {"xycoords": "axes fraction", "textcoords": "offset points", "ha": "center", "va": "bottom"}
        axes.annotate(plain(line, 2 * LONGEST_TITLE), (0.5, 1), xytext=(0, 3 + 10 * row), fontsize=8, **place)


def legend_of(figure: Any, panels: Iterable[Any], title: str, styles: Mapping[str, Style]) -> None:
    """Write one legend below all panels, where it hides nothing, in the order of the styles."""
    handles: dict[str, Any] = {}
    for axes in panels:
        for handle, label in zip(*axes.get_legend_handles_labels(), strict=True):
            handles.setdefault(label, handle)
    ordered = {plain(name): handles[plain(name)] for name in styles if plain(name) in handles}
    figure.legend(
        ordered.values(),
        ordered.keys(),
        title=title,
        loc="outside lower center",
        ncols=min(4, len(ordered)),
        frameon=False,
        fontsize=9,
        title_fontsize=9,
        handlelength=3.2,
    )


def by_epoch(runs: Iterable[Run]) -> bool:
    """Tell whether all runs know their epochs, so that one axis serves all."""
    return all(run.has_epochs for run in runs)


def progress_label(with_epochs: bool) -> str:
    """Name the horizontal axis."""
    return "epoch" if with_epochs else "optimizer step"
