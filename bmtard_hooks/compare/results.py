"""From the runs on disk to ``comparison.json``, ready for the tables: finished rows, unfinished ones, failed ones."""

from __future__ import annotations

import json
import shlex
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from bmtard_hooks._version import __version__
from bmtard_hooks.compare.execution import is_finished, load_finished, staleness
from bmtard_hooks.compare.identity import influential_options
from bmtard_hooks.compare.numbers import (
    Reports,
    against_first,
    best_and_second,
    clean_over_seeds,
    mean_over_seeds,
    single,
    training_again,
)
from bmtard_hooks.compare.plan import Plan, Run
from bmtard_hooks.compare.record import FAILED, is_locked, read_record
from bmtard_hooks.compare.rows import Row
from bmtard_hooks.evaluation.environment import package_versions, source_commit
from bmtard_hooks.evaluation.report import WORST_CASE

KIND = "bmtard_hooks comparison"
SCHEMA_VERSION = 2


@dataclass
class Results:
    """A comparison as far as it is.

    Args:
        plan: the comparison.
        reports: of the finished runs, row label to seed to report.
        content: everything that ``comparison.json`` holds.
    """

    plan: Plan
    reports: dict[str, Reports]
    content: dict[str, Any]

    @property
    def unfinished(self) -> list[dict[str, Any]]:
        """The chosen runs that are not finished."""
        chosen = [run.name for run in self.plan.chosen]
        runs = [run for row in self.content["rows"] for run in row["runs"]]
        return [run for run in runs if run["state"] != "finished" and run["name"] in chosen]


def collect(plan: Plan) -> Results:
    """Read what there is of every run and compute every number.

    Args:
        plan: the comparison.
    """
    reports: dict[str, Reports] = {}
    rows = []
    for row in plan.rows:
        states = [(run, _state(run, plan)) for run in plan.of(row)]
        reports[row.label] = {run.seed: load_finished(run) for run, state in states if state["state"] == "finished"}
        rows.append(_row(row, plan, states, reports[row.label]))
    columns = list(plan.attacks.columns)
    measured = next((report for found in reports.values() for report in found.values()), None)
    columns += [WORST_CASE] if measured is not None and WORST_CASE in measured.columns else []
    again = {column: training_again(reports, column) for column in columns}
    clean = clean_over_seeds(reports)
    for entry, row in zip(rows, plan.rows, strict=True):
        found = reports[row.label]
        entry["mean"] = {name: mean_over_seeds(found, name, again[name]) for name in columns} if found else None
        entry["mean_clean"] = clean.get(row.label)
    first = next(row.label for row in plan.rows if plan.of(row)[0].role is None)
    students = {row.label: reports[row.label] for row in plan.rows if plan.of(row)[0].role is None}
    best = {name: best_and_second(students, name, again[name]) for name in columns}
    content = {
        "kind": KIND,
        "schema_version": SCHEMA_VERSION,
        "columns": columns,
        "compared_with": first,
        "seeds": plan.arguments.seeds,
        "clean_weight": plan.config.w_robust_clean_weight,
        "rows": rows,
        "against_first": [entry for name in columns for entry in against_first(reports, first, name, again[name])],
        "best": {
            column: {"row": found[0], "second": found[1], **found[2]} if found else None
            for column, found in best.items()
        },
        **_setting(plan),
    }
    return Results(plan, reports, content)


def _row(row: Row, plan: Plan, states: list[tuple[Run, dict[str, Any]]], reports: Reports) -> dict[str, Any]:
    runs = []
    for run, state in states:
        measured = single(reports[run.seed]) if run.seed in reports else {}
        runs.append({"name": run.name, "seed": run.seed, "directory": _relative(run, plan), **state, **measured})
    role = states[0][0].role
    kind = {"teacher": role, "network": _teachers(plan)[role]} if role is not None else {"method": row.method}
    return {"label": row.label, **kind, "options": row.options, "runs": runs}


def _teachers(plan: Plan) -> dict[str, str]:
    return {role: getattr(plan.models, f"{role}_teacher") for role in plan.teachers}


def _relative(run: Run, plan: Plan) -> str:
    return run.directory.relative_to(plan.directory.resolve()).as_posix()


def _state(run: Run, plan: Plan) -> dict[str, Any]:
    record = read_record(run.directory)
    training = record.training if record is not None else {}
    reasons = staleness(run)
    if reasons:
        return {"state": "stale", "reason": "; ".join(reasons)}
    if is_finished(run, plan):
        return {"state": "finished", "training": training}
    if record is not None and record.state == FAILED:
        return {"state": "failed", "reason": record.reason, "training": training}
    if record is None:
        return {"state": "not started"}
    return {"state": "running" if is_locked(run.directory) else "interrupted", "training": training}


def _setting(plan: Plan) -> dict[str, Any]:
    return {
        "test": {"name": plan.test_name, "images": len(plan.test), "fingerprint": plan.test_images},
        "train_images": len(plan.train),
        "validation_images": len(plan.validation),
        "student": plan.models.student,
        "choose": plan.arguments.choose,
        "attacks": {name: attack.settings() for name, attack in plan.attacks.attacks.items()},
        "teachers": _teachers(plan),
        "options": influential_options(plan.config),
        "bmtard_hooks": __version__,
        "commit": source_commit(),
        "packages": package_versions(),
        "command": shlex.join(plan.argv),
    }


def to_json(results: Results) -> str:
    """Write everything as JSON."""
    return json.dumps(results.content, indent=1, default=str, allow_nan=False) + "\n"


def paths(plan: Plan) -> dict[str, Path]:
    """Tell where the outputs go."""
    return {"json": plan.directory / "comparison.json", "markdown": plan.directory / "comparison.md"}
