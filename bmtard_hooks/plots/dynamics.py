"""How teachers' knowledge, relative losses, temperatures and weights moved over runs, a panel per run."""

from __future__ import annotations

import math
from collections.abc import Container, Iterable, Mapping, Sequence
from typing import Any

from bmtard_hooks.plots.panels import (
    Style,
    by_epoch,
    draw_lines,
    grid,
    head,
    legend_of,
    progress_label,
    styles_by_name,
)
from bmtard_hooks.plots.runs import ENTROPY, FAMILIES, KNOWLEDGE, LOSS, RELATIVE, TEMPERATURE, WEIGHT, Run, Series

Drawn = tuple[Any, list[str]]
"""A figure, or None if no run has what it shows; and remarks on the runs that were left out."""
BY_FIRST_STEP = "loss / loss at first step"
BY_FIRST_LOG = "loss / first logged loss"
STILL = 1e-9
WIDE_RANGE = 20


def styles_of_runs(runs: Sequence[Run]) -> dict[str, Style]:
    """Give every teacher and loss part of some runs the style that it has in all their figures."""
    return styles_by_name(name for run in runs for family in FAMILIES for name in run.series(family))


def draw_knowledge_scales(runs: Sequence[Run], styles: Mapping[str, Style], smooth: int = 1) -> Drawn:
    """Draw each teacher's knowledge scale ``ln C - H``; with Entropy-Based Balance the lines meet (Eq. 7 to 14).

    Args:
        runs: a panel each.
        styles: see ``styles_of_runs``.
        smooth: see ``draw_lines``.
    """
    epochs = by_epoch(runs)
    found = {run.name: (run, run.series(KNOWLEDGE, epochs)) for run in runs}
    shown = {name: pair for name, pair in found.items() if pair[1]}
    notes = _left_out("figure_knowledge_scale", "logged knowledge scale", found, shown)
    if not shown:
        return None, notes
    figure, panels = grid(len(shown), sharex=True, sharey=True)
    for axes, (run, lines) in zip(panels, shown.values(), strict=True):
        draw_lines(axes, lines, styles, smooth)
        head(axes, run.name, _knowledge_remark(run, lines))
        axes.set_xlabel(progress_label(epochs))
    _keep_small_moves_small(panels, 0.1)
    _label_rows(panels, "knowledge scale (nats)")
    limits = {_most_entropy(run, epochs) for run, _ in shown.values()}
    if len(limits) == 1 and (limit := limits.pop()) is not None:
        _add_entropy_axes(panels, limit)
    legend_of(figure, panels, "teacher", styles)
    return figure, notes


def draw_relative_losses(runs: Sequence[Run], styles: Mapping[str, Style], smooth: int = 1) -> Drawn:
    """Draw each loss part relative to its beginning; with Normalization Loss Balance they fall alike (Eq. 15 to 20).

    Args:
        runs: a panel each; those with a single loss part have nothing to balance and are left out.
        styles: see ``styles_of_runs``.
        smooth: see ``draw_lines``.
    """
    epochs = by_epoch(runs)
    found, notes = {}, []
    for run in runs:
        lines, computed, refused = relative_losses(run, epochs)
        found[run.name] = (lines, computed, run)
        notes += refused
    shown = {name: triple for name, triple in found.items() if len(triple[0]) > 1}
    notes += _left_out("figure_relative_loss", "second loss part", found, shown)
    if not shown:
        return None, notes
    figure, panels = grid(len(shown), sharex=True, sharey=True)
    for axes, (lines, computed, run) in zip(panels, shown.values(), strict=True):
        draw_lines(axes, lines, styles, smooth)
        axes.axhline(1, color="0.4", linestyle=":", linewidth=1)
        remarks = [_moved(run, WEIGHT, "weights")]
        if computed and len(computed) < len(lines):
            remarks.append(f"{', '.join(sorted(computed))}: relative to the first logged value")
        head(axes, run.name, *filter(None, remarks))
        axes.set(xlabel=progress_label(epochs), ylabel=BY_FIRST_LOG if len(computed) == len(lines) else BY_FIRST_STEP)
    _choose_scale(
        panels[0], [value for lines, *_ in shown.values() for line in lines.values() for value in line.values]
    )
    legend_of(figure, panels, "loss part", styles)
    return figure, notes


