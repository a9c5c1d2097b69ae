"""Pictures that are odd or broken: converted by rule, or refused."""

import io

import numpy as np
import pytest
import torch
from picturing import (
    AT,
    COLOURS,
    COUNT,
    GREY,
    Listed,
    coded,
    noted,
    opened,
    pages,
    palette,
    pixels,
    rows_with,
    sixteen,
    with_alpha,
)
from PIL import Image
from torch.utils.data import DataLoader

from bmtard_hooks import PGDCollator
from bmtard_hooks.data import traced
from bmtard_hooks.decoding import to_pixels, to_planes
from bmtard_hooks.image_tensors import as_image_tensors

SCALED = np.tile(np.array([0, 0, 1, 1, 128, 254, 255, 255], dtype=np.uint8), (8, 1))


def as_pil(mode):
    return lambda: (COLOURS.convert(mode), COLOURS.convert(mode).convert("RGB"))


def grey(array):
    return Image.fromarray(np.stack([array] * 3, axis=-1))


def turned(kind):
    exif = Image.Exif()
    exif[0x0112] = 6  # to be shown after a quarter turn to the right
    picture = Image.fromarray(np.repeat(np.repeat(pixels(3)[:2, :2], 4, 0), 4, 1))
    return opened(picture, kind, exif=exif, quality=95), Image.open(
        io.BytesIO(coded(picture, kind, quality=95))
    ).rotate(-90)


CONVERTED = {
    "grey": lambda: (GREY, grey(pixels())),
    "1 bit": lambda: (COLOURS.convert("1"), COLOURS.convert("1").convert("RGB")),
    "palette": lambda: (palette(), palette().convert("RGB")),
    "CMYK": as_pil("CMYK"),
    "YCbCr": as_pil("YCbCr"),
    "HSV": as_pil("HSV"),
    "LAB": as_pil("LAB"),
    "RGBX": as_pil("RGBX"),
    "16 bits": lambda: (Image.fromarray(sixteen()), grey(SCALED)),
    "16 bits, most significant first": lambda: (Image.frombytes("I;16B", (8, 8), sixteen(">u2").tobytes()), grey(SCALED)),
    "16 bits from a PNG file": lambda: (opened(Image.fromarray(sixteen()), "PNG"), grey(SCALED)),
    "16 bits from a TIFF file": lambda: (opened(Image.fromarray(sixteen()), "TIFF"), grey(SCALED)),
    "32-bit integers": lambda: (Image.fromarray(sixteen("<i4")), grey(SCALED)),
    "32-bit integers, all black": lambda: (Image.fromarray(sixteen("<i4") * 0), grey(SCALED * 0)),
    "opaque RGBA": lambda: (with_alpha("RGBA", 255), COLOURS),
    "opaque LA": lambda: (with_alpha("LA", 255), COLOURS.convert("L").convert("RGB")),
    "opaque palette": lambda: (palette(alpha=255), palette().convert("RGB")),
    "transparent colour that is not used": lambda: (noted(Image.new("RGB", (8, 8), "red"), (0, 0, 9)), Image.new("RGB", (8, 8), "red")),
    "EXIF orientation in a JPEG": lambda: turned("JPEG"),
    "EXIF orientation in a PNG": lambda: turned("PNG"),
}  # fmt: skip


@pytest.mark.parametrize("case", CONVERTED)
def test_odd_pictures_are_converted_by_rule(case, record_property):
    for mode in ("RGB", "L"):
        image, expected = CONVERTED[case]()
        wanted = torch.from_numpy(np.array(expected.convert(mode)))
        wanted = wanted.unsqueeze(0) if wanted.ndim == 2 else wanted.permute(2, 0, 1)
        found = to_planes(image, mode)
        # luminance of a picture that was grey may come by way of its colours
        assert found.shape == wanted.shape and (found.int() - wanted.int()).abs().max() <= (mode == "L")
        if mode == "RGB":
            image, _ = CONVERTED[case]()
            ways = {
                "collator": PGDCollator()([{"image": image, "label": 0}])["pixel_values"][0],
                "tensors": as_image_tensors([{"image": image, "label": 0}]).pixels(slice(0, 1))[0],
            }
            assert all(torch.equal(way, wanted.float() / 255) for way in ways.values())
    record_property("bad inputs refused", 1)


