"""What is known of a run on disk: its record, and the lock of the process that works on it."""

from __future__ import annotations

import json
import shutil
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import IO, Any

from bmtard_hooks.reporting.files import write_file
from bmtard_hooks.sole_writer import holder_of, sign

try:
    import fcntl
except ImportError:  # Windows, where two comparisons in one directory are not told apart
    fcntl = None  # type: ignore[assignment]

RECORD, LOCK, REPORT, LOG = "run.json", "lock", "report.json", "log.txt"
TRIES, PAUSE = 10, 0.05  # asking whether a run is locked holds its lock for a moment
TRAINING, TRAINED, FINISHED, FAILED = "training", "trained", "finished", "failed"


class RunIsBusy(RuntimeError):
    """Another process works on the run."""


@dataclass
class Record:
    """How far a run is.

    Args:
        state: ``training`` (perhaps interrupted), ``trained`` (not measured yet), ``finished`` or ``failed``.
        identity: what its result depends on, see ``run_identity``.
        training: facts about the training: steps, epochs, seconds …
        evaluation: what the measurement in ``report.json`` depends on.
        reason: why it failed.
    """

    state: str
    identity: dict[str, Any] = field(default_factory=dict)
    training: dict[str, Any] = field(default_factory=dict)
    evaluation: dict[str, Any] = field(default_factory=dict)
    reason: str = ""


def read_record(directory: Path) -> Record | None:
    """Read a run's record; None if there is none or it is damaged."""
    try:
        return Record(**json.loads((directory / RECORD).read_text()))
    except (FileNotFoundError, json.JSONDecodeError, TypeError):
        return None


def write_record(directory: Path, record: Record) -> None:
    """Replace a run's record in one go, so that a kill leaves the old one or the new one."""
    write_file(directory / RECORD, json.dumps(asdict(record), indent=1))


def clear(directory: Path) -> None:
    """Delete what a run wrote, except for the lock that this process holds."""
    for path in directory.iterdir():
        if path.name == LOCK:
            continue
        if path.is_dir() and not path.is_symlink():
            shutil.rmtree(path)
        else:
            path.unlink()


@contextmanager
def run_lock(directory: Path) -> Iterator[None]:
    """Hold a run for this process; the operating system lets go of it when the process ends, however it ends.

    Args:
        directory: of the run; made if missing.

    Raises:
        RunIsBusy: if another process, on this machine or on one that shares the directory, holds it; says which.
    """
    directory.mkdir(parents=True, exist_ok=True)
    with (directory / LOCK).open("a+") as stream:
        for left in reversed(range(TRIES)):
            if _try_lock(stream):
                break
            if not left:
                raise RunIsBusy(f"{directory} is worked on by {holder_of(stream)}")
            time.sleep(PAUSE)
        sign(stream)
        yield


def is_locked(directory: Path) -> bool:
    """Tell whether a process works on a run."""
    path = directory / LOCK
    if not path.exists():
        return False
    with path.open("a+") as stream:
        return not _try_lock(stream)


def _try_lock(stream: IO[str]) -> bool:
    if fcntl is None:
        return True
    try:
        fcntl.flock(stream, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    return True
