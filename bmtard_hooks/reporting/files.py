"""Writing a file in one go."""

from __future__ import annotations

import os
from pathlib import Path


def write_file(path: str | Path, content: str | bytes) -> Path:
    """Write a file beside its place and move it there, so that a kill leaves the old file or the new one.

    Args:
        path: the file to write; missing directories are made.
        content: text, written as UTF-8, or bytes.

    Returns:
        The path.
    """
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    partial = path.with_name(f"{path.name}.{os.getpid()}.partial")
    try:
        with partial.open("wb") as stream:
            stream.write(content.encode("utf-8") if isinstance(content, str) else content)
            stream.flush()
            os.fsync(stream.fileno())
        os.replace(partial, path)
    finally:
        partial.unlink(missing_ok=True)
    return path
