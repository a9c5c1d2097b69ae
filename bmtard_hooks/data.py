"""Batches in training and evaluation: augmentation on the device, numbered rows, what a data set says of its classes."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor

from bmtard_hooks.decoding import as_label, as_labels, label_feature
from bmtard_hooks.image_tensors import ImageTensors
from bmtard_hooks.row_numbers import FetchedRows, TracedRows, fetch_rows, with_positions

AUGMENTATIONS = ("crop_flip", "crop", "flip", "none")


def augment(images: Tensor, kind: str, padding: int = 4, generator: torch.Generator | None = None) -> Tensor:
    """Shift and mirror every image of a batch by its own random amount, on the images' device.

    The crop is the usual one: pad with zeros, cut out the original size at a uniformly random place. The mirror is
    horizontal with probability one half.

    Args:
        images: ``(B, C, H, W)``, floats or bytes.
        kind: ``crop_flip``, ``crop``, ``flip`` or ``none``.
        padding: pixels per side.
        generator: source of the random numbers, on the images' device.

    Returns:
        ``(B, C, H, W)``, a new tensor unless nothing was to be done.
    """
    batch, _, height, width = images.shape
    device, moves = images.device, "crop" in kind and padding > 0
    if moves:
        tops = torch.randint(0, 2 * padding + 1, (batch,), generator=generator, device=device)
        lefts = torch.randint(0, 2 * padding + 1, (batch,), generator=generator, device=device)
    mirrored = torch.rand(batch, generator=generator, device=device) < 0.5 if "flip" in kind else None
    if not moves:
        return images if mirrored is None else torch.where(mirrored[:, None, None, None], images.flip(3), images)
    rows = tops[:, None] + torch.arange(height, device=device)
    columns = torch.arange(width, device=device)[None]
    if mirrored is not None:  # a mirrored image is read from right to left
        columns = torch.where(mirrored[:, None], width - 1 - columns, columns)
    return _gather(images, padding, rows, lefts[:, None] + columns)


def _gather(images: Tensor, padding: int, rows: Tensor, columns: Tensor) -> Tensor:
    """Read the pixels at ``rows`` ``(B, H)`` and ``columns`` ``(B, W)`` of images with a border of zeros, in one pass."""
    batch, channels, height, width = images.shape
    tall, wide = height + 2 * padding, width + 2 * padding
    bordered = images.new_zeros(batch, tall, wide, channels)  # a pixel's channels lie together and are read together
    bordered[:, padding : padding + height, padding : padding + width] = images.permute(0, 2, 3, 1)
    lines = torch.arange(batch, device=images.device)[:, None] * tall + rows
    places = lines[:, :, None] * wide + columns[:, None, :]
    found = bordered.view(-1, channels).index_select(0, places.view(-1))
    return found.view(batch, height, width, channels).permute(0, 3, 1, 2)


class Numbered(NamedTuple):
    """A row and its position."""

    position: int
    row: Any


class NumberedBatch(Sequence[Numbered]):
    """Rows that were fetched together, and their positions.

    Args:
        positions: of the rows in their data set.
        rows: as the data set gave them, a list or ``ImageRows``.
    """

    def __init__(self, positions: Sequence[int], rows: Sequence[Any]) -> None:
        self.positions = list(positions)
        self.rows = rows

    def __len__(self) -> int:
        return len(self.positions)

    def __getitem__(self, index: Any) -> Any:
        if isinstance(index, slice):
            return [self[position] for position in range(len(self))[index]]
        return Numbered(self.positions[index], self.rows[index])


class NumberedRows(torch.utils.data.Dataset):
    """A map-style data set whose rows come with their position; see ``numbered``."""

    def __init__(self, rows: Any) -> None:
        self.rows = rows

    def __len__(self) -> int:
        return len(self.rows)

    def __getitem__(self, index: int) -> Numbered:
        return Numbered(index, self.rows[index])

    def __getitems__(self, indices: Sequence[int]) -> NumberedBatch:
        """Fetch a batch at once if the data set can, as a ``DataLoader`` would without the numbers."""
        return NumberedBatch(indices, with_positions(fetch_rows(self.rows, indices), indices))


class NumberedCollate:
    """Collates numbered rows with a collator that knows nothing of numbers, and adds ``image_index`` ``(B,)``.

    Args:
        collate: any collator that returns a dictionary.
    """

    def __init__(self, collate: Any) -> None:
        self.collate = collate

    def __call__(self, rows: Sequence[Any]) -> Any:
        """Collate rows that may be numbered."""
        if isinstance(rows, NumberedBatch):
            return {**self.collate(rows.rows), "image_index": torch.tensor(rows.positions)}
        if not all(isinstance(row, Numbered) for row in rows):
            return self.collate(rows)
        batch = self.collate(with_positions([row.row for row in rows], [row.position for row in rows]))
        return {**batch, "image_index": torch.tensor([row.position for row in rows])}


def numbered(rows: Any) -> Any:
    """Let every row of a data set carry its position, so that each image can have random numbers of its own.

    Args:
        rows: a map-style data set, a dictionary of them, or one that can only be iterated, which comes back as it is.
    """
    if isinstance(rows, dict):
        return {name: numbered(value) for name, value in rows.items()}
    return NumberedRows(rows) if is_map_style(rows) and not isinstance(rows, NumberedRows) else rows


def traced(rows: Any) -> Any:
    """Let a data set that can be broken name the row that is; tensors in memory and streams come back as they are."""
    in_memory = isinstance(rows, ImageTensors) and type(rows).__getitem__ is ImageTensors.__getitem__
    return TracedRows(rows) if is_map_style(rows) and not in_memory else rows


def is_map_style(rows: Any) -> bool:
    """Tell a data set with a length and positions from a stream."""
    if isinstance(rows, torch.utils.data.IterableDataset):
        return False  # inherits __getitem__ all the same
    return hasattr(rows, "__len__") and hasattr(rows, "__getitem__")


def class_count(rows: Any, label_column: str | None = None) -> int | None:
    """Read how many classes a data set has, from its own statement; None if it makes none."""
    if isinstance(rows, ImageTensors):
        return rows.num_classes
    count = getattr(label_feature(rows, label_column), "num_classes", None)
    return None if count is None else int(count)


def label_range(rows: Any, label_column: str) -> tuple[int, int] | None:
    """Find the lowest and highest label without touching the images; None if that is not possible."""
    if isinstance(rows, ImageTensors):
        return int(rows.labels.min()), int(rows.labels.max())
    if not hasattr(rows, "unique") or label_column not in getattr(rows, "column_names", ()):
        return None
    try:
        labels = [as_label(value) for value in rows.unique(label_column)]
    except ValueError:
        labels = as_labels(rows[label_column], FetchedRows(positions=range(len(rows))))  # says in which row
    return min(labels), max(labels)
