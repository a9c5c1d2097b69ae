"""Tables of accuracies: in the form of the paper's Tables III to VI, of one model, and of what each attack broke."""

from __future__ import annotations

from collections.abc import Sequence

from bmtard_hooks.evaluation.comparability import differing_settings, require_same_images
from bmtard_hooks.evaluation.report import WORST_CASE, RobustnessReport, Row
from bmtard_hooks.evaluation.statistics import accuracy_error
from bmtard_hooks.reporting.presentation import (
    DASH,
    FEWEST_FOR_ERROR,
    GROUPS,
    accuracy,
    attack_group,
    attack_heading,
    attack_name,
    ball_name,
    class_name,
    column_order,
    model_name,
    percent,
    require_reports,
    strongest,
    with_error,
)
from bmtard_hooks.reporting.table import Cell, Column, Table


def robustness_tables(reports: Sequence[RobustnessReport], columns: Sequence[str] | None = None) -> list[Table]:
    """Make one table per group of attacks, a row per model, with robust accuracy and W-Robust under every attack.

    Args:
        reports: the models, in the order of the rows.
        columns: the columns to show; None shows all. A model that was not measured gets a dash.

    Raises:
        ValueError: without reports, or for a column that no report has.
    """
    require_reports(reports)
    known = list(dict.fromkeys(name for report in reports for name in report.columns))
    for name in columns or []:
        if name not in known:
            raise ValueError(f"no report has a column {name!r}: choose from {', '.join(known)}")
    chosen = sorted(known, key=column_order) if columns is None else list(columns)
    groups: dict[str, list[str]] = {group: [] for group in GROUPS}
    for name in chosen:
        groups[attack_group(next(report for report in reports if name in report.columns), name)].append(name)
    return [_group_table(reports, group, names) for group, names in groups.items() if names]


def _group_table(reports: Sequence[RobustnessReport], group: str, names: Sequence[str]) -> Table:
    headings = [Column("Model", numeric=False), Column("Clean")]
    clean = [(float(report.correct.mean()), len(report.labels)) for report in reports]
    cells = [[_accuracy_cell(share, images)] for share, images in clean]
    obstacle = _why_not_compared(reports)
    _embolden(cells, [share if obstacle is None else None for share, _ in clean])
    notes = [obstacle] if obstacle is not None else []
    for name in names:
        rows = [report.row(name) if name in report.columns else None for report in reports]
        sizes = {row.images for row in rows if row is not None}
        measured = [report for report in reports if name in report.columns]
        differences = dict.fromkeys(
            text for other in measured[1:] for text in differing_settings(measured[0], other, name)
        )
        notes += [f"Do not compare, the settings differ: {text}." for text in differences]
        title, several = attack_heading(name, sizes, {images for _, images in clean}), len(sizes) > 1
        headings += [Column("Robust", title), Column("W-Robust", title)]
        _add_column(
            cells, reports, rows, compare=obstacle is None and not differences and not several, show_size=several
        )
        notes += _scope_notes(reports, rows)
    notes += [f"{model_name(report)}: {report.verdict}" for report in reports if report.failed_checks]
    title = "Worst case of the attacks" if group == WORST_CASE else group
    body: list[list[Cell | str]] = [[_model_cell(report), *line] for report, line in zip(reports, cells, strict=True)]
    return Table(title, headings, body, _caption(reports, body), notes)


def _add_column(
    cells: list[list[Cell]],
    reports: Sequence[RobustnessReport],
    rows: Sequence[Row | None],
    *,
    compare: bool,
    show_size: bool,
) -> None:
    believed = [compare and not report.failed_checks for report in reports]
    for line, row in zip(cells, rows, strict=True):
        size = f" [n = {row.images}]" if row is not None and show_size else ""
        line.append(Cell(DASH) if row is None else Cell(accuracy(row.robust, row.robust_error, row.images) + size))
    _embolden(cells, [row.robust if row and ok else None for row, ok in zip(rows, believed, strict=True)])
    for line, row in zip(cells, rows, strict=True):
        line.append(Cell(DASH) if row is None else Cell(with_error(row.w_robust, row.w_robust_error)))
    _embolden(cells, [row.w_robust if row and ok else None for row, ok in zip(rows, believed, strict=True)])


def _embolden(cells: list[list[Cell]], values: Sequence[float | None]) -> None:
    shown = [percent(value) if value is not None else None for value in values]
    competing = [float(text) for text in shown if text is not None]
    if len(competing) < 2:
        return
    for line, text in zip(cells, shown, strict=True):
        if text is not None and float(text) == max(competing):
            line[-1] = Cell(line[-1].text, strong=True, tone=line[-1].tone)


def _scope_notes(reports: Sequence[RobustnessReport], rows: Sequence[Row | None]) -> list[str]:
    return [
        f"{attack_name(row.column)}, {model_name(report)}: only the first {row.images} of {len(report.labels)} images; "
        f"clean accuracy on these {with_error(row.clean, row.clean_error)}."
        for report, row in zip(reports, rows, strict=True)
        if row is not None and row.images < len(report.labels)
    ]


def _caption(reports: Sequence[RobustnessReport], body: Sequence[Sequence[Cell | str]]) -> str:
    sizes = " or ".join(str(size) for size in sorted({len(report.labels) for report in reports}))
    weights = sorted({report.clean_weight for report in reports})
    formulas = ", ".join(f"{weight:g} · clean + {1 - weight:g} · robust" for weight in weights)
    text = f"Percent on n = {sizes} images of {' and '.join(dict.fromkeys(report.dataset for report in reports))}"
    text += f"; ± is one standard error over images; W-Robust = {formulas}."
    if any("–" in cell.text for line in body for cell in line[1:] if isinstance(cell, Cell)):
        text += (
            f" With fewer than {FEWEST_FOR_ERROR} images right or wrong, a 95 % interval stands in brackets instead."
        )
    if len(reports) > 1:
        text += " Bold: best of the column"
        text += ", models with failed checks left out" if any(report.failed_checks for report in reports) else ""
        text += ". Differences below about two standard errors can be chance."
    return text


