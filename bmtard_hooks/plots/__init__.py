"""Figures of training runs: ablations, and how knowledge, losses, temperatures and weights moved."""

from bmtard_hooks.plots.accuracies import find_report
from bmtard_hooks.plots.outputs import Written, last_values, plot_runs
from bmtard_hooks.plots.overview import plot_balance
from bmtard_hooks.plots.runs import Run, load_run, names_of

__all__ = ["Run", "Written", "find_report", "last_values", "load_run", "names_of", "plot_balance", "plot_runs"]
