"""Images in, pixels out: reading data sets, decoding once, augmenting on the training device."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np
import torch
from PIL import Image
from torch import Tensor

IMAGE_COLUMNS = ("pixel_values", "image", "img", "x")
LABEL_COLUMNS = ("labels", "label", "fine_label", "y")
AUGMENTATIONS = ("crop_flip", "crop", "flip", "none")


def find_column(columns: Sequence[str], wanted: str | None, known: Sequence[str], what: str) -> str:
    """Find the image or label column of a data set.

    Args:
        columns: the data set's column names.
        wanted: the name a user gave, or None to look for a usual one.
        known: the usual names, in order.
        what: ``image`` or ``label``, for the message.

    Raises:
        ValueError: if there is none, listing the columns that exist.
    """
    candidates = [wanted] if wanted is not None else list(known)
    for name in candidates:
        if name in columns:
            return name
    raise ValueError(
        f"no {what} column {' or '.join(repr(name) for name in candidates)} among {sorted(columns)}: "
        f"pass {what}_column=NAME"
    )


def to_pixels(image: Any, mode: str | None = "RGB") -> Tensor:
    """Turn one image into a float tensor of pixels.

    Args:
        image: a PIL image, a uint8 array or tensor (``(H, W)``, ``(H, W, C)`` or ``(C, H, W)``, C of 1, 3 or 4), or a
            float one in [0, 1], ``(C, H, W)``.
        mode: PIL mode that PIL images are converted to (``RGB``, ``L``); None keeps theirs.

    Returns:
        ``(C, H, W)`` float32 in [0, 1].

    Raises:
        ValueError: for floats outside [0, 1] or not finite, and for arrays that are not images.
    """
    if isinstance(image, Image.Image):
        if mode is not None and image.mode != mode:
            image = image.convert(mode)
        image = torch.from_numpy(np.array(image))
    tensor = image if isinstance(image, Tensor) else torch.as_tensor(np.asarray(image))
    if tensor.ndim == 2:
        tensor = tensor.unsqueeze(0)
    if tensor.ndim != 3:
        raise ValueError(f"an image has shape {tuple(tensor.shape)}: expected (C, H, W), (H, W, C) or (H, W)")
    if tensor.shape[0] not in (1, 3, 4) and tensor.shape[2] in (1, 3, 4):
        tensor = tensor.permute(2, 0, 1)
    if tensor.dtype == torch.uint8:
        return tensor.float() / 255
    if not tensor.is_floating_point():
        raise ValueError(f"an image has dtype {tensor.dtype}: pass uint8 (0 to 255) or floats in [0, 1]")
    low, high = tensor.aminmax()
    if not (low >= 0 and high <= 1):  # also catches NaN
        raise ValueError(
            f"an image has values from {low:.4g} to {high:.4g}: pixels must be in [0, 1]. Divide by 255, and leave "
            "mean/std normalisation to the model (create_model(..., mean=, std=))"
        )
    return tensor.float()


class ImageTensors(torch.utils.data.Dataset):
    """A data set decoded once and kept as bytes: 3 KB for a CIFAR image instead of a JPEG to decode every epoch.

    Args:
        images: ``(N, C, H, W)`` uint8.
        labels: ``(N,)`` integers.
        label_names: name of each class, if known.
    """

    def __init__(self, images: Tensor, labels: Tensor, label_names: Sequence[str] | None = None) -> None:
        if images.dtype != torch.uint8 or images.ndim != 4 or len(images) != len(labels):
            raise ValueError(
                f"images {images.dtype} {tuple(images.shape)} and {len(labels)} labels: expected uint8 (N, C, H, W) "
                "and one label each"
            )
        self.images = images
        self.labels = labels.long()
        self.label_names = list(label_names) if label_names is not None else None

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

    def subset(self, indices: Sequence[int] | Tensor) -> ImageTensors:
        """Copy some of the images."""
        chosen = torch.as_tensor(indices, dtype=torch.long)
        return ImageTensors(self.images[chosen], self.labels[chosen], self.label_names)

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
) -> ImageTensors:
    """Read an image classification data set and decode it once.

    Args:
        name: a hub id or a local directory, as ``datasets.load_dataset`` takes.
        split: ``train``, ``test`` …
        image_column: name of the image column; a usual one by default.
        label_column: name of the label column; a usual one by default.
        limit: read only the first images.
        mode: PIL mode of the result.

    Raises:
        ValueError: if a column is missing or the images differ in size.
    """
    import datasets  # here, because it is slow to import and training on tensors does not need it

    rows = datasets.load_dataset(name, split=split)
    image_key = find_column(rows.column_names, image_column, IMAGE_COLUMNS, "image")
    label_key = find_column(rows.column_names, label_column, LABEL_COLUMNS, "label")
    if limit is not None:
        rows = rows.select(range(min(limit, len(rows))))
    arrays = [np.array(image.convert(mode)) for image in rows[image_key]]
    sizes = {array.shape for array in arrays}
    if len(sizes) > 1:
        raise ValueError(
            f"{name} has images of {len(sizes)} sizes, for example {sorted(sizes)[:3]}: resize them first"
        )
    images = torch.from_numpy(np.stack(arrays))
    images = images.unsqueeze(1) if images.ndim == 3 else images.permute(0, 3, 1, 2).contiguous()
    names = getattr(rows.features[label_key], "names", None)
    return ImageTensors(images, torch.tensor(rows[label_key]), names)


def augment(images: Tensor, kind: str, padding: int = 4, generator: torch.Generator | None = None) -> Tensor:
    """Shift and mirror every image of a batch by its own random amount, on the images' device.

    The crop is the usual one: pad with zeros, cut out the original size at a uniformly random place. The mirror is
    horizontal with probability one half.

    Args:
        images: ``(B, C, H, W)``.
        kind: ``crop_flip``, ``crop``, ``flip`` or ``none``.
        padding: pixels per side.
        generator: source of the random numbers, on the images' device.

    Returns:
        ``(B, C, H, W)``, a new tensor unless nothing was to be done.
    """
    batch, _, height, width = images.shape
    if "crop" in kind and padding:
        tops = torch.randint(0, 2 * padding + 1, (batch,), generator=generator, device=images.device)
        lefts = torch.randint(0, 2 * padding + 1, (batch,), generator=generator, device=images.device)
        padded = torch.nn.functional.pad(images, (padding,) * 4)
        rows = tops[:, None] + torch.arange(height, device=images.device)
        columns = lefts[:, None] + torch.arange(width, device=images.device)
        numbers = torch.arange(batch, device=images.device)[:, None, None]
        images = padded.permute(0, 2, 3, 1)[numbers, rows[:, :, None], columns[:, None, :]].permute(0, 3, 1, 2)
    if "flip" in kind:
        mirrored = torch.rand(batch, generator=generator, device=images.device) < 0.5
        images = torch.where(mirrored[:, None, None, None], images.flip(3), images)
    return images


class Numbered(NamedTuple):
    """A row and its position."""

    position: int
    row: Any


class NumberedRows(torch.utils.data.Dataset):
    """A map-style data set whose rows come with their position; see ``numbered``."""

    def __init__(self, rows: Any) -> None:
        self.rows = rows

    def __len__(self) -> int:
        return len(self.rows)

    def __getitem__(self, index: int) -> Numbered:
        return Numbered(index, self.rows[index])


class NumberedCollate:
    """Collates numbered rows with a collator that knows nothing of numbers, and adds ``image_index`` ``(B,)``.

    Args:
        collate: any collator that returns a dictionary.
    """

    def __init__(self, collate: Any) -> None:
        self.collate = collate

    def __call__(self, rows: Sequence[Any]) -> Any:
        """Collate rows that may be numbered."""
        if not all(isinstance(row, Numbered) for row in rows):
            return self.collate(rows)
        batch = self.collate([row.row for row in rows])
        return {**batch, "image_index": torch.tensor([row.position for row in rows])}


def numbered(rows: Any) -> Any:
    """Let every row of a data set carry its position, so that each image can have random numbers of its own.

    Args:
        rows: a map-style data set, a dictionary of them, or one that can only be iterated, which comes back as it is.
    """
    if isinstance(rows, dict):
        return {name: numbered(value) for name, value in rows.items()}
    return NumberedRows(rows) if is_map_style(rows) and not isinstance(rows, NumberedRows) else rows


def is_map_style(rows: Any) -> bool:
    """Tell a data set with a length and positions from a stream."""
    if isinstance(rows, torch.utils.data.IterableDataset):
        return False  # inherits __getitem__ all the same
    return hasattr(rows, "__len__") and hasattr(rows, "__getitem__")


def class_count(rows: Any, label_column: str | None = None) -> int | None:
    """Read how many classes a data set has, from its own statement; None if it makes none."""
    if isinstance(rows, ImageTensors):
        return rows.num_classes
    features = getattr(rows, "features", None) or {}
    for column in LABEL_COLUMNS if label_column is None else [label_column]:
        count = getattr(features.get(column), "num_classes", None)
        if count is not None:
            return int(count)
    return None


def label_range(rows: Any, label_column: str) -> tuple[int, int] | None:
    """Find the lowest and highest label without touching the images; None if that is not possible."""
    if isinstance(rows, ImageTensors):
        return int(rows.labels.min()), int(rows.labels.max())
    if not hasattr(rows, "unique") or label_column not in getattr(rows, "column_names", ()):
        return None
    labels = rows.unique(label_column)
    return int(min(labels)), int(max(labels))