def cut(kind):
    image = Image.fromarray(np.random.default_rng(0).integers(0, 256, (64, 64, 3), dtype=np.uint8))
    return Image.open(io.BytesIO(coded(image, kind)[:-2000]))


def closed():
    image = opened(COLOURS, "PNG")
    image.close()
    return image


REFUSED = {
    "transparent RGBA": (lambda: with_alpha("RGBA", 254), "a picture has transparent pixels.*put it on a background"),
    "transparent LA": (lambda: with_alpha("LA", 0), "a picture has transparent pixels"),
    "transparent palette": (lambda: palette(alpha=3), "a picture has transparent pixels"),
    "palette with a transparent colour": (lambda: noted(palette(), 0), "a picture has transparent pixels"),
    "transparent grey": (lambda: noted(Image.new("L", (8, 8), 7), 7), "a picture has transparent pixels"),
    "transparent colour": (lambda: noted(Image.new("RGB", (8, 8), "red"), (255, 0, 0)), "a picture has transparent"),
    "16 bits with a transparent value": (lambda: noted(Image.fromarray(sixteen()), 257), "a picture has transparent"),
    "floats": (lambda: Image.fromarray(pixels(dtype=np.float32)), "a picture of mode 'F' says nothing of what is white"),
    "negative integers": (lambda: Image.fromarray(sixteen("<i4") - 1), "a picture of integers goes from -1 to 65534: scale it"),
    "large integers": (lambda: Image.fromarray(sixteen("<i4") + 1), "a picture of integers goes from 1 to 65536: scale it"),
    "integers of one byte": (lambda: Image.fromarray(pixels(dtype=np.int32)), "a picture of 32-bit integers .* which may mean 8 bits or 16"),
    "animated GIF": (lambda: pages("GIF"), "a picture has 2 frames or pages: choose one"),
    "animated PNG": (lambda: pages("PNG"), "a picture has 2 frames or pages"),
    "animated WebP": (lambda: pages("WEBP"), "a picture has 2 frames or pages"),
    "TIFF with pages": (lambda: pages("TIFF"), "a picture has 2 frames or pages"),
    "truncated JPEG": (lambda: cut("JPEG"), "a picture cannot be decoded .*its file is damaged or closed"),
    "truncated PNG": (lambda: cut("PNG"), "a picture cannot be decoded"),
    "truncated BMP": (lambda: cut("BMP"), "a picture cannot be decoded"),
    "closed": (closed, "a picture cannot be decoded .*its file is damaged or closed"),
    "no pixels": (lambda: Image.new("RGB", (0, 8)), "a picture of 0x8 pixels has no content"),
    "None": (lambda: None, "an image is None: pass PIL images"),
    "path": (lambda: "cat.png", "an image is a str: .*cast_column"),
    "bytes": (lambda: b"\x89PNG", "an image is a bytes"),
    "undecoded": (lambda: {"bytes": b"", "path": None}, "an image is a dict"),
    "list of names": (lambda: [["a"]], "an image is a list that is no array of numbers"),
    "object": (object, "an image is a object that is no array of numbers"),
    "ragged list": (lambda: [[1, 2], [3]], "an image is a list that is no array of numbers"),
    "truth values": (lambda: pixels(3) > 99, "an image has dtype torch.bool: pass uint8"),
    "int64": (lambda: pixels(3, dtype=np.int64), "an image has dtype torch.int64: pass uint8"),
    "complex": (lambda: pixels(3, dtype=np.complex64), "an image has dtype torch.complex64"),
    "floats of bytes": (lambda: pixels(3, dtype=np.float32), "an image has values from .* Divide by 255"),
    "NaN": (lambda: np.full((3, 8, 8), np.nan), "an image has values from nan to nan"),
    "infinite": (lambda: np.full((3, 8, 8), np.inf), "an image has values from inf"),
    "one dimension": (lambda: np.zeros(8, np.uint8), r"an image has shape \(8,\)"),
    "four dimensions": (lambda: np.zeros((1, 3, 8, 8), np.uint8), r"an image has shape \(1, 3, 8, 8\)"),
    "empty array": (lambda: np.zeros((3, 0, 8), np.uint8), r"an image has shape \(3, 0, 8\)"),
}  # fmt: skip


