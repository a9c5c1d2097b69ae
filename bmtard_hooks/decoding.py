"""Whatever a data set calls an image, as bytes and as pixels in [0, 1]."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from PIL import Image
from torch import Tensor

IMAGE_COLUMNS = ("pixel_values", "image", "img", "x")
LABEL_COLUMNS = ("labels", "label", "fine_label", "y")
CHANNELS = (1, 3, 4)


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
        mode: PIL mode that PIL images are converted to (``RGB``, ``L``); None keeps theirs.

    Returns:
        ``(C, H, W)`` float32 in [0, 1].

    Raises:
        ValueError: for floats outside [0, 1] or not finite, and for arrays that are not images.
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
        if mode is not None and image.mode != mode:
            image = image.convert(mode)
        image = torch.from_numpy(np.array(image))
    tensor = image if isinstance(image, Tensor) else torch.as_tensor(np.asarray(image))
    if tensor.ndim == 2:
        tensor = tensor.unsqueeze(0)
    if tensor.ndim != 3:
        raise ValueError(f"an image has shape {tuple(tensor.shape)}: expected (C, H, W), (H, W, C) or (H, W)")
    if tensor.shape[0] not in CHANNELS and tensor.shape[2] in CHANNELS:
        tensor = tensor.permute(2, 0, 1)
    if tensor.dtype == torch.uint8:
        return tensor
    if not tensor.is_floating_point():
        raise ValueError(f"an image has dtype {tensor.dtype}: pass uint8 (0 to 255) or floats in [0, 1]")
    require_pixels(tensor, "an image")
    return tensor.float()


def require_pixels(tensor: Tensor, what: str) -> None:
    """Raise ``ValueError`` if a float tensor has values outside [0, 1] or NaN."""
    low, high = tensor.aminmax()
    if not (low >= 0 and high <= 1):  # also catches NaN
        raise ValueError(
            f"{what} has values from {low:.4g} to {high:.4g}: pixels must be in [0, 1]. Divide by 255, and leave "
            "mean/std normalisation to the model (create_model(..., mean=, std=))"
        )


def stack_images(images: Sequence[Any], mode: str | None, keep_bytes: bool = False) -> Tensor:
    """Turn images of one size into a batch ``(B, C, H, W)``; see ``to_pixels``.

    Args:
        images: as ``to_pixels`` takes them.
        mode: see ``to_pixels``.
        keep_bytes: leave a batch of bytes as it is, for ``as_pixels`` to turn later.

    Returns:
        float32 in [0, 1]; uint8 if ``keep_bytes`` and every image has bytes.

    Raises:
        ValueError: for images of several shapes.
    """
    planes = [to_planes(image, mode) for image in images]
    shapes = {tuple(image.shape) for image in planes}
    if len(shapes) > 1:
        raise ValueError(f"images of several shapes in one batch, for example {sorted(shapes)[:3]}: resize them first")
    if any(image.dtype != torch.uint8 for image in planes):
        planes = [as_pixels(image) for image in planes]
    batch = torch.stack(planes)
    return batch if keep_bytes else as_pixels(batch)
