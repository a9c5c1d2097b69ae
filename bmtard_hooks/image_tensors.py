"""Image data sets in memory: decoded once, then only tensors."""

from __future__ import annotations

import logging
from collections.abc import Sequence
from typing import Any

import torch
from PIL import Image, ImageOps
from torch import Tensor

from bmtard_hooks.data_forms import pair_of_tensors, require_rows
from bmtard_hooks.decoding import (
    IMAGE_COLUMNS,
    LABEL_COLUMNS,
    as_labels,
    as_pixels,
    check_labels,
    find_column,
    picture_planes,
    require_pixels,
    to_planes,
)
from bmtard_hooks.first_rows import absent_classes
from bmtard_hooks.image_rows import ImageRows
from bmtard_hooks.image_store import find_store, is_plain_table
from bmtard_hooks.picture_rules import plain_picture
from bmtard_hooks.row_numbers import FetchedRows, fetch_rows

logger = logging.getLogger(__name__)

CHUNK = 256
"""Rows that are decoded at a time."""


class ImageTensors(torch.utils.data.Dataset):
    """A data set decoded once and kept as bytes: 3 KB for a CIFAR image instead of a JPEG to decode every epoch.

    Args:
        images: ``(N, C, H, W)`` uint8, or float32 in [0, 1] where the pixels are not bytes.
        labels: ``(N,)`` integers, or floats that are whole.
        label_names: name of each class, if known.
        split_name: what the data set calls the split, if known (``test`` …).

    Raises:
        ValueError: for other types or shapes, pixels outside [0, 1], or another number of labels than images.
    """

    def __init__(
        self,
        images: Tensor,
        labels: Tensor,
        label_names: Sequence[str] | None = None,
        split_name: str | None = None,
    ) -> None:
        if images.dtype not in (torch.uint8, torch.float32) or images.ndim != 4 or len(images) != len(labels):
            raise ValueError(
                f"images {images.dtype} {tuple(images.shape)} and {len(labels)} labels: expected uint8 or float32 "
                "(N, C, H, W) and one label each"
            )
        if images.dtype == torch.float32 and images.numel():
            require_pixels(images, "an image")
        if labels.is_floating_point() and not torch.equal(labels, labels.round()):  # NaN is not equal to itself
            wrong = int((labels != labels.round()).int().argmax())
            raise ValueError(f"row {wrong}: the label {labels[wrong].item()} is no whole number: pass class indices")
        self.images = images
        self.labels = labels.long()
        self.label_names = list(label_names) if label_names is not None else None
        self.split_name = split_name

    def pixels(self, indices: Tensor | slice) -> Tensor:
        """Return some images as ``(B, C, H, W)`` float32 in [0, 1]."""
        chosen = self.images[indices]
        return as_pixels(chosen)

    @property
    def num_classes(self) -> int:
        """Number of classes: the named ones, or the highest label plus one."""
        return len(self.label_names) if self.label_names else int(self.labels.max()) + 1

    @property
    def column_names(self) -> list[str]:
        """The keys of an item."""
        return ["pixel_values", "labels"]

    def __len__(self) -> int:
        return len(self.images)

    def __getitem__(self, index: int) -> dict[str, Tensor]:
        return {"pixel_values": self.images[index], "labels": self.labels[index]}

    def __getitems__(self, indices: Sequence[int]) -> Sequence[dict[str, Tensor]]:
        """Gather a batch at once, as a ``DataLoader`` asks for it; the same rows as one by one."""
        if type(self).__getitem__ is not ImageTensors.__getitem__:
            return [self[index] for index in indices]
        chosen = torch.as_tensor(indices, dtype=torch.long)
        chosen = torch.where(chosen < 0, chosen + len(self), chosen)
        return ImageRows(self.images.index_select(0, chosen), self.labels.index_select(0, chosen))

    def subset(self, indices: Sequence[int] | Tensor) -> ImageTensors:
        """Copy some of the images."""
        chosen = torch.as_tensor(indices, dtype=torch.long)
        return ImageTensors(self.images[chosen], self.labels[chosen], self.label_names, self.split_name)

    def split(self, held_out: int, seed: int = 0) -> tuple[ImageTensors, ImageTensors]:
        """Divide at random into the rest and ``held_out`` images, for choosing checkpoints without the test set."""
        if not 0 < held_out < len(self):
            raise ValueError(f"cannot hold out {held_out} of {len(self)} images")
        order = torch.randperm(len(self), generator=torch.Generator().manual_seed(seed))
        return self.subset(order[held_out:]), self.subset(order[:held_out])


def load_images(
    name: str,
    split: str,
    *,
    image_column: str | None = None,
    label_column: str | None = None,
    limit: int | None = None,
    mode: str = "RGB",
    image_size: int | None = None,
    keep: bool = True,
) -> ImageTensors:
    """Read an image classification data set and decode it once.

    Args:
        name: a hub id or a local directory, as ``datasets.load_dataset`` takes.
        split: ``train``, ``test`` …
        image_column: name of the image column; a usual one by default.
        label_column: name of the label column; a usual one by default.
        limit: read only the first images.
        mode: PIL mode of the result.
        image_size: side of the square that images are scaled and cropped to; None keeps their size.
        keep: keep the decoded images in a file beside the cache of the data set, for the next start and for other processes;
            see ``find_store`` for the data sets that have one.

    Raises:
        ValueError: if a column is missing, the images differ in size, or there are no images or labels.
    """
    import datasets  # here, because it is slow to import and training on tensors does not need it

    rows = datasets.load_dataset(name, split=split)
    return as_image_tensors(
        rows,
        image_column=image_column,
        label_column=label_column,
        limit=limit,
        mode=mode,
        image_size=image_size,
        keep=keep,
    )


