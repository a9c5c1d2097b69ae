"""Pictures of a run: how temperatures, entropies, weights and losses moved."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

Series = dict[str, tuple[list[float], list[float]]]

PANELS = {
    "temperature_": ("temperature", "temperature of the teacher"),
    "entropy_": ("entropy (nats)", "mean entropy of the teacher's softened answer"),
    "weight_": ("weight", "weight of the loss part"),
    "relative_loss_": ("loss / loss at the first step", "relative loss"),
}
"""Beginning of the log's keys to the label of the axis and the heading of the panel."""

# Okabe and Ito's palette in an order that also differs in brightness; the markers serve black-and-white prints.
STYLES = (
    ("#0072B2", "o"),
    ("#D55E00", "s"),
    ("#009E73", "^"),
    ("#CC79A7", "D"),
    ("#E69F00", "v"),
    ("#56B4E9", "P"),
    ("#000000", "X"),
)
MARKERS_PER_LINE = 12


def plot_balance(log_history: Sequence[Mapping[str, Any]], path: str | Path, title: str | None = None) -> Path:
    """Draw temperatures, entropies, weights and relative losses over a run, and write them as PNG.

    A teacher and the loss part of the same name have one colour and one marker in all four panels.

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
    panels = {prefix: _series(log_history, prefix) for prefix in PANELS}
    names = list(dict.fromkeys(name for series in panels.values() for name in series))
    if not names:
        raise ValueError(
            f"none of the {len(log_history)} entries of log_history has a key such as temperature_clean, entropy_robust "
            "or weight_clean: pass trainer.state.log_history of a run that distils (method bmtard, mtard or baseline) "
            "and that trained for at least logging_steps steps"
        )
    try:
        from matplotlib.figure import Figure  # here, because only the recipes need it; no pyplot, no global backend
    except ImportError as error:
        raise ImportError("plot_balance needs matplotlib: pip install 'bmtard_hooks[recipes]'") from error
    figure = Figure(figsize=(10, 7), dpi=120, layout="constrained")
    if title is not None:
        figure.suptitle(title)
    styles = {name: STYLES[index % len(STYLES)] for index, name in enumerate(names)}
    by_epoch = all("epoch" in entry for entry in log_history if _belongs(entry))
    for axes, (prefix, series) in zip(figure.subplots(2, 2, sharex=True).flat, panels.items(), strict=True):
        _draw(axes, prefix, series, styles)
        axes.set_xlabel("epoch" if by_epoch else "optimizer step")
        axes.tick_params(labelbottom=True)
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(path, format="png")
    return path


def _belongs(entry: Mapping[str, Any]) -> bool:
    return any(key.startswith(prefix) for prefix in PANELS for key in entry)


def _series(log_history: Sequence[Mapping[str, Any]], prefix: str) -> Series:
    entries = [entry for entry in log_history if _belongs(entry)]
    place = "epoch" if all("epoch" in entry for entry in entries) else "step"
    series: Series = {}
    for number, entry in enumerate(entries):
        for key, value in entry.items():
            if key.startswith(prefix):
                places, values = series.setdefault(key.removeprefix(prefix), ([], []))
                places.append(float(entry.get(place, number)))
                values.append(float(value))
    return series


def _draw(axes: Any, prefix: str, series: Series, styles: Mapping[str, tuple[str, str]]) -> None:
    label, heading = PANELS[prefix]
    axes.set_title(heading, fontsize="medium")
    axes.set_ylabel(label)
    axes.grid(alpha=0.3)
    for name, (places, values) in series.items():
        color, marker = styles[name]
        every = max(1, len(places) // MARKERS_PER_LINE)
        axes.plot(places, values, color=color, marker=marker, markersize=4, markevery=every, label=name)
    if series:
        axes.legend(frameon=False)
    else:
        axes.text(0.5, 0.5, "not logged", transform=axes.transAxes, ha="center", va="center", color="0.5")
