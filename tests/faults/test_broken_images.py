"""Pictures and labels that are odd or broken: converted by rule, or refused with the number of their row."""

import io
import multiprocessing
import os
import pickle
import warnings
import zipfile

import datasets
import numpy as np
import pytest
import torch
from conftest import tiny_data
from forging import Canary
from PIL import Image
from torch.utils.data import DataLoader, Dataset, Subset, default_collate

from bmtard_hooks import ImageTensors, PGDCollator
from bmtard_hooks.data import traced
from bmtard_hooks.decoding import to_pixels, to_planes
from bmtard_hooks.image_tensors import as_image_tensors

COUNT, AT = 8, 5
"""Rows of a data set, and the broken one among them."""


def pixels(*shape, dtype=np.uint8, seed=0):
    return np.random.default_rng(seed).integers(0, 256, (8, 8, *shape)).astype(dtype)


def coded(image, kind, **options):
    buffer = io.BytesIO()
    image.save(buffer, kind, **options)
    return buffer.getvalue()


def opened(image, kind, **options):
    """A picture as it comes from a file, not yet decoded."""
    return Image.open(io.BytesIO(coded(image, kind, **options)))


def with_alpha(mode, alpha):
    image = Image.fromarray(pixels(3)).convert(mode[:-1]).convert(mode)
    image.putalpha(Image.fromarray(np.full((8, 8), alpha, dtype=np.uint8)))
    return image


def palette(alpha=None):
    image = Image.fromarray(pixels(3)).quantize(16)
    if alpha is not None:
        image.info["transparency"] = bytes([alpha] * 16)
    return image


def noted(image, transparency):
    image.info["transparency"] = transparency
    return image


def sixteen(kind="<u2", values=(0, 128, 129, 257, 32896, 65406, 65407, 65535)):
    return np.tile(np.array(values, dtype=kind), (8, 1))


SCALED = np.tile(np.array([0, 0, 1, 1, 128, 254, 255, 255], dtype=np.uint8), (8, 1))
COLOURS, GREY = Image.fromarray(pixels(3)), Image.fromarray(pixels())


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


def pages(kind):
    frames = [Image.fromarray(pixels(3, seed=seed)) for seed in (0, 1)]
    return opened(frames[0], kind, save_all=True, append_images=frames[1:])


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


def rows_with(image, label=None):
    rows = [
        {"image": row["pixel_values"], "label": int(row["labels"])}
        for row in map(tiny_data(COUNT).__getitem__, range(COUNT))
    ]
    rows[AT] = {"image": image, "label": rows[AT]["label"] if label is None else label}
    return rows


class Listed(Dataset):
    """A map-style data set of rows that were made before."""

    def __init__(self, rows):
        self.rows = rows

    def __len__(self):
        return len(self.rows)

    def __getitem__(self, index):
        return self.rows[index]


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


# Data sets of files, decoded by the hub library.


def hub_rows(files, labels=None):
    names = datasets.ClassLabel(names=list("abcd"))
    features = datasets.Features(
        {"image": datasets.Image(), "label": names if labels is None else datasets.Value("string")}
    )
    table = {
        "image": [{"bytes": content, "path": None} for content in files],
        "label": labels or [i % 4 for i in range(len(files))],
    }
    return datasets.Dataset.from_dict(table, features=features)


def hub_rows_with(content):
    files = [coded(Image.fromarray(pixels(3, seed=seed)), "PNG") for seed in range(COUNT)]
    files[AT] = content
    return hub_rows(files)


FILES = {
    "truncated JPEG": (lambda: coded(Image.fromarray(np.tile(pixels(3), (8, 8, 1))), "JPEG")[:-1500], "cannot be read .*truncated"),
    "truncated PNG": (lambda: coded(Image.fromarray(np.tile(pixels(3), (8, 8, 1))), "PNG")[:300], "cannot be read"),
    "text": (lambda: b"no picture", "cannot be read .*UnidentifiedImageError.*repair its file, or leave the row out"),
    "empty file": (lambda: b"", "cannot be read"),
    "animation": (lambda: pages("GIF").fp.getvalue(), "a picture has 2 frames"),
    "transparent": (lambda: coded(with_alpha("RGBA", 7), "PNG"), "a picture has transparent pixels"),
    "floats": (lambda: coded(Image.fromarray(pixels(dtype=np.float32)), "TIFF"), "a picture of mode 'F'"),
}  # fmt: skip


