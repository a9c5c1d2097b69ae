"""The loss that is minimised, over the run, a line per run."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence

from bmtard_hooks.plots.dynamics import Drawn
from bmtard_hooks.plots.panels import (
    Style,
    by_epoch,
    draw_lines,
    legend_of,
    progress_label,
    styles_by_name,
)
from bmtard_hooks.plots.runs import Run, Series
from bmtard_hooks.reporting.drawing import new_figure

FEWEST_POINTS = 2
TOTAL = "loss"


def draw_total_loss(runs: Sequence[Run], styles: Mapping[str, Style], smooth: int = 1) -> Drawn:
    """Draw the logged training loss of several runs in one panel (the paper's Figure 4).

    Losses of different methods are sums of different parts, so only a line's course can be compared, not its height.

    Args:
        runs: a line each; those that logged fewer than two losses are left out.
        styles: of teachers and loss parts; runs have styles of their own.
        smooth: see ``draw_lines``.
    """
    epochs = by_epoch(runs)
    lines = {run.name: total_loss(run, epochs) for run in runs}
    shown = {name: series for name, series in lines.items() if len(series.values) >= FEWEST_POINTS}
    absent = ", ".join(name for name in lines if name not in shown)
    notes = [f"not in figure_total_loss, for want of a logged loss: {absent}"] if absent else []
    if not shown:
        return None, notes
    own = styles_by_name(shown)
    figure = new_figure(3.6, 6.0)
    axes = figure.subplots()
    draw_lines(axes, shown, own, smooth)
    axes.set(xlabel=progress_label(epochs), ylabel="total loss (weighted sum of the parts)")
    legend_of(figure, [axes], "run", own)
    return figure, notes


def total_loss(run: Run, epochs: bool = True) -> Series:
    """Collect the logged training loss of a run; entries without a finite one are passed over.

    Args:
        run: the run.
        epochs: whether places are epochs; optimizer steps otherwise.
    """
    key = "epoch" if epochs else "step"
    found = [
        (float(entry.get(key, number)), float(entry[TOTAL]))
        for number, entry in enumerate(run.log)
        if isinstance(entry.get(TOTAL), (int, float)) and math.isfinite(entry[TOTAL])
    ]
    return Series([place for place, _ in found], [value for _, value in found])
