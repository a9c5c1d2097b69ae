"""What becomes of a PIL picture: converted by rule to bands of 8 bits, or refused, never changed silently.

==========================================  ===========================================================================
picture                                     rule
==========================================  ===========================================================================
8 bits: RGB, grey, CMYK, YCbCr, HSV, LAB    converted to the wanted mode by PIL
1 bit, palette                              the same; a palette gives its colours
16 bits (``I;16`` of either byte order)     scaled: ``round(value / 257)``, so that 65535 becomes 255
32-bit integers (``I``)                     the same if they fit 16 bits; refused if none is above 255 (0 alone is black),
                                            unless a file of 16 bits says what they mean
floats (``F``)                              refused: nothing says what is white
transparency, every pixel opaque            dropped
transparency that shows                     refused, unless the wanted mode is RGBA: the background is the user's to choose
several frames or pages                     refused; a camera's MPO file gives its first picture
EXIF orientation of a picture from a file   applied, so that it stands upright, as ``datasets`` does
more pixels than PIL's limit, or none       refused
truncated, damaged, closed                  refused
==========================================  ===========================================================================
"""

from __future__ import annotations

import numpy as np
from PIL import Image, ImageFile, ImageOps

TARGETS = ("RGB", "L", "RGBA", "YCbCr", "HSV", "CMYK")
"""Modes that pictures can be converted to: those of 8 bits without a palette."""

KEPT = {"1": "L", "P": "RGB", "PA": "RGB", "RGBX": "RGB", "LA": "L", "La": "L", "RGBa": "RGBA", "I": "L", "LAB": "RGB"}
"""Nearest such mode of a picture that should keep its own."""

TRANSPARENT = ("RGBA", "RGBa", "LA", "La", "PA")
SIXTEEN_BIT_FILES = ("PNG", "PPM")
ORIENTATION = 0x0112
UPRIGHT = 1
ORIENTATIONS = range(2, 9)


def plain_picture(image: Image.Image, mode: str | None = "RGB") -> Image.Image:
    """Convert a picture to bands of 8 bits by the rules of this module.

    Args:
        image: any PIL image.
        mode: one of ``TARGETS``; None keeps the picture's own where it is one of them.

    Returns:
        The picture itself if nothing was to be done, or a new one.

    Raises:
        ValueError: for a picture that is refused, saying why and what to do, and for another mode.
    """
    if mode is not None and mode not in TARGETS:
        raise ValueError(f"mode={mode!r} does not hold 8 bits per channel: choose one of {', '.join(TARGETS)}")
    _check_extent(image)
    if isinstance(image, ImageFile.ImageFile):
        image = _upright(_loaded(image))
    own = image.mode
    target = mode if mode is not None else KEPT.get(own, "L" if own.startswith("I;16") else own)
    if own.startswith("I"):
        return _convert(_eight_bits(image), target)
    if own == "F" or target not in TARGETS:
        raise ValueError(
            f"a picture of mode {own!r} says nothing of what is white: scale it to 8 bits and convert it to RGB or L first"
        )
    if own in TRANSPARENT or "transparency" in image.info:
        return _opaque(image, target)
    return _convert(image, target)


def _check_extent(image: Image.Image) -> None:
    width, height = image.size
    if width < 1 or height < 1:
        raise ValueError(f"a picture of {width}x{height} pixels has no content: remove it")
    limit = Image.MAX_IMAGE_PIXELS
    if limit is not None and width * height > limit:
        raise ValueError(
            f"a picture of {width}x{height} pixels is above PIL's limit of {limit:,}: scale it down, or raise "
            "PIL.Image.MAX_IMAGE_PIXELS if you trust its source"
        )


def _loaded(image: ImageFile.ImageFile) -> Image.Image:
    try:
        frames = getattr(image, "n_frames", 1)
        if frames == 1 or image.format == "MPO":
            image.load()
    except Exception as error:  # every format breaks in ways of its own
        raise ValueError(f"a picture cannot be decoded ({_short(error)}): its file is damaged or closed") from error
    if frames > 1 and image.format != "MPO":
        raise ValueError(
            f"a picture has {frames} frames or pages: choose one (image.seek(0), then image.copy()) and keep that"
        )
    return image


def _upright(image: Image.Image) -> Image.Image:
    if "exif" not in image.info and "xmp" not in image.info and "XML:com.adobe.xmp" not in image.info:
        return image
    try:
        orientation = image.getexif().get(ORIENTATION, UPRIGHT)
    except Exception:  # damaged notes beside a picture that is whole
        return image
    turned = ImageOps.exif_transpose(image) if orientation in ORIENTATIONS else None
    return image if turned is None else turned


def _eight_bits(image: Image.Image) -> Image.Image:
    values = np.asarray(image)
    low, high = int(values.min()), int(values.max())
    if low < 0 or high > 65535:
        raise ValueError(
            f"a picture of integers goes from {low} to {high}: scale it to 8 bits and convert it to L first"
        )
    if image.mode == "I" and 0 < high <= 255 and getattr(image, "format", None) not in SIXTEEN_BIT_FILES:
        raise ValueError(
            f"a picture of 32-bit integers goes from {low} to {high}, which may mean 8 bits or 16: convert it to 8 bits "
            "(Image.fromarray of a uint8 array) first"
        )
    if image.info.get("transparency") is not None and (values == image.info["transparency"]).any():
        raise _see_through()
    return Image.fromarray(((values.astype(np.uint32) + 128) // 257).astype(np.uint8))


def _opaque(image: Image.Image, target: str) -> Image.Image:
    if image.mode == "La":
        image = image.convert("LA")
    whole = image if image.mode == "RGBA" else image.convert("RGBA")
    if target == "RGBA":
        return whole
    if np.asarray(whole.getchannel("A")).min() < 255:
        raise _see_through()
    return _convert(whole, target)


def _convert(image: Image.Image, target: str) -> Image.Image:
    if image.mode == target:
        return image
    try:
        return image.convert(target)
    except (OSError, ValueError) as error:
        if "RGB" in (image.mode, target):
            raise ValueError(
                f"PIL cannot convert a picture of mode {image.mode} to {target} ({_short(error)})"
            ) from error
    return _convert(_convert(image, "RGB"), target)  # not every pair has a way of its own


def _see_through() -> ValueError:
    return ValueError(
        "a picture has transparent pixels, and what is behind them decides how it looks: put it on a background "
        "(Image.alpha_composite) and convert it to RGB first"
    )


def _short(error: Exception) -> str:
    text = str(error).strip().splitlines()
    return f"{type(error).__name__}: {text[0]}" if text else type(error).__name__
