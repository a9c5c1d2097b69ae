"""A table that knows nothing of where it is shown: written as Markdown or as HTML."""

from __future__ import annotations

import html
import itertools
import re
from collections.abc import Sequence
from dataclasses import dataclass, field

_MARKDOWN_SIGNS = re.compile(r"([\\`*\[\]|~$])|(?<![^\W_])(_)|(_)(?![^\W_])")

LONG_TEXT = 30
"""Letters from which a text needs a wide column."""


@dataclass(frozen=True)
class Cell:
    """One value of a table.

    Args:
        text: what it says; never markup.
        strong: whether it is set in bold.
        tone: ``good``, ``bad`` or ``warn`` for a colour besides the words; empty for none.
    """

    text: str
    strong: bool = False
    tone: str = ""


@dataclass(frozen=True)
class Column:
    """The heading of a column.

    Args:
        label: what it says.
        group: heading that it shares with its neighbours; empty for none.
        numeric: whether values are numbers, which line up on the right.
    """

    label: str
    group: str = ""
    numeric: bool = True


@dataclass
class Table:
    """Rows under headings; the first cell of a row names it.

    Args:
        title: what the table shows.
        columns: the headings.
        rows: a cell per column, plain strings where nothing is emphasised.
        caption: what a reader must know to read the values.
        notes: remarks on single rows or columns.
        stack: whether a narrow screen shows every row as a list of its values, for rows with much text.
    """

    title: str
    columns: list[Column]
    rows: list[list[Cell | str]]
    caption: str = ""
    notes: list[str] = field(default_factory=list)
    stack: bool = False

    def __post_init__(self) -> None:
        for row in self.rows:
            if len(row) != len(self.columns):
                raise ValueError(f"table {self.title!r}: a row has {len(row)} cells, expected {len(self.columns)}")

    def markdown(self, level: int = 3) -> str:
        """Write the table in Markdown, legible as plain text too.

        Args:
            level: of the heading above it; 0 for no heading.
        """
        titles = [_markdown_cell(" ".join(filter(None, (column.group, column.label)))) for column in self.columns]
        rows = [[_markdown_cell(cell) for cell in row] for row in self.rows]
        widths = [max(3, *map(len, values)) for values in zip(titles, *rows, strict=True)]
        rules = [_rule(column, width) for column, width in zip(self.columns, widths, strict=True)]
        lines = [self._markdown_line(titles, widths), "|" + "|".join(rules) + "|"]
        lines += [self._markdown_line(row, widths) for row in rows]
        parts = [f"{'#' * level} {escape_markdown(self.title)}"] if level else []
        parts += ["\n".join(lines)]
        parts += [escape_markdown(self.caption)] if self.caption else []
        parts += ["\n".join(f"- {escape_markdown(note)}" for note in self.notes)] if self.notes else []
        return "\n\n".join(parts)

    def _markdown_line(self, values: Sequence[str], widths: Sequence[int]) -> str:
        cells = [
            value.rjust(width) if column.numeric else value.ljust(width)
            for value, width, column in zip(values, widths, self.columns, strict=True)
        ]
        return "| " + " | ".join(cells) + " |"

    def html(self, heading: bool = True) -> str:
        """Write a ``<figure>`` with the table in a box that scrolls sideways on its own.

        Args:
            heading: whether to write the title above it; it is always told to screen readers.
        """
        title = html.escape(self.title)
        lines = [
            f'<figure class="table{" stack" if self.stack else ""}">',
            f'<figcaption class="title">{title}</figcaption>' if heading else "",
            f'<div class="scroll" role="region" tabindex="0" aria-label="{title}">',
            "<table>",
            f"<thead>{self._html_head()}</thead>",
            "<tbody>",
            *(self._html_row(row) for row in self.rows),
            "</tbody></table></div>",
        ]
        lines += [f'<p class="caption">{html.escape(self.caption)}</p>'] if self.caption else []
        if self.notes:
            lines += ['<ul class="notes">', *(f"<li>{html.escape(note)}</li>" for note in self.notes), "</ul>"]
        return "\n".join([*lines, "</figure>"])

    def _html_head(self) -> str:
        if not any(column.group for column in self.columns):
            return "<tr>" + "".join(_html_heading(column) for column in self.columns) + "</tr>"
        upper, lower = "", ""
        for group, members in itertools.groupby(self.columns, key=lambda column: column.group):
            columns = list(members)
            if group:
                upper += f'<th scope="colgroup" colspan="{len(columns)}">{html.escape(group)}</th>'
                lower += "".join(_html_heading(column) for column in columns)
            else:
                upper += "".join(_html_heading(column, rows=2) for column in columns)
        return f"<tr>{upper}</tr><tr>{lower}</tr>"

    def _html_row(self, row: Sequence[Cell | str]) -> str:
        cells = []
        for position, (value, column) in enumerate(zip(row, self.columns, strict=True)):
            cell = value if isinstance(value, Cell) else Cell(value)
            classes = " ".join(
                filter(
                    None, ("number" if column.numeric else "", "long" if len(cell.text) > LONG_TEXT else "", cell.tone)
                )
            )
            kind = f' class="{classes}"' if classes else ""
            kind += f' data-label="{html.escape(column.label)}"' if self.stack and position else ""
            text = html.escape(cell.text)
            text = f"<strong>{text}</strong>" if cell.strong else text
            cells.append(f'<th scope="row"{kind}>{text}</th>' if position == 0 else f"<td{kind}>{text}</td>")
        return "<tr>" + "".join(cells) + "</tr>"


def escape_markdown(text: str) -> str:
    """Take the meaning from signs that Markdown or HTML would read as markup; line breaks become spaces."""
    plain = " ".join(text.split())
    return html.escape(_MARKDOWN_SIGNS.sub(lambda match: "\\" + match.group(), plain), quote=False)


def _markdown_cell(cell: Cell | str) -> str:
    cell = cell if isinstance(cell, Cell) else Cell(cell)
    text = escape_markdown(cell.text)
    return f"**{text}**" if cell.strong and text else text


def _rule(column: Column, width: int) -> str:
    return "-" * (width + 1) + ":" if column.numeric else "-" * (width + 2)


def _html_heading(column: Column, rows: int = 1) -> str:
    span = f' rowspan="{rows}"' if rows > 1 else ""
    kind = ' class="number"' if column.numeric else ""
    return f'<th scope="col"{span}{kind}>{html.escape(column.label)}</th>'
