"""One HTML page that holds everything, opens without a network and fits a phone."""

from __future__ import annotations

import base64
import html
from collections.abc import Mapping, Sequence
from importlib.resources import files
from pathlib import Path

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
from bmtard_hooks.reporting.drawing import Picture
from bmtard_hooks.reporting.figures import draw_figures
from bmtard_hooks.reporting.files import write_file
from bmtard_hooks.reporting.presentation import HOW_TO_READ, model_name, plain_words, require_reports
from bmtard_hooks.reporting.table import Table
from bmtard_hooks.reporting.tables import title_of

PAGE = """<!DOCTYPE html>
<html lang="en">
<head>
<meta charset="utf-8">
<meta name="viewport" content="width=device-width, initial-scale=1">
<title>{title}</title>
<link rel="icon" href="data:,">
<style>
{style}</style>
</head>
<body>
<main>
{body}
</main>
</body>
</html>
"""
MOST_ROWS_OPEN = 20
"""Longer tables start folded."""


def write_page(
    reports: Sequence[RobustnessReport],
    path: str | Path,
    extra: Mapping[str, str | Table] | None = None,
    pictures: Sequence[Picture] | None = None,
) -> Path:
    """Write a self-contained HTML page, the verdicts first.

    Args:
        reports: the models.
        path: the file to write; missing directories are made.
        extra: further sections after the tables, heading to a table or to text in paragraphs, in which a Markdown
            table stays as it is written.
        pictures: the figures; None draws them. Without matplotlib the page says what is missing.

    Returns:
        The path of the file.

    Raises:
        ValueError: without reports.
    """
    require_reports(reports)
    shown, remark = pictures, ""
    if shown is None:
        try:
            shown = draw_figures(reports)
        except ImportError as error:
            shown, remark = [], f"There are no figures: {error}."
    title = html.escape(title_of(reports))
    parts = [f"<h1>{title}</h1>", *(_verdict(report) for report in reports), headline_table(reports).html()]
    parts += _accuracies(reports)
    for heading, content in (extra or {}).items():
        parts += [f"<h2>{html.escape(heading)}</h2>", content.html() if isinstance(content, Table) else _text(content)]
    parts += _section("Checks against false robustness", [_checks(report) for report in reports])
    parts += _section("Classes", [_foldable(per_class_table(report), len(reports) > 1) for report in reports])
    parts += _section("Figures", [_figures(shown), _text(remark)])
    parts += _section("Settings of the attacks", [_foldable(settings_table(report), fold=True) for report in reports])
    parts += _section("Data and environment", [_environment(report) for report in reports])
    parts += _section("How to read this", [_text(HOW_TO_READ)])
    style = files("bmtard_hooks.reporting").joinpath("page.css").read_text(encoding="utf-8")
    return write_file(path, PAGE.format(title=title, style=style, body="\n".join(parts)))


def _verdict(report: RobustnessReport) -> str:
    tone, word = "good", "checks passed"
    if report.failed_checks:
        tone, word = "bad", "checks failed"
    elif all(check.status == "not run" for check in report.checks):
        tone, word = "warn", "not checked"
    elif any(check.status == "fail" for check in report.checks):
        tone, word = "warn", "checks passed with warnings"
    failed = [check for check in report.checks if check.status == "fail"]
    remarks = [f"{check.id} (passes if: {check.title}): {check.evidence}" for check in failed]
    remarks += [f"Warning: {warning}" for warning in report.warnings]
    items = "".join(f"<li>{html.escape(remark)}</li>" for remark in remarks)
    return (
        f'<div class="verdict {tone}"><p><span class="word">{html.escape(model_name(report))}: {word}.</span> '
        f"{html.escape(report.verdict)}</p><p>{html.escape(plain_words(report))}</p>{f'<ul>{items}</ul>' if items else ''}</div>"
    )


def _accuracies(reports: Sequence[RobustnessReport]) -> list[str]:
    paper = [table.html() for table in robustness_tables(reports)]
    each = [table for report in reports for table in [attacks_table(report), *breakdown_tables(report)]]
    if len(reports) > 1:
        folded = [_foldable(table, fold=True) for table in each]
        return _section("Robustness under each attack", [*paper, *folded])
    # One model's row is long and hard to read on a phone; its attacks as rows are not.
    in_paper_form = _fold("In the form of the paper's tables", "\n".join(paper))
    return _section("Robustness under each attack", [*(table.html() for table in each), in_paper_form])


def _section(heading: str, parts: Sequence[str]) -> list[str]:
    content = [part for part in parts if part]
    return [f"<h2>{html.escape(heading)}</h2>", *content] if content else []


def _checks(report: RobustnessReport) -> str:
    if not report.checks:
        return _text(f"{model_name(report)}: {report.verdict}")
    return f'<div class="short-names">{checks_table(report).html()}</div>'


def _environment(report: RobustnessReport) -> str:
    parts = [_foldable(environment_table(report))]
    command = reproduce_command(report)
    if command is not None:
        parts += [f"<h3>To reproduce {html.escape(model_name(report))}</h3>"]
        parts += [f'<pre tabindex="0"><code>{html.escape(command)}</code></pre>']
    return "\n".join(parts)


def _figures(pictures: Sequence[Picture]) -> str:
    shown = [
        f'<figure><img alt="{html.escape(picture.alt)}" src="data:image/png;base64,'
        f'{base64.b64encode(picture.png).decode("ascii")}"><figcaption>{html.escape(picture.title)}</figcaption></figure>'
        for picture in pictures
    ]
    return "\n".join(['<div class="pictures">', *shown, "</div>"]) if shown else ""


def _foldable(table: Table, fold: bool = False) -> str:
    folded = fold or len(table.rows) > MOST_ROWS_OPEN
    return _fold(table.title, table.html(heading=False)) if folded else table.html()


def _fold(summary: str, content: str) -> str:
    return f"<details><summary>{html.escape(summary)}</summary>\n{content}\n</details>"


def _text(text: str) -> str:
    parts = [html.escape(part.strip()) for part in text.split("\n\n") if part.strip()]
    return "\n".join(
        f'<pre tabindex="0">{part}</pre>' if part.startswith("|") else f"<p>{part.replace(chr(10), '<br>')}</p>"
        for part in parts
    )
