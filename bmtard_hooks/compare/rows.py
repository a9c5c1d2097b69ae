"""The rows of a comparison as they are typed: ``label=method:option=value,option=value``."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass, field, fields

from bmtard_hooks.config import BMTARDConfig
from bmtard_hooks.methods import method_class
from bmtard_hooks.option_names import near_options

ELSEWHERE = {
    "method": "write it before the colon",
    "seed": "it is the same for all rows, pass --seeds",
    "output_dir": "every run has a directory of its own",
    "load_best_model_at_end": "it is the same for all rows, pass --choose",
    "resume_from_checkpoint": "interrupted runs go on by themselves",
}
"""Options that a row cannot change, and what to do instead."""


@dataclass(frozen=True)
class Row:
    """A row of the table.

    Args:
        label: its name.
        method: registered name of the method.
        options: options of this row alone, as they were typed.
    """

    label: str
    method: str
    options: dict[str, str] = field(default_factory=dict)

    @property
    def folder(self) -> str:
        """Name of its directory."""
        return re.sub(r"[^\w.+=,-]", "_", self.label)

    def words(self) -> list[str]:
        """Write the row as words of a command line, to be put behind those of all rows."""
        words = ["--method", self.method]
        for name, text in self.options.items():
            values = text.split()
            words += [f"--{name}={values[0]}"] if len(values) == 1 else [f"--{name}", *values]
        return words


def read_rows(texts: Sequence[str]) -> list[Row]:
    """Read all rows.

    Args:
        texts: as typed.

    Raises:
        ValueError: for none at all, an unknown method or option (with the nearest ones), or two rows of one name.
    """
    if not texts:
        raise ValueError("no rows: pass --methods, for example --methods bmtard sat trades")
    rows = [read_row(text) for text in texts]
    for position, row in enumerate(rows):
        same = [other.label for other in rows[:position] if other.folder.lower() == row.folder.lower()]
        if same:
            raise ValueError(
                f"rows {same[0]!r} and {row.label!r} would share a directory: give one a name, new_name={row.method}:…"
            )
    return rows


def read_row(text: str) -> Row:
    """Read ``method``, ``method:option=value,…`` or ``label=method:option=value,…``; see ``read_rows``."""
    head, _, rest = text.partition(":")
    label, equals, method = (part.strip() for part in head.partition("="))
    method = method if equals else label
    method_class(method)
    options = dict(_read_option(text, method, entry) for entry in rest.split(",") if entry.strip())
    if not equals and options:
        label += " " + ",".join(f"{name}={value}" for name, value in options.items())
    if not label:
        raise ValueError(f"row {text!r} has no name before =: write label=method")
    return Row(label, method, options)


def _read_option(text: str, method: str, entry: str) -> tuple[str, str]:
    name, equals, value = (part.strip() for part in entry.partition("="))
    if not equals or not value:
        raise ValueError(
            f"row {text!r}: {entry.strip()!r} is not option=value; write label={method}:option=value,option=value, with "
            "spaces between several values of one option"
        )
    if name in ELSEWHERE:
        raise ValueError(f"row {text!r}: {name} is not an option of a row: {ELSEWHERE[name]}")
    known = [entry.name for entry in fields(BMTARDConfig) if entry.init and entry.name not in ELSEWHERE]
    known += ["student", "student_mean", "student_std"]
    if name not in known:
        near = near_options(name, known)
        hint = (
            f"did you mean {', '.join(near)}?" if near else "every option of BMTARDConfig, and student, can be given"
        )
        raise ValueError(f"row {text!r}: unknown option {name!r}: {hint}")
    return name, value
