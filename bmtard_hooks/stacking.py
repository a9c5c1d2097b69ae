"""Rows to a batch: the stacking half of the collator, which knows no model."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

from bmtard_hooks.decoding import (
    CHANNELS,
    IMAGE_COLUMNS,
    LABEL_COLUMNS,
    as_labels,
    as_pixels,
    find_column,
    require_pixels,
    stack_images,
)
from bmtard_hooks.image_rows import ImageRows
from bmtard_hooks.row_numbers import row_name


def stack_rows(
    rows: Sequence[Any],
    image_column: str | None = None,
    label_column: str | None = None,
    mode: str | None = "RGB",
    keep_bytes: bool = False,
) -> dict[str, Tensor]:
    """Stack rows to a batch.

    Args:
        rows: dictionaries or ``(image, label)`` tuples; images as ``to_pixels`` takes them, all of one size.
        image_column: name of the image column; a usual one if None.
        label_column: name of the label column; a usual one if None.
        mode: PIL mode that PIL images are converted to; None keeps theirs.
        keep_bytes: leave bytes as they are, for ``as_pixels`` to turn on the training device: a quarter of the transfer.

    Returns:
        ``pixel_values`` ``(B, C, H, W)`` float32 in [0, 1], or uint8 if ``keep_bytes`` and the images have bytes; and
        ``labels`` ``(B,)``.

    Raises:
        ValueError: for missing columns, images of several sizes or outside [0, 1], and naming the first row with a picture or
            label that is refused.
    """
    if isinstance(rows, ImageRows) and _are_whole(rows, image_column, label_column):
        if rows.images.is_floating_point():
            require_pixels(rows.images, "an image")
        images = rows.images if keep_bytes else as_pixels(rows.images)
        return {"pixel_values": images, "labels": rows.labels}
    if isinstance(rows[0], Mapping):
        columns = list(rows[0])
        image_key: Any = find_column(columns, image_column, IMAGE_COLUMNS, "image", collated=True)
        label_key: Any = find_column(columns, label_column, LABEL_COLUMNS, "label", collated=True)
    else:
        image_key, label_key = 0, 1
    images = stack_images([row[image_key] for row in rows], mode, keep_bytes, rows)
    return {"pixel_values": images, "labels": torch.tensor(as_labels([row[label_key] for row in rows], rows))}


def require_labels(labels: Tensor, num_classes: int | None, rows: Any = None) -> None:
    """Raise ``ValueError`` if a label ``(B,)`` is none of ``num_classes``, or negative.

    Args:
        labels: of the batch.
        num_classes: number of classes; None if it is not known.
        rows: the batch, which may know its positions, for the message.
    """
    low, high = int(labels.min()), int(labels.max())
    if low < 0 or (num_classes is not None and high >= num_classes):
        last = "?" if num_classes is None else num_classes - 1
        wrong = int((labels.argmin() if low < 0 else labels.argmax()).item())
        raise ValueError(
            f"labels from {low} to {high} do not fit {num_classes} classes (0 to {last}), first in {row_name(rows, wrong)}: "
            "check label_column and the student's class count"
        )


def _are_whole(rows: ImageRows, image_column: str | None, label_column: str | None) -> bool:
    usual = image_column in (None, "pixel_values") and label_column in (None, "labels")
    return usual and rows.untouched and rows.images.shape[1] in CHANNELS