@pytest.mark.parametrize("case", FILES)
def test_broken_files_of_a_data_set_are_named(case, record_property):
    make, match = FILES[case]
    rows = hub_rows_with(make())
    with pytest.raises(ValueError, match=f"row {AT}:? {match}"):
        as_image_tensors(rows)
    as_image_tensors(rows, limit=AT)
    with pytest.raises(ValueError, match=f"row 0:? {match}"):
        as_image_tensors(hub_rows([make()] * 2))
    loader = DataLoader(traced(rows), 4, shuffle=True, collate_fn=PGDCollator())
    with pytest.raises(ValueError, match=f"row {AT}:? {match}"):
        list(loader)
    record_property("bad inputs refused", 1)


@pytest.mark.parametrize(
    "use, workers", [("training", 0), ("training", 1), ("evaluation", 0), ("training with a collator of another's", 0)]
)
def test_training_names_the_row_of_a_broken_picture(use, workers, make_trainer, record_property):
    broken, whole = hub_rows_with(b"no picture"), hub_rows_with(coded(COLOURS, "PNG"))
    options = {"data": whole, "eval_dataset": broken} if use == "evaluation" else {"data": broken}
    if "another" in use:
        options["data_collator"] = lambda rows: PGDCollator()(list(rows))
    trainer = make_trainer(dataloader_num_workers=workers, **options)
    with pytest.raises(ValueError, match=f"row {AT} cannot be read .*UnidentifiedImageError"):
        trainer.evaluate() if use == "evaluation" else trainer.train()
    record_property("bad inputs refused", 1)


def test_training_names_the_row_of_a_picture_that_the_rules_refuse(make_trainer, record_property):
    trainer = make_trainer(data=hub_rows_with(coded(with_alpha("RGBA", 7), "PNG")))
    with pytest.raises(ValueError, match=f"row {AT}: a picture has transparent pixels"):
        trainer.train()
    record_property("bad inputs refused", 1)


def test_rows_that_are_traced_train_the_same_network(make_trainer, monkeypatch):
    rows, weights = hub_rows_with(coded(COLOURS, "PNG")), []
    for trace in (True, False):
        if not trace:
            monkeypatch.setattr("bmtard_hooks.preparing.traced", lambda given: given)
        trainer = make_trainer(data=rows, num_train_epochs=2)
        trainer.train()
        assert trainer.train_dataset is rows
        weights.append(trainer.model.state_dict())
    assert all(torch.equal(weights[0][name], weights[1][name]) for name in weights[0])


class Told(Listed):
    """Hears of epochs, and raises an error of its own."""

    def set_epoch(self, epoch):
        self.epoch = epoch

    def __getitem__(self, index):
        if index == AT:
            raise KeyError("no such patient")
        return super().__getitem__(index)


def test_traced_rows_are_otherwise_the_data_set(caplog):
    rows = traced(Told(rows_with(COLOURS)))
    rows.set_epoch(3)
    assert len(rows) == COUNT and rows.rows.epoch == 3 and rows[0] is rows.rows[0]
    assert type(pickle.loads(pickle.dumps(rows)).rows) is Told
    with pytest.raises(AttributeError):
        rows.nothing  # noqa: B018
    with pytest.raises(KeyError, match="no such patient"):
        rows.__getitems__([0, AT])
    assert f"row {AT} of the data set raised KeyError" in caplog.text
    assert isinstance(rows.__getitems__([0, 1]), list)
    assert default_collate(rows.__getitems__([0, 1]))["label"].shape == (2,)


