"""Clean accuracy, robust accuracy and W-Robust of several runs as grouped bars."""

from __future__ import annotations

import textwrap
from typing import Any

from bmtard_hooks.plots.accuracies import Accuracies
from bmtard_hooks.reporting.drawing import new_figure, plain

KINDS = (
    ("clean", "clean accuracy", "#8FC7EA", ""),
    ("robust", "robust accuracy", "#0072B2", ""),
    ("w_robust", "W-Robust", "#F5C04A", "///"),
)
"""Attribute, name, colour and hatching of each bar; they differ in brightness, for prints without colour."""
NAME_WIDTH = 15
BAR = 0.27


def draw_ablation(shown: Accuracies) -> Any:
    """Draw three bars per run with the standard errors that are known, and below them where the numbers come from.

    Args:
        shown: the numbers; see ``accuracies``.
    """
    width = max(4.6, 1.0 + 1.35 * len(shown.bars))
    figure = new_figure(3.9, width)
    axes = figure.subplots()
    highest = 0.0
    for position, (attribute, label, color, hatch) in enumerate(KINDS):
        places = [index + (position - 1) * BAR for index in range(len(shown.bars))]
        measured = [getattr(bar, attribute) for bar in shown.bars]
        heights = [100 * share for share, _ in measured]
        axes.bar(places, heights, BAR, color=color, edgecolor="0.15", linewidth=0.6, hatch=hatch, label=label)
        for place, height, (_, error) in zip(places, heights, measured, strict=True):
            top = height + 100 * (error or 0.0)
            if error is not None:
                axes.errorbar(place, height, yerr=100 * error, color="0.1", capsize=2.5, elinewidth=1.1)
            axes.annotate(
                f"{height:.1f}", (place, top), xytext=(0, 2), textcoords="offset points", ha="center", fontsize=7.5
            )
            highest = max(highest, top)
    axes.set_xticks(range(len(shown.bars)), [_wrapped(bar.name) for bar in shown.bars], fontsize=9)
    axes.set(ylabel="accuracy (%)", ylim=(0, max(5.0, 1.1 * highest)))
    axes.grid(axis="y", alpha=0.3)
    axes.set_axisbelow(True)
    known = [bar.images is not None for bar in shown.bars]
    errors = "" if not any(known) else f"; lines: ± one standard error{'' if all(known) else ' where known'}"
    letters = int(width * 14)
    axes.set_xlabel("\n".join(textwrap.wrap(plain(shown.source + errors, 400), letters)), fontsize=8, labelpad=8)
    figure.legend(*axes.get_legend_handles_labels(), loc="outside upper center", ncols=3, frameon=False, fontsize=9)
    return figure


def _wrapped(name: str) -> str:
    return "\n".join(textwrap.wrap(plain(name), NAME_WIDTH)) or name
