"""The tables, figures and verdicts of an archive as one Markdown page."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from pathlib import Path

from bmtard_hooks.compare.tables import (
    accuracy_table,
    paired_tables,
    per_seed_tables,
    sentences,
    setting,
    training_table,
)
from bmtard_hooks.evaluation.comparison import compare
from bmtard_hooks.evaluation.report import RobustnessReport
from bmtard_hooks.plots.outputs import last_values, plot_runs
from bmtard_hooks.plots.runs import ENTROPY, KNOWLEDGE, TEMPERATURE, Run
from bmtard_hooks.reporting.accuracy_tables import robustness_tables
from bmtard_hooks.reporting.files import write_file
from bmtard_hooks.reporting.presentation import DASH, attack_name
from bmtard_hooks.reporting.table import Cell, Column, Table
from claims.archive import CHECKED, Archive
from claims.verdicts import BMTARD, FIXED, MTARD, TEMPERATURES, Verdict, first, judge, last

ABLATION = {FIXED: "baseline", TEMPERATURES: "baseline + EBB", MTARD: "baseline + NLB", BMTARD: "B-MTARD"}
"""The rows of the paper's Figure 3, and how it calls them."""
FIGURES = {
    "ablation": "Both balances, one at a time (the paper's Figure 3)",
    "total_loss": "Total loss (Figure 4)",
    "relative_loss": "Loss of each part relative to its first (Figure 5)",
    "knowledge_scale": "How much each teacher knows (Figure 6)",
    "balance": "Temperatures and weights of the losses over the run",
}
POWER = "loss_balance_power"


def write_page(archive: Archive, notes: str, command: str) -> Path:
    """Write ``README.md`` and the figures into an archive.

    Args:
        archive: see ``load``.
        notes: Markdown that stands at the beginning: what was asked, what was cut.
        command: that makes the page.

    Returns:
        The page.
    """
    figures = draw(archive)
    content = archive.content
    parts = [notes.strip(), "## Accuracies", accuracy_table(content).markdown(0), *sentences(content)]
    parts += ["## The paper's claims, here", verdict_table(judge(archive)).markdown(0)]
    parts += stronger_attacks(archive)
    for name, caption in FIGURES.items():
        if name in figures:
            parts += [f"### {caption}", f"![{caption}]({figures[name].name})"]
    tables = [knowledge_table(archive.logs), power_table(archive)]
    parts += [table.markdown(2) for table in tables if table.rows]
    parts += [
        table.markdown(2) for table in (*per_seed_tables(content), *paired_tables(content), training_table(content))
    ]
    if archive.logs:
        parts += [last_values(list(archive.logs.values())).markdown(2)]
    parts += ["## Setting", setting(content)]
    parts += [f"This page is made from the JSON files beside it by `{command}`."]
    return write_file(archive.directory / "README.md", "\n\n".join(parts) + "\n")


def stronger_attacks(archive: Archive) -> list[str]:
    """Write what became of the students that met more attacks: tables, differences on the same images, and checks.

    Args:
        archive: see ``load``.

    Returns:
        Markdown; nothing if there are none.
    """
    reports = archive.strong
    if not reports:
        return []
    parts = ["### Stronger attacks", "Students of seed 0, attacked again with `bmtard evaluate`."]
    further = list(dict.fromkeys(name for report in reports.values() for name in _further(archive, report)))
    if further:
        parts += [table.markdown(4) for table in robustness_tables(list(reports.values()), further)]
    first = reports.get(CHECKED)
    if first is not None:
        for label, other in reports.items():
            shared = [name for name in _further(archive, first) if name in other.columns]
            if label != CHECKED and shared:
                parts += [compare(first, other, shared).to_markdown()]
        parts += [f"{CHECKED}: {first.verdict}"]
        parts += [
            "\n".join(f"- {check.id}, {check.title}: {check.status}. {check.evidence}" for check in first.checks)
        ]
    return parts


def _further(archive: Archive, report: RobustnessReport) -> list[str]:
    """Name the columns that the rows of the comparison do not have."""
    return [name for name in report.columns if name not in archive.columns]