@pytest.mark.parametrize("case", REFUSED)
def test_bad_pictures_are_refused_with_their_row(case, record_property):
    make, match = REFUSED[case]
    for mode in ("RGB", "L", None)[: 2 if case == "transparent RGBA" else 3]:
        with pytest.raises(ValueError, match=match):
            to_pixels(make(), mode)
    with pytest.raises(ValueError, match=f"row {AT}: {match}"):
        as_image_tensors(rows_with(make()))
    with pytest.raises(ValueError, match=f"row {AT} of this batch: {match}"):
        PGDCollator()(rows_with(make()))
    for order in ([7, AT, 0], [0, 1, 2]):
        loader = DataLoader(traced(Listed(rows_with(make()))), 3, sampler=order, collate_fn=PGDCollator())
        if AT in order:
            with pytest.raises(ValueError, match=f"row {AT}: {match}"):
                next(iter(loader))
        else:
            next(iter(loader))
    record_property("bad inputs refused", 1)


def test_picture_above_the_limit_of_pil_is_refused(monkeypatch, record_property):
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 63)
    with pytest.raises(
        ValueError, match=f"row {AT}: a picture of 8x8 pixels is above PIL's limit of 63: scale it down"
    ):
        as_image_tensors(rows_with(COLOURS))
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", None)
    assert len(as_image_tensors(rows_with(COLOURS))) == COUNT
    record_property("bad inputs refused", 1)


def test_wanted_mode_must_hold_bytes(record_property):
    for mode in ("1", "P", "I", "F", "LA", "rgb"):
        with pytest.raises(ValueError, match=f"mode='{mode}' does not hold 8 bits per channel: choose one of RGB, L"):
            to_pixels(COLOURS, mode)
    record_property("bad inputs refused", 6)


def test_transparency_is_kept_where_it_is_wanted():
    see_through = with_alpha("RGBA", 3)
    expected = torch.from_numpy(np.array(see_through)).permute(2, 0, 1)
    assert torch.equal(to_planes(see_through, "RGBA"), expected) and torch.equal(
        to_planes(see_through, None), expected
    )


def test_ordinary_pictures_keep_every_byte():
    for mode, image in (("RGB", COLOURS), ("L", GREY), (None, COLOURS), (None, GREY)):
        found = to_planes(image, mode)
        assert np.array_equal(found.permute(1, 2, 0).squeeze().numpy(), np.array(image))
    low = Image.fromarray(pixels(3)[:3])  # three rows are not three channels
    assert to_planes(low).shape == (3, 3, 8) and np.array_equal(to_planes(low).permute(1, 2, 0).numpy(), pixels(3)[:3])


@pytest.mark.parametrize("kind", ["read only", "mirrored", "big-endian floats", "half floats"])
def test_arrays_of_every_layout_are_taken(kind):
    array = pixels(3)
    if kind == "read only":
        array.flags.writeable = False
    if kind == "mirrored":
        array = array[:, ::-1]
    if "floats" in kind:
        array = (pixels(3) / 255).astype(">f4" if kind.startswith("big") else np.float16)
    wanted = array.astype(np.float32) if "floats" in kind else array.astype(np.float32) / np.float32(255)
    assert np.array_equal(to_pixels(array).permute(1, 2, 0).numpy(), wanted)
