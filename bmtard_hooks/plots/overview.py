"""One picture of one run: how temperatures, entropies, weights and losses moved."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from bmtard_hooks.plots.panels import by_epoch, draw_lines, progress_label, styles_by_name
from bmtard_hooks.plots.runs import ENTROPY, RELATIVE, TEMPERATURE, WEIGHT, Run
from bmtard_hooks.reporting.drawing import new_figure, render
from bmtard_hooks.reporting.files import write_file

PANELS = {
    TEMPERATURE: ("temperature", "temperature of the teacher"),
    ENTROPY: ("entropy (nats)", "mean entropy of the teacher's softened answer"),
    WEIGHT: ("weight", "weight of the loss part"),
    RELATIVE: ("loss / loss at the first step", "relative loss"),
}
"""Beginning of the log's keys to the label of the axis and the heading of the panel."""


def plot_balance(log_history: Sequence[Mapping[str, Any]], path: str | Path, title: str | None = None) -> Path:
    """Draw temperatures, entropies, weights and relative losses over a run, and write them as PNG.

    A teacher and the loss part of the same name have one colour, one marker and one kind of line in all four panels.

    Args:
        log_history: ``trainer.state.log_history``, or the list of that name in a ``trainer_state.json``.
        path: the file to write; missing directories are made.
        title: a line above the panels.

    Returns:
        The path of the file.

    Raises:
        ValueError: if the log has no numbers of a balance.
        ImportError: if matplotlib is missing.
    """
    run = Run("run", log_history)
    epochs = by_epoch([run])
    panels = {prefix: run.series(prefix, epochs) for prefix in PANELS}
    styles = styles_by_name(name for lines in panels.values() for name in lines)
    if not styles:
        raise ValueError(
            f"none of the {len(log_history)} entries of log_history has a key such as temperature_clean, entropy_robust "
            "or weight_clean: pass trainer.state.log_history of a run that distils (method bmtard, mtard or baseline) "
            "and that trained for at least logging_steps steps"
        )
    figure = new_figure(7, 10)
    if title is not None:
        figure.suptitle(title)
    for axes, (prefix, lines) in zip(figure.subplots(2, 2, sharex=True).flat, panels.items(), strict=True):
        label, heading = PANELS[prefix]
        axes.set_title(heading, fontsize="medium")
        axes.set(xlabel=progress_label(epochs), ylabel=label)
        axes.tick_params(labelbottom=True)
        draw_lines(axes, lines, styles)
        if lines:
            axes.legend(frameon=False, handlelength=3.2)
        else:
            axes.text(0.5, 0.5, "not logged", transform=axes.transAxes, ha="center", va="center", color="0.5")
    return write_file(path, render(figure, "png", 120))