def draw(archive: Archive) -> dict[str, Path]:
    """Draw the counterparts of Figures 3 to 6 for the four rows of the ablation, as far as they are there.

    Args:
        archive: see ``load``.

    Returns:
        Figure to file.
    """
    runs = [
        Run(name, archive.logs[label].log, archive.directory)
        for label, name in ABLATION.items()
        if label in archive.logs
    ]
    if not runs:
        return {}
    reports = {
        name: next(iter(archive.reports[label].values())) for label, name in ABLATION.items() if label in archive.logs
    }
    attack = "pgd_trades" if "pgd_trades" in archive.columns else None
    written = plot_runs(runs, archive.directory, reports=reports, attack=attack)
    return {path.stem.removeprefix("figure_"): path for path in written.paths}


def verdict_table(verdicts: Sequence[Verdict]) -> Table:
    """Tabulate verdicts.

    Args:
        verdicts: see ``judge``.
    """
    rows: list[list[Cell | str]] = [
        [verdict.claim, Cell(verdict.verdict, strong=True), verdict.numbers] for verdict in verdicts
    ]
    caption = (
        "Differences are W-Robust in points ± one standard error, over the choice of test images (paired) and over training again, "
        "as all rows with several seeds together show it. Holds: every difference is above 0 at a two-sided 5 % level (Student's t, "
        "Holm's rule over the rows of the line, and over the attacks where B-MTARD meets MTARD); does not hold: one is below 0 at that level; within noise: neither. The lines on "
        "entropies, relative losses and gradients are readings of one run (the first seed), without a test. Relative losses are those to the "
        "first logged value, a mean over the first steps. Figures show the first seed."
    )
    return Table("Claims", [Column(name, numeric=False) for name in ("Claim", "Here", "Numbers")], rows, caption)


def knowledge_table(logs: Mapping[str, Run]) -> Table:
    """Tabulate each teacher's knowledge scale at the beginning and at the end of a run (the paper's Table I).

    Args:
        logs: row label to log.
    """
    rows: list[list[Cell | str]] = []
    for label in (MTARD, BMTARD):
        run = logs.get(label)
        scales = run.series(KNOWLEDGE) if run else {}
        entropies, temperatures = (run.series(family) if run else {} for family in (ENTROPY, TEMPERATURE))
        for teacher, series in scales.items():
            row: list[Cell | str] = [label, teacher]
            for values, digits in (
                (series.values, 3),
                (entropies[teacher].values if teacher in entropies else [], 3),
                (temperatures[teacher].values if teacher in temperatures else [], 2),
            ):
                row += [_number(first(values), digits), _number(last(values), digits)]
            rows.append(row)
    columns = [Column("Method", numeric=False), Column("Teacher", numeric=False)]
    for name in ("Knowledge scale (nats)", "Entropy (nats)", "Temperature"):
        columns += [Column("first", name), Column("last", name)]
    caption = (
        "First: the first logged value, a mean over that many steps; last: the mean over the last quarter of the run. The clean "
        "teacher answers on clean, the robust one on adversarial images. Knowledge scale is ln C less the entropy (Eq. 7)."
    )
    return Table("What the teachers know before and after (the paper's Table I)", columns, rows, caption)


def _number(values: Sequence[float], digits: int) -> str:
    return f"{math.fsum(values) / len(values):.{digits}f}" if values else DASH


def power_table(archive: Archive) -> Table:
    """Tabulate B-MTARD with other powers of the relative losses (the paper's Table VIII).

    Args:
        archive: see ``load``.
    """
    rows_of = {row["label"]: row for row in archive.content["rows"] if row.get("method") == BMTARD and row["mean"]}
    others = {
        label: {key: value for key, value in row["options"].items() if key != POWER} for label, row in rows_of.items()
    }
    powers = {
        label: float(row["options"].get(POWER, 1))
        for label, row in rows_of.items()
        if others[label] == others.get(BMTARD)  # alike but for the power
    }
    means = {row["label"]: row["mean"] for row in archive.content["rows"]}
    rows: list[list[Cell | str]] = []
    for label, power in sorted(powers.items(), key=lambda pair: pair[1]) if len(powers) > 1 else ():
        cells: list[Cell | str] = [f"{power:g}", f"{100 * means[label][archive.columns[0]]['clean']:.2f}"]
        for column in archive.columns:
            found = means[label][column]
            cells += [f"{100 * found[measure]:.2f}" for measure in ("robust", "w_robust")]
        rows.append(cells)
    columns = [Column("β", numeric=False), Column("Clean")]
    for column in archive.columns:
        columns += [Column("Robust", attack_name(column)), Column("W-Robust", attack_name(column))]
    return Table(
        "Power β of the relative losses (the paper's Table VIII)",
        columns,
        rows,
        "Means over the finished seeds, percent.",
    )
