"""The command `bmtard plot`."""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from pathlib import Path

from bmtard_hooks.evaluation.report import RobustnessReport
from bmtard_hooks.option_checks import require_directory
from bmtard_hooks.plots.accuracies import REPORT, SeveralReports, find_report
from bmtard_hooks.plots.outputs import KINDS, last_values, plot_runs
from bmtard_hooks.plots.runs import Run, load_run, names_of
from bmtard_hooks.reporting.report_file import load_report

NO_REPORT = "-"


def plot(argv: Sequence[str]) -> str:
    """Draw what runs logged: accuracies, knowledge scales, relative losses, temperatures and weights (Figures 3 to 6)."""
    options = _parser().parse_args(list(argv))
    require_directory("--output_dir", options.output_dir)
    for name in ("names", "reports"):
        given = getattr(options, name)
        if given is not None and len(given) != len(options.runs):
            raise ValueError(f"--{name} has {len(given)} values for {len(options.runs)} runs: pass one per run")
    names = options.names or names_of(options.runs)
    if len(set(names)) < len(names):
        raise ValueError(f"--names {' '.join(names)}: every run needs a name of its own")
    runs = [load_run(path, name) for path, name in zip(options.runs, names, strict=True)]
    reports, doubtful = (
        _found_reports(runs) if options.reports is None else (_given_reports(runs, options.reports), [])
    )
    written = plot_runs(
        runs,
        options.output_dir,
        reports=reports,
        attack=options.attack,
        kind=options.format,
        smooth=options.smooth,
    )
    lines = [f"- {note}" for note in (*doubtful, *written.notes)] + [f"Written: {path}" for path in written.paths]
    table = last_values(runs)
    return "\n".join([*([table.markdown(0), ""] if table.rows else []), *lines])


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="bmtard plot", description=plot.__doc__)
    parser.add_argument("runs", nargs="+", metavar="RUN", help="output_dir of a run, or its trainer_state.json")
    parser.add_argument("--output_dir", required=True, help="directory for the figures")
    parser.add_argument("--names", nargs="+", help="how the figures call the runs, one per run")
    parser.add_argument(
        "--reports",
        nargs="+",
        help=f"{REPORT} of `bmtard evaluate`, or its directory, one per run, {NO_REPORT} for none; by default looked for "
        "in the run's directory and beside it. The ablation figure uses them if all runs have one",
    )
    parser.add_argument("--attack", help="column of the reports (by default the one with the lowest robust accuracy)")
    parser.add_argument("--format", choices=KINDS, default="png", help="of the figures")
    parser.add_argument("--smooth", type=int, default=1, help="points in a running mean (1: none)")
    return parser


def _found_reports(runs: Sequence[Run]) -> tuple[dict[str, RobustnessReport], list[str]]:
    """Look for the runs' reports, and note where several name one model, of which none is used."""
    reports, notes = {}, []
    for run in runs:
        try:
            found = find_report(run)
        except SeveralReports as error:
            notes.append(f"several reports name this model, and none is used: {error}")
            continue
        if found is not None:
            reports[run.name] = found
    return reports, notes


def _given_reports(runs: Sequence[Run], given: Sequence[str]) -> dict[str, RobustnessReport]:
    paths = {run.name: Path(path) for run, path in zip(runs, given, strict=True) if path != NO_REPORT}
    return {name: load_report(path / REPORT if path.is_dir() else path) for name, path in paths.items()}
