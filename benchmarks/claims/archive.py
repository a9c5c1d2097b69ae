"""What a repository keeps of a comparison: every run's record, log, outcomes and student, without checkpoints."""

from __future__ import annotations

import json
import shutil
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from bmtard_hooks.compare.numbers import Reports
from bmtard_hooks.compare.record import RECORD, REPORT
from bmtard_hooks.compare.results import SCHEMA_VERSION
from bmtard_hooks.evaluation.report import RobustnessReport
from bmtard_hooks.plots.runs import STATE, Run, load_run
from bmtard_hooks.reporting.files import write_file
from bmtard_hooks.reporting.report_file import load_report

COMPARISON = "comparison.json"
STRONG = "strong"
"""Directory with reports of `bmtard evaluate` of some students (``LABEL/report.json``), which met more attacks, or the checks."""
CHECKED = "bmtard"
"""Label of the one whose checks are looked at."""
WEIGHTS = ("config.json", "model.safetensors")
LARGEST = 1_000_000
"""Bytes of a student's weights that a repository can carry for every run; larger ones stay where they were trained."""
DIGITS = 6


@dataclass
class Archive:
    """A comparison as it lies in the repository.

    Args:
        directory: where.
        content: of ``comparison.json``.
        reports: of the finished runs, row label to seed to report.
        logs: row label to the log of its first finished seed.
        strong: label to the report of a student that met more attacks.
    """

    directory: Path
    content: dict[str, Any]
    reports: dict[str, Reports]
    logs: dict[str, Run]
    strong: dict[str, RobustnessReport] = field(default_factory=dict)

    @property
    def columns(self) -> list[str]:
        """Attacks that every row was measured with."""
        return list(self.content["columns"])


def keep(output: Path, archive: Path) -> list[str]:
    """Copy what matters of ``compare.py``'s output.

    Args:
        output: its ``--output_dir``.
        archive: directory to make, or to bring up to date.

    Returns:
        Names of the finished runs.

    Raises:
        FileNotFoundError: if there is no comparison in ``output``.
    """
    if not (output / COMPARISON).is_file():
        raise FileNotFoundError(f"{output} has no {COMPARISON}: pass the --output_dir of compare.py")
    content = json.loads((output / COMPARISON).read_text())
    archive.mkdir(parents=True, exist_ok=True)
    shutil.copy(output / COMPARISON, archive / COMPARISON)
    kept = []
    for row in content["rows"]:
        for run in row["runs"]:
            if run["state"] == "finished":
                _keep_run(output / run["directory"], archive / run["directory"], has_log="method" in row)
                kept.append(run["name"])
    return kept


def _keep_run(source: Path, target: Path, has_log: bool) -> None:
    target.mkdir(parents=True, exist_ok=True)
    for name in (RECORD, REPORT):
        shutil.copy(source / name, target / name)
    if has_log:
        run = load_run(source)
        log = [{key: _rounded(value) for key, value in entry.items()} for entry in run.log]
        state = {"global_step": log[-1].get("step", 0) if log else 0, "log_history": log}
        write_file(target / STATE, json.dumps(state) + "\n")
    if all((source / name).is_file() for name in WEIGHTS) and (source / WEIGHTS[-1]).stat().st_size <= LARGEST:
        for name in WEIGHTS:
            shutil.copy(source / name, target / name)


def _rounded(value: Any) -> Any:
    return float(f"{value:.{DIGITS}g}") if isinstance(value, float) else value


def load(directory: Path) -> Archive:
    """Read an archive.

    Args:
        directory: that ``keep`` made.

    Raises:
        FileNotFoundError: if there is none.
        ValueError: if another release wrote it.
    """
    path = directory / COMPARISON
    if not path.is_file():
        raise FileNotFoundError(f"{directory} has no {COMPARISON}: pass --collect OUTPUT_DIR of compare.py first")
    content = json.loads(path.read_text())
    if content["schema_version"] != SCHEMA_VERSION:
        raise ValueError(
            f"{path} has schema_version {content['schema_version']}, expected {SCHEMA_VERSION}: run compare.py on a copy of the "
            "directory, which writes it again, and pass --collect"
        )
    reports: dict[str, Reports] = {}
    logs: dict[str, Run] = {}
    for row in content["rows"]:
        finished = [run for run in row["runs"] if run["state"] == "finished"]
        reports[row["label"]] = {run["seed"]: load_report(directory / run["directory"] / REPORT) for run in finished}
        for run in finished[:1]:
            if (directory / run["directory"] / STATE).is_file():
                logs[row["label"]] = load_run(directory / run["directory"], row["label"])
    strong = {path.parent.name: load_report(path) for path in sorted((directory / STRONG).glob(f"*/{REPORT}"))}
    return Archive(directory, content, reports, logs, strong)
