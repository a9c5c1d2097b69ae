"""Tables of one evaluation's details: checks, classes, settings of the attacks, and where it ran."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np

from bmtard_hooks.evaluation.report import AttackOutcome, CheckResult, RobustnessReport
from bmtard_hooks.evaluation.statistics import accuracy_error
from bmtard_hooks.reporting.presentation import (
    DASH,
    accuracy,
    attack_name,
    class_name,
    column_order,
    model_name,
    pixels,
    strongest,
)
from bmtard_hooks.reporting.table import Cell, Column, Table

SHOWN_APART = ("class", "eps", "norm", "images")
COMMAND = "command"
SHOWN_ELSEWHERE = (COMMAND, "attacks")
FINGERPRINTS = ("weights", "images")


def checks_table(report: RobustnessReport) -> Table:
    """Make a table of the checks against false robustness, failures first."""
    order = {"fail": 0, "pass": 1, "not run": 2}
    checks = sorted(report.checks, key=lambda check: (order[check.status], check.severity != "error"))
    body: list[list[Cell | str]] = [[check.id, _status(check), check.title, check.evidence] for check in checks]
    headings = [Column(name, numeric=False) for name in ("Check", "Result", "Passes if", "Evidence")]
    caption = report.verdict
    return Table(f"{model_name(report)}: checks against false robustness", headings, body, caption, stack=True)


def _status(check: CheckResult) -> Cell:
    if check.status == "fail":
        failed = check.severity == "error"
        return Cell("FAILED" if failed else "warning", strong=True, tone="bad" if failed else "warn")
    return Cell("passed", tone="good") if check.status == "pass" else Cell("not run")


def per_class_table(report: RobustnessReport) -> Table:
    """Make a table of clean accuracy, and robust accuracy under the strongest attack, of every class with images."""
    row = strongest(report)
    headings = [Column("Class", numeric=False), Column("Clean"), Column("Images")]
    images = len(report.labels) if row is None else row.images
    outcomes = [report.correct[:images]]
    if row is not None:
        headings.insert(1, Column(f"Robust under {attack_name(row.column)}"))
        outcomes.insert(0, report.robust(row.column))
    body: list[list[Cell | str]] = []
    for index in range(report.num_classes):
        members = report.labels[:images] == index
        if members.any():
            values = [_class_accuracy(outcome[members]) for outcome in outcomes]
            body.append([class_name(report, index), *values, str(int(members.sum()))])
    caption = "Percent, with one standard error over images (or a 95 % interval near 0 and 100)."
    notes = [f"{model_name(report)}: {report.verdict}"] if report.failed_checks else []
    return Table(f"{model_name(report)}: classes", headings, body, caption, notes)


def _class_accuracy(outcome: np.ndarray) -> str:
    share = float(outcome.mean())
    return accuracy(share, accuracy_error(share, len(outcome)), len(outcome))


def settings_table(report: RobustnessReport) -> Table:
    """Make a table of every attack's settings and of what it cost."""
    names = ("Attack", "Radius eps", "Norm", "Settings")
    headings = [Column(name, numeric=False) for name in names]
    headings += map(Column, ("Images attacked", "Passes per image", "Passes", "Mean queries", "Seconds"))
    body: list[list[Cell | str]] = []
    notes = []
    for name in sorted(report.outcomes, key=column_order):
        outcome = report.outcomes[name]
        settings = outcome.settings
        eps, norm = settings.get("eps"), str(settings.get("norm", DASH))
        radius = DASH if eps is None else pixels(eps) if norm == "linf" else f"{eps:.6f}"
        others = {key: value for key, value in settings.items() if key not in SHOWN_APART}
        text = ", ".join(filter(None, (str(settings.get("class", "")), _flat(others))))
        body.append([attack_name(name), radius, {"linf": "L∞", "l2": "L2"}.get(norm, norm), text, *_cost(outcome)])
        notes += [f"{attack_name(name)}: {note}" for note in outcome.notes]
    caption = "A pass is one image once forward or once backward through the model."
    return Table(f"{model_name(report)}: settings and cost of the attacks", headings, body, caption, notes, stack=True)


def _cost(outcome: AttackOutcome) -> list[str]:
    attacked = int(outcome.attacked.sum())
    passes = outcome.forwards + outcome.backwards
    queries = DASH
    if outcome.queries is not None and attacked:
        queries = f"{outcome.queries[outcome.attacked].mean():.1f}"
    each = f"{passes / attacked:.1f}" if attacked else DASH
    return [str(attacked), each, str(passes), queries, f"{outcome.seconds:.1f}"]


def _flat(settings: Mapping[str, Any]) -> str:
    return ", ".join(f"{key} {_value(key, value)}" for key, value in settings.items())


def _value(key: str, value: Any) -> str:
    if isinstance(value, Mapping):
        inner = {name: entry for name, entry in value.items() if name not in ("class", "images")}
        return " ".join(filter(None, (str(value.get("class", "")), f"({_flat(inner)})")))
    if key in ("eps", "step_size") and isinstance(value, float):
        return pixels(value)
    if isinstance(value, float):
        return f"{value:.6g}"
    return "none" if value is None else str(value)


def environment_table(report: RobustnessReport) -> Table:
    """Make a table of commit, versions, device, seed and whatever else was noted of the run."""
    body: list[list[Cell | str]] = [["data set", report.dataset], ["number of images", str(len(report.labels))]]
    body += [["number of classes", str(report.num_classes)], ["mode", report.mode]]
    noted = {key: value for key, value in report.environment.items() if key not in SHOWN_ELSEWHERE}
    body += [[f"fingerprint of the {key}" if key in FINGERPRINTS else key, text] for key, text in _entries(noted)]
    headings = [Column("What", numeric=False), Column("Value", numeric=False)]
    return Table(f"{model_name(report)}: data and environment", headings, body)


def _entries(values: Mapping[str, Any], prefix: str = "") -> list[tuple[str, str]]:
    entries: list[tuple[str, str]] = []
    for key, value in values.items():
        name = f"{prefix}{key}"
        if isinstance(value, Mapping):
            entries += _entries(value, f"{name}: ")
        elif isinstance(value, (list, tuple)):
            entries.append((name, ", ".join(map(str, value))))
        else:
            text = f"{value:.6g}" if isinstance(value, float) else DASH if value is None else str(value)
            entries.append((name, text))
    return entries


def reproduce_command(report: RobustnessReport) -> str | None:
    """Return the command that reproduces the evaluation, if the environment has one."""
    command = report.environment.get(COMMAND)
    if isinstance(command, (list, tuple)):
        return " ".join(map(str, command))
    return str(command) if command else None
