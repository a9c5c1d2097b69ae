"""Whatever a data set calls an image, as bytes and as pixels in [0, 1]."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from bmtard_hooks.picture_rules import plain_picture
from bmtard_hooks.row_numbers import row_name

IMAGE_COLUMNS = ("pixel_values", "image", "img", "x")
LABEL_COLUMNS = ("labels", "label", "fine_label", "y")
CHANNELS = (1, 3, 4)


def find_column(
    columns: Sequence[str], wanted: str | None, known: Sequence[str], what: str, collated: bool = False
) -> str:
    """Find the image or label column of a data set.

    Args:
        columns: the data set's column names.
        wanted: the name a user gave, or None to look for a usual one.
        known: the usual names, in order.
        what: ``image`` or ``label``, for the message.
        collated: the columns are what a Trainer gave to its collator, perhaps fewer than the data set has.

    Raises:
        ValueError: if there is none, listing the columns that exist.
    """
    candidates = [wanted] if wanted is not None else list(known)
    for name in candidates:
        if name in columns:
            return name
    raise ValueError(
        f"no {what} column {' or '.join(repr(name) for name in candidates)} among {sorted(columns)}: "
        f"pass {what}_column=NAME to PGDCollator(…) or load_images(…), on a command line --{what}_column NAME"
        + (
            ". If the data set has such a column, the Trainer removed it: set remove_unused_columns=False"
            if collated
            else ""
        )
    )


def label_feature(rows: Any, label_column: str | None = None) -> Any:
    """Find what a ``datasets.Dataset`` says of the column that labels are read from; None if it says nothing.

    Args:
        rows: any data set.
        label_column: as for ``find_column``.
    """
    features = getattr(rows, "features", None) or {}
    columns = LABEL_COLUMNS if label_column is None else (label_column,)
    return next((features[column] for column in columns if column in features), None)


def as_pixels(images: Tensor) -> Tensor:
    """Turn bytes into pixels on the device where they are, and leave floats as they are.

    Formula: ``byte / 255``, rounded to the nearest float32 on every device.

    Args:
        images: uint8 of any shape, or floats.

    Returns:
        float32 in [0, 1] for bytes; what was given for anything else.
    """
    if images.dtype != torch.uint8:
        return images
    # The divisor is a tensor, because a GPU multiplies by the reciprocal of a number, which rounds differently.
    return images / torch.full((), 255.0, dtype=torch.float32, device=images.device)


def to_pixels(image: Any, mode: str | None = "RGB") -> Tensor:
    """Turn one image into a float tensor of pixels.

    Args:
        image: a PIL image, a uint8 array or tensor (``(H, W)``, ``(H, W, C)`` or ``(C, H, W)``, C of 1, 3 or 4), or a
            float one in [0, 1], ``(C, H, W)``.
        mode: PIL mode that PIL images are converted to (``RGB``, ``L``), see ``plain_picture``; None keeps theirs.

    Returns:
        ``(C, H, W)`` float32 in [0, 1].

    Raises:
        ValueError: for pictures that the rules refuse, floats outside [0, 1] or not finite, and what is no image.
    """
    return as_pixels(to_planes(image, mode))


def to_planes(image: Any, mode: str | None = "RGB") -> Tensor:
    """Turn one image into a tensor of its channels, bytes where it has bytes; see ``to_pixels``.

    Returns:
        ``(C, H, W)`` uint8, or float32 in [0, 1].

    Raises:
        ValueError: as ``to_pixels``.
    """
    if isinstance(image, Image.Image):
        return picture_planes(plain_picture(image, mode))
    tensor = image if isinstance(image, Tensor) else _as_tensor(image)
    if tensor.ndim == 2:
        tensor = tensor.unsqueeze(0)
    if tensor.ndim != 3 or not tensor.numel():
        raise ValueError(f"an image has shape {tuple(tensor.shape)}: expected (C, H, W), (H, W, C) or (H, W)")
    if tensor.shape[0] not in CHANNELS and tensor.shape[2] in CHANNELS:
        tensor = tensor.permute(2, 0, 1)
    if tensor.dtype == torch.uint8:
        return tensor
    if not tensor.is_floating_point():
        raise ValueError(f"an image has dtype {tensor.dtype}: pass uint8 (0 to 255) or floats in [0, 1]")
    require_pixels(tensor, "an image")
    return tensor.float()


def picture_planes(picture: Image.Image) -> Tensor:
    """Copy a picture of 8-bit bands to a tensor of its channels, ``(C, H, W)`` uint8."""
    array = torch.from_numpy(np.array(picture))
    return array.unsqueeze(0) if array.ndim == 2 else array.permute(2, 0, 1)


def _as_tensor(image: Any) -> Tensor:
    if image is None or isinstance(image, (str, bytes, Mapping)):
        got = "None" if image is None else f"a {type(image).__name__}"
        raise ValueError(
            f"an image is {got}: pass PIL images, arrays or tensors. Files and undecoded columns become pictures with "
            "cast_column(name, datasets.Image())"
        )
    try:
        array = np.asarray(image)
        if array.dtype.byteorder not in ("=", "|"):
            array = array.astype(array.dtype.newbyteorder("="))
        return torch.from_numpy(
            array if array.flags.writeable and min(array.strides, default=0) >= 0 else array.copy()
        )
    except (TypeError, ValueError) as error:
        raise ValueError(f"an image is a {type(image).__name__} that is no array of numbers: {error}") from error


def as_label(value: Any) -> int:
    """Read a class index.

    Args:
        value: an integer, a truth value (False is 0, True is 1), or a float that is whole; a Python number, or a NumPy or
            torch scalar.

    Returns:
        The index; -1 for None, as data sets mark rows without a label.

    Raises:
        ValueError: for text, other floats, NaN, and lists.
    """
    if type(value) is int:
        return value
    if value is None:
        return -1
    if isinstance(value, (Tensor, np.ndarray)) and math.prod(value.shape) == 1:
        value = value.item()
    if isinstance(value, (int, np.integer, np.bool_)):
        return int(value)
    if isinstance(value, (float, np.floating)) and math.isfinite(value) and float(value).is_integer():
        return int(value)
    advice = (
        "make class indices of names with class_encode_column()" if isinstance(value, str) else "pass a class index"
    )
    raise ValueError(f"the label {value!r} is no whole number: {advice}")


def as_labels(values: Sequence[Any], rows: Any = None) -> list[int]:
    """Read class indices; see ``as_label``.

    Args:
        values: one per row.
        rows: the batch, which may know its positions, for messages.

    Raises:
        ValueError: naming the first row whose label is none.
    """
    labels = []
    for index, value in enumerate(values):
        try:
            labels.append(as_label(value))
        except ValueError as error:
            raise ValueError(f"{row_name(rows, index)}: {error}") from error
    return labels


def check_labels(labels: list[int], names: Sequence[str] | None) -> None:
    """Refuse labels of a whole data set that are negative or above its classes, naming the first such row.

    Args:
        labels: one per row.
        names: of the classes, if known.

    Raises:
        ValueError: see above.
    """
    if min(labels) < 0:
        raise ValueError(
            f"{labels.count(min(labels))} of {len(labels)} images have the label {min(labels)}, which marks unlabelled ones, "
            f"first row {labels.index(min(labels))}: choose a split with labels"
        )
    if names is not None and max(labels) >= len(names):
        raise ValueError(
            f"row {labels.index(max(labels))}: the label {max(labels)} is none of {len(names)} classes (0 to {len(names) - 1}): "
            "check label_column"
        )


def require_pixels(tensor: Tensor, what: str) -> None:
    """Raise ``ValueError`` if a float tensor has values outside [0, 1] or NaN."""
    low, high = tensor.aminmax()
    if not (low >= 0 and high <= 1):  # also catches NaN
        raise ValueError(
            f"{what} has values from {low:.4g} to {high:.4g}: pixels must be in [0, 1]. Divide by 255, and leave "
            "mean/std normalisation to the model (create_model(..., mean=, std=))"
        )


def stack_images(images: Sequence[Any], mode: str | None, keep_bytes: bool = False, rows: Any = None) -> Tensor:
    """Turn images of one size into a batch ``(B, C, H, W)``; see ``to_pixels``.

    Args:
        images: as ``to_pixels`` takes them.
        mode: see ``to_pixels``.
        keep_bytes: leave a batch of bytes as it is, for ``as_pixels`` to turn later.
        rows: the batch, which may know its positions, for messages.

    Returns:
        float32 in [0, 1]; uint8 if ``keep_bytes`` and every image has bytes.

    Raises:
        ValueError: for images of several shapes, and naming the first row whose image is refused.
    """
    planes = []
    for index, image in enumerate(images):
        try:
            planes.append(to_planes(image, mode))
        except ValueError as error:
            raise ValueError(f"{row_name(rows, index)}: {error}") from error
    shapes = {tuple(image.shape) for image in planes}
    if len(shapes) > 1:
        raise ValueError(f"images of several shapes in one batch, for example {sorted(shapes)[:3]}: resize them first")
    if any(image.dtype != torch.uint8 for image in planes):
        planes = [as_pixels(image) for image in planes]
    batch = torch.stack(planes)
    return batch if keep_bytes else as_pixels(batch)