def as_image_tensors(
    rows: Any,
    *,
    image_column: str | None = None,
    label_column: str | None = None,
    limit: int | None = None,
    mode: str = "RGB",
    image_size: int | None = None,
    keep: bool = True,
) -> ImageTensors:
    """Decode any map-style data set of images and labels.

    Args:
        rows: an ``ImageTensors``, a ``datasets.Dataset``, a sequence of dictionaries or ``(image, label)`` pairs, or two tensors,
            see ``pair_of_tensors``.
        image_column: see ``load_images``.
        label_column: see ``load_images``.
        limit: see ``load_images``.
        mode: see ``load_images``.
        image_size: see ``load_images``.
        keep: see ``load_images``.

    Raises:
        ValueError: if it is empty, has no labels, a column is missing or the images differ in size; and naming the first row
            whose picture or label is refused (see ``plain_picture`` and ``as_label``).
        TypeError: for a ``DataLoader``, a dictionary or a name in place of rows.
    """
    require_rows(rows)
    pair = pair_of_tensors(rows)
    rows = rows if pair is None else ImageTensors(*pair)
    if limit is not None and limit < 1:
        raise ValueError(f"limit={limit}: pass a positive number of images, or None for all")
    count = len(rows) if limit is None else min(limit, len(rows))
    if count == 0:
        raise ValueError("the data set is empty: there is nothing to measure or to train on")
    if isinstance(rows, ImageTensors):
        return rows if count == len(rows) else rows.subset(range(count))
    first = fetch_rows(rows, [0])[0]
    if isinstance(first, dict):
        image_key: Any = find_column(list(first), image_column, IMAGE_COLUMNS, "image")
        label_key: Any = find_column(list(first), label_column, LABEL_COLUMNS, "label")
    else:
        image_key, label_key = 0, 1
    store = None
    if keep:
        store = find_store(
            rows,
            image_key,
            mode,
            image_size,
            lambda index: _decode_rows(rows, [index], image_key, mode, image_size)[0][0],
        )
    kept = store.read() if store is not None else None
    if kept is not None:
        images, given = kept[:count], rows.select_columns([label_key])[:count][label_key]
    else:
        images, given = _decode_all(rows, count, image_key, label_key, mode, image_size)
        if store is not None and count == len(rows) and images.dtype == torch.uint8:
            images = store.write(images)
    labels = as_labels(given, FetchedRows(positions=range(count)))
    names = getattr((getattr(rows, "features", None) or {}).get(label_key), "names", None)
    check_labels(labels, names)
    missing = absent_classes(labels, len(names)) if names and count < len(rows) else None
    if missing is not None:
        logger.warning("limit=%d: %s. Shuffle it beforehand, or leave the limit out", count, missing)
    split = getattr(rows, "split", None)
    return ImageTensors(images, torch.tensor(labels), names, None if split is None or callable(split) else str(split))


def decodes_pictures(rows: Any) -> bool:
    """Tell whether a ``datasets.Dataset`` makes a PIL image of a file's bytes whenever a row is read.

    Not if it has a transform of its own: that may be random, so decoding once would change what it gives.
    """
    return is_plain_table(rows) and any(isinstance(value, Image.Image) for value in fetch_rows(rows, [0])[0].values())


def _decode_all(
    rows: Any, count: int, image_key: Any, label_key: Any, mode: str, size: int | None
) -> tuple[Tensor, list[Any]]:
    images: list[Tensor] = []
    labels: list[Any] = []
    for start in range(0, count, CHUNK):
        positions = range(start, min(start + CHUNK, count))
        decoded, items = _decode_rows(rows, positions, image_key, mode, size)
        images += decoded
        labels += [item[label_key] for item in items]
    return _stack(images), labels


def _decode_rows(
    rows: Any, positions: Sequence[int], image_key: Any, mode: str, size: int | None
) -> tuple[list[Tensor], Sequence[Any]]:
    items = fetch_rows(rows, list(positions))
    images = []
    for position, item in zip(positions, items, strict=True):
        try:
            images.append(_decode(item[image_key], mode, size))
        except ValueError as error:
            raise ValueError(f"row {position}: {error}") from error
    return images, items


def _decode(image: Any, mode: str, size: int | None) -> Tensor:
    if isinstance(image, Image.Image):
        picture = plain_picture(image, mode)
        if size is not None and picture.size != (size, size):
            picture = ImageOps.fit(picture, (size, size), Image.Resampling.BICUBIC)
        return picture_planes(picture)
    planes = to_planes(image, mode)
    if size is not None and planes.shape[1:] != (size, size):
        raise ValueError(f"image_size={size} is for PIL images: these are arrays of shape {tuple(planes.shape)}")
    if planes.dtype == torch.uint8:
        return planes
    bytes_ = (planes * 255).round().to(torch.uint8)
    return bytes_ if torch.equal(as_pixels(bytes_), planes) else planes


def _stack(images: Sequence[Tensor]) -> Tensor:
    shapes = {tuple(image.shape) for image in images}
    if len(shapes) > 1:
        raise ValueError(
            f"the images have {len(shapes)} sizes, for example {sorted(shapes)[:3]}: pass image_size= to scale them"
        )
    if all(image.dtype == torch.uint8 for image in images):
        return torch.stack(list(images)).contiguous()
    return torch.stack([as_pixels(image) for image in images])
