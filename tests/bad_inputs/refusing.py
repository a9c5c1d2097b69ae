"""What the tables of bad inputs share: a row, and the proof that it was refused and left nothing behind."""

import os
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest

EXIT = 2
"""Status of a command line with a mistake."""


@dataclass(frozen=True)
class Row:
    """A bad input.

    Args:
        name: of the row.
        do: gives the input to the code; gets a ``Scene``.
        received: how the message names what it got.
        allowed: how it names what it takes.
        fix: how it says what to do.
        error: the exception, or ``EXIT`` for a command line, whose message is on stderr.
    """

    name: str
    do: Callable[["Scene"], Any]
    received: str
    allowed: str
    fix: str
    error: Any = ValueError


@dataclass
class Scene:
    """Where a row takes place.

    Args:
        path: an empty directory; the working directory is below it.
        fixture: reads a fixture by its name.
        files: files that rows read, if there are any.
    """

    path: Path
    fixture: Callable[[str], Any]
    files: Path | None = None
    run: Path = field(init=False)

    def __post_init__(self):
        self.run = self.path / "run"  # output_dir of make_config

    def config(self, **options):
        """A ``BMTARDConfig`` of a tiny run."""
        return self.fixture("make_config")(**options)

    def trainer(self, *args, **options):
        """A Trainer of a tiny run."""
        return self.fixture("make_trainer")(*args, **options)


def table(*rows):
    """Parametrize a test with rows, whose names are distinct."""
    assert len({row.name for row in rows}) == len(rows)
    return pytest.mark.parametrize("row", [pytest.param(row, id=row.name) for row in rows])


def refused(row, request, files=None):
    """Give a row's input and check the refusal: its kind, the three things that its message says, and no trace on disk."""
    path = request.getfixturevalue("tmp_path")
    (path / "cwd").mkdir()
    request.getfixturevalue("monkeypatch").chdir(path / "cwd")
    scene = Scene(path, request.getfixturevalue, files)
    before, others = contents(path), contents(files)
    message = _exit_message(row, scene) if row.error == EXIT else _error_message(row, scene)
    for said in (row.received, row.allowed, row.fix):
        assert said in message, f"{said!r} is not in {message!r}"
    left = contents(path)
    left.pop("run", None) if left.get(
        "run"
    ) is None else None  # transformers makes an empty output_dir with the Trainer
    before.pop("run", None)
    assert left == before
    assert contents(files) == others
    request.getfixturevalue("record_property")("bad inputs refused", 1)


def _error_message(row, scene):
    with pytest.raises(row.error) as caught:
        row.do(scene)
    assert type(caught.value) is row.error, f"{type(caught.value).__name__}: {caught.value}"
    return str(caught.value)


def _exit_message(row, scene):
    captured = scene.fixture("capsys")
    try:
        status = row.do(scene)
    except SystemExit as stop:
        status = stop.code
    message = captured.readouterr().err
    assert status == EXIT, f"status {status}: {message}"
    assert "Traceback" not in message
    return message


def contents(path):
    """Everything below a directory: relative path to content, None for directories."""
    if path is None:
        return {}
    found = {}
    for folder, names, files in os.walk(path):
        for name in names:
            found[os.path.relpath(os.path.join(folder, name), path)] = None
        for name in files:
            found[os.path.relpath(os.path.join(folder, name), path)] = Path(folder, name).read_bytes()
    return found