def _why_not_compared(reports: Sequence[RobustnessReport]) -> str | None:
    for other in reports[1:]:
        try:
            require_same_images(reports[0], other)
        except ValueError as error:
            return f"Do not compare these models: {error}."
    return None


def _model_cell(report: RobustnessReport) -> Cell:
    return Cell(model_name(report), tone="bad" if report.failed_checks else "")


def _accuracy_cell(share: float, images: int) -> Cell:
    return Cell(accuracy(share, accuracy_error(share, images), images))


def headline_table(reports: Sequence[RobustnessReport]) -> Table:
    """Make the table to read first: every model under its strongest attack.

    Args:
        reports: the models, in the order of the rows.
    """
    require_reports(reports)
    names = ("Clean", "Robust", "W-Robust")
    headings = [Column("Model", numeric=False), *map(Column, names), Column("Strongest attack", numeric=False)]
    headings += [Column("n"), Column("Checks", numeric=False)]
    body: list[list[Cell | str]] = []
    for report in reports:
        row = strongest(report)
        share = float(report.correct.mean())
        numbers: list[Cell | str] = [
            _accuracy_cell(share, len(report.labels)),
            DASH,
            DASH,
            DASH,
            str(len(report.labels)),
        ]
        if row is not None:
            numbers = [
                accuracy(row.clean, row.clean_error, row.images),
                accuracy(row.robust, row.robust_error, row.images),
                with_error(row.w_robust, row.w_robust_error),
                f"{attack_name(row.column)}, {ball_name(report.ball(row.column))}",
                str(row.images),
            ]
        body.append([_model_cell(report), *numbers, _checks_cell(report)])
    caption = "Percent, with one standard error over images (or a 95 % interval near 0 and 100), under the attack that"
    caption += " left the lowest robust accuracy among those of the same radius on the most images."
    notes = [f"{model_name(report)}: {report.verdict}" for report in reports if report.failed_checks]
    if any(report.columns != reports[0].columns for report in reports[1:]):
        notes.insert(
            0, "The models were measured with different attacks, so these are not equally strong: compare with care."
        )
    return Table("Under the strongest attack", headings, body, caption, notes, stack=True)


def _checks_cell(report: RobustnessReport) -> Cell:
    if report.failed_checks:
        return Cell("failed", strong=True, tone="bad")
    ran = [check for check in report.checks if check.status != "not run"]
    if not ran:
        return Cell("not run", tone="warn")
    return (
        Cell("passed, with warnings", tone="warn")
        if any(c.status == "fail" for c in ran)
        else Cell("passed", tone="good")
    )


def attacks_table(report: RobustnessReport) -> Table:
    """Make a table of one model, a row per attack, with the class it protects least."""
    headings = [Column("Attack", numeric=False), Column("Robust"), Column("W-Robust"), Column("Clean"), Column("n")]
    headings += [Column("Worst class", numeric=False), Column("Robust there")]
    body: list[list[Cell | str]] = []
    for name in sorted(
        report.columns, key=lambda name: (GROUPS.index(attack_group(report, name)), column_order(name))
    ):
        row = report.row(name)
        body.append(
            [
                attack_name(name),
                accuracy(row.robust, row.robust_error, row.images),
                with_error(row.w_robust, row.w_robust_error),
                accuracy(row.clean, row.clean_error, row.images),
                str(row.images),
                class_name(report, row.worst_class),
                percent(row.worst_class_robust),
            ]
        )
    notes = [f"{model_name(report)}: {report.verdict}"] if report.failed_checks else []
    caption = "Percent, with one standard error over images (or a 95 % interval near 0 and 100); clean accuracy on the"
    caption += " same n images. The worst class is the one with the lowest robust accuracy."
    return Table(f"{model_name(report)}: every attack", headings, body, caption, notes)


def breakdown_tables(report: RobustnessReport) -> list[Table]:
    """Make a table for every column that unites several attacks: how many images each broke, and what was left."""
    return [_breakdown(report, name) for name, parts in report.columns.items() if len(parts) > 1]


def _breakdown(report: RobustnessReport, column: str) -> Table:
    headings = [
        Column("Attack", numeric=False),
        Column("Images attacked"),
        Column("Broken"),
        Column("Broken first here"),
    ]
    headings += [Column("Still robust"), Column("Robust, %")]
    scope = report.scope(column)
    left = report.correct[:scope].copy()
    body: list[list[Cell | str]] = [
        ["clean", DASH, DASH, DASH, str(int(left.sum())), percent(float(left.mean()))],
    ]
    for part in report.columns[column]:
        outcome = report.outcomes[part]
        attacked, broken = outcome.attacked[:scope], outcome.broken[:scope]
        newly = left & broken
        left &= ~broken
        counts = [int(attacked.sum()), int(broken.sum()), int(newly.sum()), int(left.sum())]
        body.append([attack_name(part), *map(str, counts), percent(float(left.mean()))])
    caption = "Attacks from top to bottom; an attack need not have seen the images that those before it broke."
    return Table(f"{model_name(report)}: {attack_name(column)}, attack by attack", headings, body, caption)
