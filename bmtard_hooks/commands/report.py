"""The command `bmtard report`."""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from pathlib import Path

from bmtard_hooks.evaluation.comparison import compare
from bmtard_hooks.option_checks import require_directory
from bmtard_hooks.reporting.outputs import write_report
from bmtard_hooks.reporting.report_file import load_report
from bmtard_hooks.reporting.tables import robustness_table


def report(argv: Sequence[str]) -> str:
    """Put reports side by side, and compare the first model with each of the others on the same images."""
    parser = argparse.ArgumentParser(prog="bmtard report", description=report.__doc__)
    parser.add_argument("reports", nargs="+", help="report.json files, or the directories that hold them")
    parser.add_argument("--output_dir", required=True, help="directory for the table, the figures and the page")
    options = parser.parse_args(list(argv))
    require_directory("--output_dir", options.output_dir)
    paths = [Path(given) / "report.json" if Path(given).is_dir() else Path(given) for given in options.reports]
    for path in paths:
        if not path.is_file():
            raise FileNotFoundError(
                f"{path} does not exist: pass report.json files that `bmtard evaluate` wrote, or the directories that hold them"
            )
    loaded = [load_report(path) for path in paths]
    comparisons = {f"{loaded[0].model} and {other.model}": compare(loaded[0], other) for other in loaded[1:]}
    extra = {name: comparison.to_markdown() for name, comparison in comparisons.items()}
    written = write_report(loaded, options.output_dir, extra)
    compared = [f"{name}\n\n{text}" for name, text in extra.items()]
    return "\n\n".join([robustness_table(loaded).rstrip(), *compared, f"Report: {written['html']}"])