def test_tensors_in_memory_and_streams_are_not_traced():
    data = tiny_data()
    assert traced(data) is data
    stream = (row for row in ())
    assert traced(stream) is stream
    gathered = traced(Subset(data, range(4))).__getitems__([1, 2])
    assert torch.equal(gathered.images, data.images[1:3])  # still two tensors


# Labels.

LABELS = {
    "NaN": (float("nan"), "the label nan is no whole number: pass a class index"),
    "infinite": (float("inf"), "the label inf is no whole number"),
    "fraction": (1.5, "the label 1.5 is no whole number"),
    "text": ("cat", r"the label 'cat' is no whole number: make class indices of names with class_encode_column\(\)"),
    "digits": ("3", "the label '3' is no whole number"),
    "list": ([1, 2], r"the label \[1, 2\] is no whole number"),
    "vector": (torch.tensor([0, 1]), "the label .* is no whole number"),
    "NaN of NumPy": (np.float32("nan"), "the label .* is no whole number"),
    "complex": (1j, "the label 1j is no whole number"),
}


@pytest.mark.parametrize("case", LABELS)
def test_bad_labels_are_refused_with_their_row(case, record_property):
    label, match = LABELS[case]
    rows = rows_with(COLOURS, label)
    with pytest.raises(ValueError, match=f"row {AT}: {match}"):
        as_image_tensors(rows)
    with pytest.raises(ValueError, match=f"row {AT} of this batch: {match}"):
        PGDCollator()(rows)
    with pytest.raises(ValueError, match=f"row {AT}: {match}"):
        list(DataLoader(traced(Listed(rows)), 4, shuffle=True, collate_fn=PGDCollator()))
    record_property("bad inputs refused", 1)


@pytest.mark.parametrize("label", [-1, None, 4, 99])
def test_labels_outside_the_classes_are_refused_with_their_row(label, record_property):
    rows = rows_with(COLOURS)
    rows[AT]["label"] = label
    loader = DataLoader(traced(Listed(rows)), 4, sampler=[0, AT, 1, 2], collate_fn=PGDCollator(num_classes=4))
    with pytest.raises(ValueError, match=rf"labels from .* do not fit 4 classes \(0 to 3\), first in row {AT}"):
        list(loader)
    if label in (-1, None):
        with pytest.raises(ValueError, match=f"1 of 8 images have the label -1, .* first row {AT}: choose a split"):
            as_image_tensors(rows)
    record_property("bad inputs refused", 1)


def test_label_above_the_named_classes_is_refused_with_its_row(record_property):
    table = {"image": [COLOURS] * COUNT, "label": [0] * COUNT}
    features = datasets.Features({"image": datasets.Image(), "label": datasets.ClassLabel(names=list("abcd"))})
    rows = datasets.Dataset.from_dict(table, features=features)
    wrong = rows.with_format("arrow")[:]
    column = wrong.column("label").to_pylist()
    column[AT] = 7
    import pyarrow

    rows = datasets.Dataset(wrong.set_column(1, "label", pyarrow.array(column)), info=rows.info)
    with pytest.raises(ValueError, match=rf"row {AT}: the label 7 is none of 4 classes \(0 to 3\)"):
        as_image_tensors(rows)
    record_property("bad inputs refused", 1)


def test_text_in_the_label_column_is_named_before_training(make_trainer, record_property):
    labels = ["0", "1"] * 4
    with pytest.raises(ValueError, match="row 0: the label '0' is no whole number: make class indices"):
        make_trainer(data=hub_rows([coded(COLOURS, "PNG")] * COUNT, labels))
    record_property("bad inputs refused", 1)


@pytest.mark.parametrize(
    "label", [2, 2.0, np.int64(2), np.uint8(2), np.float32(2), torch.tensor(2), torch.tensor([2]), np.array(2)]
)
def test_whole_numbers_of_every_kind_are_labels(label):
    rows = rows_with(COLOURS, label)
    assert as_image_tensors(rows).labels[AT] == 2 == PGDCollator()(rows)["labels"][AT]
    truth = rows_with(COLOURS, True)
    assert as_image_tensors(truth).labels[AT] == 1


