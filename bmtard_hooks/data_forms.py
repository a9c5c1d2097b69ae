"""Forms in which people have their images at hand: a pair of tensors is taken, what only leads to a data set is refused with it."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
import torch
from torch import Tensor

from bmtard_hooks.decoding import CHANNELS, as_pixels, check_labels, require_pixels


def require_rows(rows: Any) -> None:
    """Refuse what is no data set, but near one.

    Raises:
        TypeError: for a loader, a dictionary of splits and a name, with what to pass in its place.
    """
    if isinstance(rows, torch.utils.data.DataLoader):
        raise TypeError(
            "the data set is a DataLoader, expected the rows that it loads: pass loader.dataset (batch_size= sets how many images are "
            "computed at a time)"
        )
    if isinstance(rows, (str, bytes)):
        raise TypeError(
            f"the data set is the text {rows!r:.60}, expected its images: pass load_images({rows!r:.60}, 'test') of bmtard_hooks"
        )
    if isinstance(rows, Mapping):
        first = next(iter(rows), "test")
        raise TypeError(
            f"the data set is a dictionary of {', '.join(map(repr, rows))}: pass one of them, rows[{first!r}]"
        )


def pair_of_tensors(rows: Any) -> tuple[Tensor, Tensor] | None:
    """Read ``(x_test, y_test)``, the form in which RobustBench has its data sets.

    Args:
        rows: any data set. A pair is a tuple or list of two tensors or arrays: images ``(N, C, H, W)`` or ``(N, H, W, C)``,
            uint8 or floats in [0, 1], and labels ``(N,)``.

    Returns:
        The images, ``(N, C, H, W)``, uint8 where the pixels are bytes and float32 otherwise, and the labels; None for other data.

    Raises:
        ValueError: for pixels outside [0, 1], other types, and negative labels.
    """
    if not (isinstance(rows, (tuple, list)) and len(rows) == 2):
        return None
    if not all(isinstance(part, (Tensor, np.ndarray)) for part in rows) or [part.ndim for part in rows] != [4, 1]:
        return None
    images, labels = (torch.as_tensor(part).detach().cpu() for part in rows)
    if images.shape[1] not in CHANNELS and images.shape[3] in CHANNELS:
        images = images.permute(0, 3, 1, 2)
    if images.is_floating_point() and images.numel():
        require_pixels(images, "an image")
        images = images.float()
        in_bytes = (images * 255).round().to(torch.uint8)
        images = in_bytes if torch.equal(as_pixels(in_bytes), images) else images
    if len(labels) and int(labels.min()) < 0:
        check_labels(labels.long().tolist(), None)
    return images.contiguous(), labels
