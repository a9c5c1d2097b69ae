"""Whatever a data set calls an image, as pixels in [0, 1]."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from PIL import Image
from torch import Tensor

IMAGE_COLUMNS = ("pixel_values", "image", "img", "x")
LABEL_COLUMNS = ("labels", "label", "fine_label", "y")


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


def stack_images(images: Sequence[Any], mode: str | None) -> Tensor:
    """Turn images of one size into a batch ``(B, C, H, W)`` in [0, 1]; see ``to_pixels``.

    Raises:
        ValueError: for images of several shapes.
    """
    if all(isinstance(image, Tensor) and image.dtype == torch.uint8 and image.ndim == 3 for image in images):
        shapes = {tuple(image.shape) for image in images}
        if len(shapes) == 1 and images[0].shape[0] in (1, 3, 4):
            return torch.stack(list(images)).float() / 255
    pixels = [to_pixels(image, mode) for image in images]
    shapes = {tuple(image.shape) for image in pixels}
    if len(shapes) > 1:
        raise ValueError(f"images of several shapes in one batch, for example {sorted(shapes)[:3]}: resize them first")
    return torch.stack(pixels)
