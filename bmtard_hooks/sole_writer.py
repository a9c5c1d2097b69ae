"""One training at a time in a folder: two would overwrite each other's checkpoints without a word."""

from __future__ import annotations

import errno
import json
import logging
import os
import socket
from contextlib import suppress
from pathlib import Path
from typing import IO, Any

try:
    import fcntl
except ImportError:  # Windows, where two trainings in one folder are not told apart
    fcntl = None  # type: ignore[assignment]

logger = logging.getLogger(__name__)

LOCK = "_training"
"""File in the folder while a training runs there. An upload leaves it out, which by closing it again would end the lock."""


class FolderInUse(RuntimeError):
    """Another process trains in the folder."""


class SoleWriter:
    """Keeps a folder for this process, from ``take`` to ``leave``; the operating system lets go of it when the process dies.

    The lock belongs to the process, not to those that it forks, so data workers that outlive it for a moment do not keep it.
    A comparison's locks belong to the open file instead, because it asks about its own.

    Args:
        folder: to be written into; need not exist.
    """

    def __init__(self, folder: Path) -> None:
        self.path = folder / LOCK
        self._stream: IO[str] | None = None

    def take(self) -> None:
        """Take the folder.

        Raises:
            FolderInUse: if another process, on this machine or on one that shares the folder, has it; says which.
            OSError: if the folder cannot be written into.
        """
        if fcntl is None:
            return
        self.path.parent.mkdir(parents=True, exist_ok=True)
        while self._stream is None:
            stream = self.path.open("a+")
            try:
                fcntl.lockf(stream, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except OSError as error:
                holder = holder_of(stream)
                stream.close()
                if error.errno not in (errno.EACCES, errno.EAGAIN):
                    logger.warning(
                        "%s cannot be locked (%s): let no second training write into it", self.path.parent, error
                    )
                    return
                raise FolderInUse(
                    f"{self.path.parent} is being trained in by {holder}: wait for its end, stop it, or pass another output_dir"
                ) from None
            if self._is_current(stream):
                self._stream = stream
                self._sign(stream)
            else:  # its last holder removed the file between opening and locking
                stream.close()

    def leave(self) -> None:
        """Let go of the folder; nothing happens if it was not taken."""
        stream, self._stream = self._stream, None
        if stream is not None:
            self.path.unlink(missing_ok=True)
            stream.close()

    def _sign(self, stream: IO[str]) -> None:
        with suppress(OSError):  # a full disk: the lock holds all the same
            sign(stream)

    def _is_current(self, stream: IO[str]) -> bool:
        try:
            return os.path.samestat(os.fstat(stream.fileno()), self.path.stat())
        except FileNotFoundError:
            return False


def sign(stream: IO[str]) -> None:
    """Write into a lock file which process holds it."""
    stream.truncate(0)
    stream.write(json.dumps({"pid": os.getpid(), "host": socket.gethostname()}))
    stream.flush()


def holder_of(stream: IO[str]) -> str:
    """Name the process that signed a lock file.

    Args:
        stream: the file, readable.
    """
    stream.seek(0)
    try:
        content: dict[str, Any] = json.loads(stream.read())
        return f"process {content['pid']} on {content['host']}"
    except (ValueError, KeyError, TypeError):  # it has just begun
        return "another process"