def relative_losses(run: Run, epochs: bool = True) -> tuple[dict[str, Series], set[str], list[str]]:
    """Collect relative losses: as logged or, for parts that no callback measures, divided by the first logged loss.

    Args:
        run: the run.
        epochs: whether places are epochs.

    Returns:
        Part to series, the parts that were computed here, and remarks on parts that could not be.
    """
    lines, computed, notes = run.series(RELATIVE, epochs), set(), []
    for part, series in run.series(LOSS, epochs).items():
        first = series.values[0]
        if part in lines or series.low is not None:
            continue
        if not 0 < first < math.inf:
            notes.append(f"{run.name}: the first logged {part} loss is {first:g}, nothing can be relative to it")
            continue
        lines[part] = Series(series.places, [value / first for value in series.values])
        computed.add(part)
    return lines, computed, notes


def draw_balance(runs: Sequence[Run], styles: Mapping[str, Style], smooth: int = 1) -> Drawn:
    """Draw temperatures and loss weights, a row of two panels per run.

    Args:
        runs: the runs; those with neither are left out.
        styles: see ``styles_of_runs``.
        smooth: see ``draw_lines``.
    """
    epochs = by_epoch(runs)
    found = {run.name: [run.series(TEMPERATURE, epochs), run.series(WEIGHT, epochs)] for run in runs}
    shown = {name: pair for name, pair in found.items() if any(pair)}
    notes = _left_out("figure_balance", "logged temperature or weight", found, shown)
    if not shown:
        return None, notes
    figure, panels = grid(2 * len(shown), columns=2, sharex=True, sharey="col")
    for row, (name, pair) in enumerate(shown.items()):
        for axes, lines, label in zip(panels[2 * row :], pair, ("temperature", "weight of the loss"), strict=False):
            draw_lines(axes, lines, styles, smooth)
            head(axes, name)
            axes.set(xlabel=progress_label(epochs), ylabel=label)
            if not lines:
                axes.text(0.5, 0.5, "not logged", transform=axes.transAxes, ha="center", va="center", color="0.4")
    for position, margin in ((0, 0.1), (1, 0.02)):
        _keep_small_moves_small(panels[position::2], margin)
    legend_of(figure, panels, "teacher or loss part", styles)
    return figure, notes


def _left_out(figure: str, missing: str, found: Iterable[str], shown: Container[str]) -> list[str]:
    absent = ", ".join(name for name in found if name not in shown)
    return [f"not in {figure}, for want of a {missing}: {absent}"] if absent else []


def _keep_small_moves_small(panels: Sequence[Any], margin: float) -> None:
    """Widen the common vertical axis, so that constants and rounding do not look like movement."""
    low, high = panels[0].get_ylim()
    middle = (low + high) / 2
    panels[0].set_ylim(min(low, middle - margin), max(high, middle + margin))


def _choose_scale(axes: Any, values: Sequence[float]) -> None:
    """Draw losses that fell far over a logarithmic axis, on which equal distances are equal ratios."""
    if min(values) > 0 and max(values) / min(values) > WIDE_RANGE:
        axes.set_yscale("log")
    else:
        axes.set_ylim(bottom=min(0.0, *values))


def _moved(run: Run, family: str, what: str) -> str:
    lines = run.series(family).values()
    if not lines or max(len(series.values) for series in lines) < 2:
        return ""
    moved = any(max(series.values) - min(series.values) > STILL for series in lines)
    return f"{what} {'moved' if moved else 'constant'}"


def _knowledge_remark(run: Run, lines: Mapping[str, Series]) -> str:
    gaps = []
    for place in (0, -1):
        values = [series.values[place] for series in lines.values()]
        gaps.append(max(values) - min(values))
    gap = f"gap {gaps[0]:.3g} → {gaps[1]:.3g} nats" if len(lines) > 1 else ""
    return ", ".join(filter(None, (_moved(run, TEMPERATURE, "temperatures"), gap)))


def _most_entropy(run: Run, epochs: bool) -> float | None:
    """Restore ``ln C`` of a run, which knowledge scale and entropy add up to."""
    knowledge, entropy = run.series(KNOWLEDGE, epochs), run.series(ENTROPY, epochs)
    sums = [knowledge[name].values[-1] + entropy[name].values[-1] for name in knowledge if name in entropy]
    return round(sums[0], 4) if sums else None


def _label_rows(panels: Sequence[Any], label: str) -> None:
    for axes in panels:
        if axes.get_subplotspec().is_first_col():
            axes.set_ylabel(label)


def _add_entropy_axes(panels: Sequence[Any], limit: float) -> None:
    for axes in panels:
        last = axes is panels[-1] or axes.get_subplotspec().is_last_col()
        if last:
            right = axes.secondary_yaxis("right", functions=(lambda value: limit - value, lambda value: limit - value))
            right.set_ylabel("mean entropy (nats)")
