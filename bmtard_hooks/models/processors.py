"""What an image processor of transformers does to a picture, as the mean and standard deviation of pixels in [0, 1]."""

from __future__ import annotations

import logging
from collections.abc import Sequence
from typing import Any

import torch
from PIL import Image
from torch import Tensor

logger = logging.getLogger(__name__)

LEVELS = 255
TRIED = ((255, 0, 0), (0, 255, 0), (40, 130, 200))
"""Colours of the pictures that a processor is tried on."""
TOLERANCE = 1e-2
"""In units of what the processor gives; a rounded level is 4e-3 of the range."""


def normalisation_of(processor: Any) -> tuple[list[float], list[float]] | None:
    """Read which mean and std of pixels in [0, 1] a processor's settings come to, and try it on pictures of one colour.

    Formula: with f = 255 ``rescale_factor`` (255 without rescaling) and the processor's own mean m and std s, ``f x - o``
    is what it normalises (o is 1 with ``rescale_offset``), so mean is ``(m + o) / f`` and std ``s / f``;
    ``include_top`` (EfficientNet) divides by s again.

    Args:
        processor: an image processor, or None.

    Returns:
        ``(mean, std)``, 0 and 1 for a processor that does not normalise; None without a processor that tells.

    Raises:
        ValueError: for a processor that does anything else to the colours, such as exchanging channels.
    """
    if getattr(processor, "image_mean", None) is None:
        return None
    channels = len(processor.image_mean)
    does_normalise = getattr(processor, "do_normalize", True)
    mean, std = (processor.image_mean, processor.image_std) if does_normalise else ([0.0] * channels, [1.0] * channels)
    rescales = getattr(processor, "do_rescale", True)
    factor = LEVELS * getattr(processor, "rescale_factor", 1 / LEVELS) if rescales else float(LEVELS)
    if abs(factor - 1) < 1e-6:
        factor = 1.0  # 255 / 255, written as a decimal
    offset = 1.0 if rescales and getattr(processor, "rescale_offset", False) else 0.0
    again = processor.image_std if getattr(processor, "include_top", False) else [1.0] * channels
    found = (
        [(m + offset) / factor for m in mean],
        [s * top / factor for s, top in zip(std, again, strict=True)],
    )
    _try(processor, *found)
    return found


def size_after(processor: Any, height: int, width: int) -> tuple[int, int] | None:
    """Try to which size a processor brings pictures of a size.

    Args:
        processor: an image processor, or None.
        height: of the pictures.
        width: of the pictures.

    Returns:
        ``(height, width)``; None without a processor that can be tried.
    """
    if getattr(processor, "image_mean", None) is None:
        return None
    seen = _processed(processor, [Image.new("RGB", (width, height))])
    return None if seen is None else (seen.shape[-2], seen.shape[-1])


def usual_processor(height: int, width: int, mean: Sequence[float], std: Sequence[float]) -> dict[str, Any]:
    """Describe a processor that scales pictures to a size, divides by 255 and normalises, as its file does.

    Args:
        height: of what it gives.
        width: of what it gives.
        mean: of pixels in [0, 1], per channel.
        std: likewise.

    Returns:
        The content of a ``preprocessor_config.json``.
    """
    return {
        "image_processor_type": "ViTImageProcessor",
        **{"do_resize": True, "size": {"height": height, "width": width}, "resample": int(Image.Resampling.BICUBIC)},
        **{"do_rescale": True, "rescale_factor": 1 / LEVELS},
        **{"do_normalize": True, "image_mean": list(mean), "image_std": list(std)},
    }


def _processed(processor: Any, pictures: list[Image.Image]) -> Tensor | None:
    try:
        return processor(images=pictures, return_tensors="pt")["pixel_values"]
    except Exception as error:  # one that wants other arguments is taken at its word
        logger.debug("the image processor could not be tried: %s", error)
        return None


def _try(processor: Any, mean: Sequence[float], std: Sequence[float]) -> None:
    if len(mean) != len(TRIED[0]):
        return  # pictures of one channel have nothing to exchange
    seen = _processed(processor, [Image.new("RGB", (64, 64), colour) for colour in TRIED])
    if seen is None or seen.ndim != 4:
        return
    middle = seen[:, :, seen.shape[2] // 2, seen.shape[3] // 2].double()
    colours = torch.tensor(TRIED, dtype=torch.float64) / LEVELS
    expected = (colours - torch.tensor(mean, dtype=torch.float64)) / torch.tensor(std, dtype=torch.float64)
    if not torch.allclose(middle, expected, rtol=1e-3, atol=TOLERANCE):
        raise ValueError(
            f"the image processor {type(processor).__name__} does more to colours than subtract a mean and divide by a std: pixels "
            f"{[round(float(v), 3) for v in colours[-1]]} became {[round(float(v), 3) for v in middle[-1]]}, not "
            f"{[round(float(v), 3) for v in expected[-1]]}. It may exchange channels (BGR). Put that into the network, a module "
            "from RGB pixels to logits, and pass the network without a processor"
        )
