"""Every figure of a set of runs, written into a directory."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from bmtard_hooks.evaluation.report import RobustnessReport
from bmtard_hooks.plots.ablation import draw_ablation
from bmtard_hooks.plots.accuracies import accuracies
from bmtard_hooks.plots.dynamics import (
    Drawn,
    draw_balance,
    draw_knowledge_scales,
    draw_relative_losses,
    relative_losses,
    styles_of_runs,
)
from bmtard_hooks.plots.panels import Style
from bmtard_hooks.plots.runs import ENTROPY, KNOWLEDGE, TEMPERATURE, WEIGHT, Run, Series
from bmtard_hooks.plots.total_loss import draw_total_loss
from bmtard_hooks.reporting.drawing import DPI, render
from bmtard_hooks.reporting.files import write_file
from bmtard_hooks.reporting.presentation import DASH
from bmtard_hooks.reporting.table import Cell, Column, Table

KINDS = ("png", "pdf", "svg")
OVER_THE_RUN: Mapping[str, Callable[[Sequence[Run], Mapping[str, Style], int], Drawn]] = {
    "total_loss": draw_total_loss,
    "knowledge_scale": draw_knowledge_scales,
    "relative_loss": draw_relative_losses,
    "balance": draw_balance,
}


@dataclass
class Written:
    """What came of drawing.

    Args:
        paths: of the figures, in the order of the paper's.
        notes: what was left out of which figure, and why.
    """

    paths: list[Path] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)


def plot_runs(
    runs: Sequence[Run],
    directory: str | Path,
    *,
    reports: Mapping[str, RobustnessReport] | None = None,
    attack: str | None = None,
    kind: str = "png",
    smooth: int = 1,
) -> Written:
    """Draw the counterparts of the paper's Figures 3 to 6 for a set of runs, as far as they logged what it takes.

    They are ``figure_ablation`` (accuracies), ``figure_total_loss``, ``figure_knowledge_scale``, ``figure_relative_loss`` and
    ``figure_balance`` (temperatures and loss weights).

    Args:
        runs: see ``load_run``.
        directory: where to write; made if missing.
        reports: run name to its evaluation, see ``find_report``; the logs' last evaluation counts where not all have one.
        attack: column of the reports, see ``accuracies``.
        kind: ``png``, ``pdf`` or ``svg``.
        smooth: logged points in a running mean; 1 draws them as they are.

    Returns:
        The files, and what was left out.

    Raises:
        ValueError: if nothing can be drawn, naming what is missing, or for a bad option.
        ImportError: if matplotlib is missing.
    """
    if kind not in KINDS:
        raise ValueError(f"format {kind!r} is unknown: expected {', '.join(KINDS)}")
    if smooth < 1:
        raise ValueError(f"smooth={smooth}: pass the number of points in the running mean, 1 for none")
    written, figures = Written(), {}
    for run in runs:
        written.notes += [f"{problem}: an older log was read" for problem in run.notes]
    measured = accuracies(runs, reports or {}, attack)
    written.notes += measured.notes
    if measured.bars:
        figures["ablation"] = draw_ablation(measured)
    styles = styles_of_runs(runs)
    for name, draw in OVER_THE_RUN.items():
        figure, notes = draw(runs, styles, smooth)
        written.notes += notes
        if figure is not None:
            figures[name] = figure
    if not figures:
        raise ValueError(
            f"nothing to draw: {'; '.join(written.notes)}. Pass runs of BMTARDTrainer that trained for at least logging_steps "
            "steps or were evaluated"
        )
    for name, figure in figures.items():
        written.paths.append(write_file(Path(directory) / f"figure_{name}.{kind}", render(figure, kind, DPI)))
    return written


def last_values(runs: Sequence[Run]) -> Table:
    """Tabulate the last logged temperature, weight, entropy … of every teacher and loss part of every run.

    Args:
        runs: see ``load_run``.
    """
    labels = ["temperature", "weight", "entropy (nats)", "knowledge scale (nats)", "relative loss"]
    columns = [Column("run", numeric=False), Column("teacher or loss", numeric=False), *map(Column, labels)]
    rows: list[list[Cell | str]] = []
    for run in runs:
        relative, computed, _ = relative_losses(run)
        families = [run.series(family) for family in (TEMPERATURE, WEIGHT, ENTROPY, KNOWLEDGE)]
        for name in sorted({name for family in (*families, relative) for name in family}):
            values = [_last(family.get(name)) for family in (*families, relative)]
            values[-1] += "*" if name in computed else ""
            rows.append([run.name, name, *values])
    starred = any(str(row[-1]).endswith("*") for row in rows)
    caption = "* relative to the first logged value, not to the first step" if starred else ""
    return Table("Last logged values", columns, rows, caption)


def _last(series: Series | None) -> str:
    if series is None or not math.isfinite(series.values[-1]):
        return DASH
    if series.low is None or series.high is None:
        return f"{series.values[-1]:.4g}"
    return f"{series.low[-1]:.3g} to {series.high[-1]:.3g}"
