"""Decoded images on disk, beside the cache of the data set that they come from: decoded once, then mapped into memory."""

from __future__ import annotations

import logging
import os
import secrets
import stat
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any
from urllib.parse import quote

import numpy as np
import torch
from torch import Tensor

logger = logging.getLogger(__name__)

LAYOUT = 2
"""Part of the file's name, raised whenever the same rows would be decoded to other bytes."""


class ImageStore:
    """One file of bytes ``(N, C, H, W)`` for the images of a ``datasets.Dataset``.

    Nothing in it is unpickled or unpacked. The file is written whole under another name and then renamed, so a reader finds all of it or nothing, and of several
    processes that write it at once the last one wins. A file that does not fit the rows counts as missing.

    Args:
        path: of the file.
        sources: files of the rows; a store that is older than one of them is not read.
        count: number of rows.
        decode: decodes the image at a position, to compare a few of them with the file.
    """

    def __init__(self, path: Path, sources: list[Path], count: int, decode: Callable[[int], Tensor]) -> None:
        self.path = path
        self.sources = sources
        self.count = count
        self.decode = decode

    def read(self) -> Tensor | None:
        """Map the images into memory, ``(N, C, H, W)`` uint8; None if there is no file that fits.

        Processes share the pages of the file. Writing to the tensor changes neither the file nor other processes.
        """
        try:
            if not self._may_be_read():
                return None
            # mode "c" is writable and private: torch warns of arrays that are not writable
            array = np.lib.format.open_memmap(self.path, mode="c")
        except (OSError, ValueError, EOFError, OverflowError):  # missing, cut off, or something else
            return None
        if array.dtype != np.uint8 or array.ndim != 4 or len(array) != self.count:
            return None
        images = torch.from_numpy(array)
        sample = sorted({0, self.count // 2, self.count - 1})
        return images if all(torch.equal(images[index], self.decode(index)) for index in sample) else None

    def _may_be_read(self) -> bool:
        """Tell whether there is an ordinary file, not older than the rows, of somebody who could change the rows as well."""
        own, tables = self.path.stat(), [source.stat() for source in self.sources]
        trusted = {0, *(table.st_uid for table in tables), *([os.getuid()] if hasattr(os, "getuid") else [])}
        newest = max(table.st_mtime for table in tables)
        return stat.S_ISREG(own.st_mode) and own.st_uid in trusted and newest <= own.st_mtime

    def write(self, images: Tensor) -> Tensor:
        """Keep images on disk, and return them mapped from there; as they came if that is not possible.

        Args:
            images: ``(N, C, H, W)`` uint8, decoded from the rows.
        """
        passing = self.path.with_name(f".{self.path.name}.{os.getpid()}.{secrets.token_hex(4)}")
        try:
            with passing.open("xb") as file:
                np.save(file, images.numpy(), allow_pickle=False)
            passing.replace(self.path)
        except OSError as error:  # read-only, full, or mapped by somebody on a system that does not allow this
            logger.info("decoded images are not kept, so every start decodes them: %s", error)
            passing.unlink(missing_ok=True)
            return images
        logger.info("decoded images are kept in %s", self.path)
        mapped = self.read()
        return images if mapped is None else mapped


def is_plain_table(rows: Any) -> bool:
    """Tell whether rows are a ``datasets.Dataset`` that gives what its table holds: no format, no transform."""
    library = sys.modules.get("datasets")  # slow to import, and whoever has such rows has it already
    return library is not None and isinstance(rows, library.Dataset) and rows.format["type"] is None


def find_store(
    rows: Any, column: str, mode: str, image_size: int | None, decode: Callable[[int], Tensor]
) -> ImageStore | None:
    """Say where the decoded images of some rows belong; None for rows without a cache of their own.

    That is a ``datasets.Dataset`` whose table lies in files, whole (a selection is decoded from its rows), without a format
    or transform, and with caching of ``datasets`` switched on.

    Args:
        rows: any rows.
        column: of the images.
        mode: PIL mode of the result.
        image_size: side that images are scaled to, or None.
        decode: decodes the image at a position.
    """
    if not is_plain_table(rows):
        return None
    sources = [Path(entry["filename"]) for entry in rows.cache_files]
    fingerprint = getattr(rows, "_fingerprint", None)
    selects = getattr(rows, "_indices", None) is not None
    if not sources or not fingerprint or selects or not sys.modules["datasets"].is_caching_enabled():
        return None
    words = (fingerprint, column, mode, "full" if image_size is None else str(image_size), str(LAYOUT))
    name = "-".join(["images", *(quote(word, safe="") for word in words)]) + ".npy"
    return ImageStore(sources[0].parent / name, sources, len(rows), decode)
