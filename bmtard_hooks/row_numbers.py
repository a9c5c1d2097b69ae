"""Which row is broken: rows that are fetched together keep their positions, and a fetch that fails is tried row by row."""

from __future__ import annotations

import logging
import struct
import zlib
from collections.abc import Iterable, Sequence
from typing import Any, NoReturn

import torch
from PIL import Image

logger = logging.getLogger(__name__)

OF_PICTURES = (
    OSError,
    ValueError,
    SyntaxError,
    EOFError,
    struct.error,
    zlib.error,
    Image.DecompressionBombError,
    Image.DecompressionBombWarning,
)
"""What PIL raises for pictures that it cannot read; anything else is the data set's own and passes as it is."""


class FetchedRows(list[Any]):
    """Rows of one batch that remember where they come from; a list for everybody else.

    Args:
        rows: of the batch.
        positions: of the rows in their data set.
    """

    def __init__(self, rows: Iterable[Any] = (), positions: Sequence[int] = ()) -> None:
        super().__init__(rows)
        self.positions = positions


class TracedRows(torch.utils.data.Dataset):
    """A map-style data set that names the row when one cannot be read, and is otherwise the data set.

    Args:
        rows: the data set; its other attributes (``set_epoch`` …) are found here too.
    """

    def __init__(self, rows: Any) -> None:
        self.rows = rows

    def __len__(self) -> int:
        return len(self.rows)

    def __getitem__(self, index: Any) -> Any:
        return self.rows[index] if isinstance(index, (slice, str)) else fetch_rows(self.rows, [index])[0]

    def __getitems__(self, indices: Sequence[int]) -> Sequence[Any]:
        """Fetch a batch at once if the data set can, as a ``DataLoader`` would."""
        return with_positions(fetch_rows(self.rows, indices), indices)

    def __getattr__(self, name: str) -> Any:
        if name == "rows" or name.startswith("__"):  # not there yet when a worker unpickles this
            raise AttributeError(name)
        return getattr(self.rows, name)


def fetch_rows(rows: Any, positions: Sequence[int]) -> Sequence[Any]:
    """Fetch rows of a map-style data set at once if it can, and say which one is broken if that fails.

    Args:
        rows: the data set.
        positions: of the rows.

    Raises:
        ValueError: naming the row whose picture cannot be read. Other errors of the data set pass as they are, after the
            row was logged.
    """
    fetch = getattr(rows, "__getitems__", None)
    try:
        return fetch(positions) if callable(fetch) else [rows[position] for position in positions]
    except Exception:
        for position in positions:
            try:
                rows[position]
            except Exception as error:
                _refuse(position, error)
        raise  # not one of them alone


def _refuse(position: int, error: Exception) -> NoReturn:
    if isinstance(error, OF_PICTURES):
        raise ValueError(
            f"row {position} cannot be read ({type(error).__name__}: {error}): repair its file, or leave the row out with "
            "select()"
        ) from error
    logger.error("row %d of the data set raised %s: %s", position, type(error).__name__, error)
    raise error


def with_positions(rows: Sequence[Any], positions: Sequence[int]) -> Sequence[Any]:
    """Let a list of rows remember its positions; rows that were gathered as tensors stay what they are."""
    return FetchedRows(rows, positions) if type(rows) is list else rows


def row_name(rows: Any, index: int) -> str:
    """Name a row of a batch in a message: by its position in the data set if the batch knows it."""
    positions = getattr(rows, "positions", None)
    return f"row {index} of this batch" if positions is None or not len(positions) else f"row {positions[index]}"
