"""A report, or several models side by side, as Markdown."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from bmtard_hooks.evaluation.report import RobustnessReport
from bmtard_hooks.reporting.accuracy_tables import (
    attacks_table,
    breakdown_tables,
    headline_table,
    robustness_tables,
)
from bmtard_hooks.reporting.detail_tables import (
    checks_table,
    environment_table,
    per_class_table,
    reproduce_command,
    settings_table,
)
from bmtard_hooks.reporting.presentation import HOW_TO_READ, model_name, plain_words, require_reports
from bmtard_hooks.reporting.table import Table, escape_markdown

__all__ = ["checks_table", "per_class_table", "robustness_table", "settings_table", "title_of", "to_markdown"]


def robustness_table(reports: Sequence[RobustnessReport], columns: Sequence[str] | None = None) -> str:
    """Write accuracies in the form of the paper's Tables III to VI, as Markdown, a table per group of attacks.

    Args:
        reports: the models, in the order of the rows.
        columns: the columns to show; None shows all.

    Raises:
        ValueError: without reports, or for a column that no report has.
    """
    return "\n\n".join(table.markdown() for table in robustness_tables(reports, columns)) + "\n"


def to_markdown(reports: Sequence[RobustnessReport], extra: Mapping[str, str | Table] | None = None) -> str:
    """Write everything that was measured as one Markdown document, the verdicts first.

    Args:
        reports: the models.
        extra: further sections, heading to Markdown, which is taken as it is, or to a table.

    Raises:
        ValueError: without reports.
    """
    require_reports(reports)
    parts = [f"# {escape_markdown(title_of(reports))}"]
    for report in reports:
        parts.append(f"**{escape_markdown(model_name(report))}**: {escape_markdown(report.verdict)}")
        if words := plain_words(report):
            parts.append(escape_markdown(words))
        if report.warnings:
            parts.append("\n".join(f"- Warning: {escape_markdown(warning)}" for warning in report.warnings))
    parts += [headline_table(reports).markdown(2), "## Robustness under each attack"]
    parts += [table.markdown() for table in robustness_tables(reports)]
    for heading, content in (extra or {}).items():
        parts += [f"## {escape_markdown(heading)}"]
        parts += [content.markdown() if isinstance(content, Table) else content]
    for report in reports:
        parts += _details(report)
    parts += ["## How to read this", HOW_TO_READ]
    return "\n\n".join(parts) + "\n"


def title_of(reports: Sequence[RobustnessReport]) -> str:
    """Write the title of a document about some reports."""
    datasets = " and ".join(dict.fromkeys(report.dataset for report in reports))
    if len(reports) == 1:
        return f"Robustness of {model_name(reports[0])} on {datasets}"
    return f"Robustness of {len(reports)} models on {datasets}"


def _details(report: RobustnessReport) -> list[str]:
    parts = [f"## Details of {escape_markdown(model_name(report))}"]
    tables = [attacks_table(report), *breakdown_tables(report)]
    tables += [checks_table(report)] if report.checks else []
    tables += [per_class_table(report), settings_table(report), environment_table(report)]
    parts += [table.markdown() for table in tables]
    command = reproduce_command(report)
    if command is not None:
        fence = "```"
        while fence in command:
            fence += "`"
        parts += ["To reproduce:", f"{fence}\n{command}\n{fence}"]
    return parts