def test_labels_of_tensors_must_be_whole(record_property):
    data = tiny_data(4)
    with pytest.raises(ValueError, match=r"row 2: the label 1\.5 is no whole number"):
        ImageTensors(data.images, torch.tensor([0.0, 1.0, 1.5, 2.0]))
    with pytest.raises(ValueError, match="row 3: the label nan is no whole number"):
        ImageTensors(data.images, torch.tensor([0.0, 1.0, 2.0, torch.nan]))
    record_property("bad inputs refused", 2)


# The file of decoded images.


@pytest.fixture
def kept(tmp_path):
    """A data set with a cache, its images, and the file that they are kept in."""
    data = tiny_data(COUNT)
    pictures = [Image.fromarray(image.permute(1, 2, 0).numpy()) for image in data.images]
    features = datasets.Features({"image": datasets.Image(), "label": datasets.Value("int64")})
    made = datasets.Dataset.from_dict({"image": pictures, "label": data.labels.tolist()}, features=features)
    made.to_parquet(tmp_path / "set" / "train-00000-of-00001.parquet")
    rows = datasets.load_dataset(str(tmp_path / "set"), split="train", cache_dir=str(tmp_path / "cache"))
    as_image_tensors(rows)
    (path,) = (tmp_path / "cache").rglob("images-*")
    return rows, data.images, path


@pytest.mark.parametrize(
    "damage", ["pickle", "pickled array", "zip bomb", "gigabytes", "pipe", "another's", "directory"]
)
def test_kept_images_that_are_hostile_are_not_read(damage, kept, tmp_path, record_property):
    rows, images, path = kept
    canary = tmp_path / "canary"
    whole = path.read_bytes()
    path.unlink()
    if damage == "pickle":
        path.write_bytes(pickle.dumps(Canary(canary)))
    elif damage == "pickled array":
        np.save(path, np.array([Canary(canary)] * COUNT, dtype=object), allow_pickle=True)
    elif damage == "zip bomb":
        with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive:
            archive.writestr("images.npy", bytes(2**26))
    elif damage == "gigabytes":
        header = np.lib.format.header_data_from_array_1_0(np.zeros((COUNT, 3, 8, 8), np.uint8))
        with path.open("wb") as file:
            np.lib.format.write_array_header_1_0(file, {**header, "shape": (COUNT, 3, 2**20, 2**20)})
    elif damage == "pipe":
        os.mkfifo(path)
    elif damage == "directory":
        path.mkdir()
    else:
        if not hasattr(os, "geteuid") or os.geteuid() != 0:
            pytest.skip("only root can give a file to somebody else")
        path.write_bytes(whole[:-500] + bytes(100) + whole[-400:])  # in row 5, which is not compared
        os.chown(path, 65534, 65534)
    assert torch.equal(as_image_tensors(rows).images, images)
    assert not canary.exists()
    if damage != "directory":
        assert path.read_bytes() == whole
    record_property("hostile files refused", 1)


def _decode_together(rows, barrier, answers):
    barrier.wait(60)
    answers.put(as_image_tensors(rows).images.clone().numpy())


def test_processes_that_decode_for_the_first_time_together_both_have_the_images(kept):
    rows, images, path = kept
    path.unlink()
    context = multiprocessing.get_context("fork")
    barrier, answers = context.Barrier(2), context.Queue()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", DeprecationWarning)  # of forking where there are threads
        workers = [context.Process(target=_decode_together, args=(rows, barrier, answers)) for _ in range(2)]
        for worker in workers:
            worker.start()
    found = [answers.get(timeout=60) for _ in workers]
    for worker in workers:
        worker.join(60)
    assert all(np.array_equal(each, images.numpy()) for each in found)
    assert [each.name for each in path.parent.glob("*images-*")] == [path.name]
    assert torch.equal(as_image_tensors(rows).images, images)
