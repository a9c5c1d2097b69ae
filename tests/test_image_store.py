"""Decoded images that are kept beside the cache of their data set."""

import os

import datasets
import numpy as np
import pytest
import torch
from conftest import tiny_data
from PIL import Image

import bmtard_hooks.image_tensors as image_tensors
from bmtard_hooks.image_store import find_store
from bmtard_hooks.image_tensors import as_image_tensors, load_images

COUNT = 12


@pytest.fixture
def data():
    return tiny_data(COUNT)


@pytest.fixture
def rows(data, tmp_path):
    """A data set whose table lies in a cache."""
    pictures = [Image.fromarray(image.permute(1, 2, 0).numpy()) for image in data.images]
    features = datasets.Features({"image": datasets.Image(), "label": datasets.ClassLabel(names=list("abcd"))})
    made = datasets.Dataset.from_dict({"image": pictures, "label": data.labels.tolist()}, features=features)
    made.to_parquet(tmp_path / "set" / "train-00000-of-00001.parquet")
    return datasets.load_dataset(str(tmp_path / "set"), split="train", cache_dir=str(tmp_path / "cache"))


@pytest.fixture
def decoded(monkeypatch):
    """Counts the images that are decoded."""
    positions, decode = [], image_tensors._decode
    monkeypatch.setattr(image_tensors, "_decode", lambda *args: positions.append(1) or decode(*args))
    return positions


def stores(tmp_path):
    return sorted(path for path in (tmp_path / "cache").rglob("*images-*"))


def test_images_are_decoded_at_the_first_start_alone(rows, data, decoded, tmp_path):
    first = as_image_tensors(rows)
    (path,) = stores(tmp_path)
    assert path.parent == tmp_path.joinpath(rows.cache_files[0]["filename"]).parent
    assert all(word in path.name for word in (rows._fingerprint, "image", "RGB"))
    decoded.clear()
    again = as_image_tensors(rows)
    assert len(decoded) == 3  # compared with the file
    for found in (first, again):
        assert torch.equal(found.images, data.images) and torch.equal(found.labels, data.labels)
        assert (found.label_names, found.split_name) == (list("abcd"), "train")


def test_each_way_to_decode_has_a_file_of_its_own(rows, tmp_path):
    found = [as_image_tensors(rows, **options) for options in ({}, {"mode": "L"}, {"image_size": 4})]
    assert len(stores(tmp_path)) == 3
    again = [as_image_tensors(rows, **options) for options in ({}, {"mode": "L"}, {"image_size": 4})]
    assert [tuple(each.images.shape[1:]) for each in again] == [(3, 8, 8), (1, 8, 8), (3, 4, 4)]
    assert all(torch.equal(a.images, b.images) for a, b in zip(found, again, strict=True))


def test_other_rows_have_another_file(rows, tmp_path):
    as_image_tensors(rows)
    turned = rows.map(lambda row: {"image": row["image"].rotate(180)})
    assert torch.equal(as_image_tensors(turned).images, tiny_data(COUNT).images.flip(2, 3))
    assert len(stores(tmp_path)) == 2


def test_limit_reads_the_start_of_what_was_kept_and_keeps_nothing(rows, data, decoded, tmp_path):
    assert torch.equal(as_image_tensors(rows, limit=5).images, data.images[:5]) and not stores(tmp_path)
    as_image_tensors(rows)
    decoded.clear()
    few = as_image_tensors(rows, limit=5)
    assert torch.equal(few.images, data.images[:5]) and torch.equal(few.labels, data.labels[:5]) and len(decoded) == 3


def test_mapped_images_can_be_divided_and_written_to_without_touching_the_file(rows, data, tmp_path):
    as_image_tensors(rows)
    before = stores(tmp_path)[0].read_bytes()
    mapped = as_image_tensors(rows)
    rest, held_out = mapped.split(3)
    assert len(rest) == COUNT - 3 and len(held_out) == 3
    assert torch.equal(mapped.subset([3, 1]).images, data.images[[3, 1]])
    mapped.images.zero_()
    assert stores(tmp_path)[0].read_bytes() == before
    assert torch.equal(as_image_tensors(rows).images, data.images)


@pytest.mark.parametrize("damage", ["empty", "cut", "text", "other dtype", "other count", "other images", "old"])
def test_file_that_does_not_fit_is_made_anew(rows, data, damage, tmp_path):
    as_image_tensors(rows)
    (path,) = stores(tmp_path)
    whole = path.read_bytes()
    other = {
        "other dtype": data.images.float().numpy(),
        "other count": data.images.repeat(2, 1, 1, 1).numpy(),
        "other images": data.images.flip(0).numpy(),
    }
    if damage in other:
        np.save(path, other[damage])
    elif damage == "old":
        np.save(path, np.concatenate([data.images[:1], data.images[1:].flip(3)]))
        os.utime(path, (0, 0))
    else:
        path.write_bytes({"empty": b"", "cut": whole[:-7], "text": b"no images"}[damage])
    assert torch.equal(as_image_tensors(rows).images, data.images)
    assert path.read_bytes() == whole


def test_processes_that_start_together_do_not_clash(rows, data, monkeypatch, tmp_path):
    store = find_store(rows, "image", "RGB", None, lambda index: data.images[index])
    save, found = np.save, []

    def interrupted(file, array, **options):
        monkeypatch.setattr(np, "save", save)
        file.write(b"half of it")
        assert store.read() is None
        found.append(store.write(data.images))  # another process is faster
        file.seek(0)
        save(file, array, **options)

    monkeypatch.setattr(np, "save", interrupted)
    found += [store.write(data.images), store.read()]
    assert all(torch.equal(images, data.images) for images in found)
    assert stores(tmp_path) == [store.path]  # nothing half written is left


def test_place_that_cannot_be_written_only_costs_time(rows, data, tmp_path):
    store = find_store(rows, "image", "RGB", None, lambda index: data.images[index])
    store.path.mkdir()
    assert torch.equal(as_image_tensors(rows).images, data.images)
    assert stores(tmp_path) == [store.path]


@pytest.mark.parametrize("case", ["switched off", "no caching", "selected", "formatted", "in memory", "floats"])
def test_nothing_is_kept_of_other_rows(rows, data, case, tmp_path):
    options, expected = {}, data.images
    if case == "switched off":
        options["keep"] = False
    elif case == "no caching":
        datasets.disable_caching()
    elif case == "selected":
        rows, expected = rows.select([4, 2]), expected[[4, 2]]
    elif case == "formatted":
        rows = rows.with_format("torch")
    elif case == "in memory":
        rows = datasets.Dataset.from_dict({"image": rows["image"][:], "label": rows["label"][:]})
    else:
        array = datasets.Array3D((3, 8, 8), "float32")
        features = datasets.Features({"image": array, "label": datasets.Value("int64")})
        expected = data.images.float() / 300
        path = str(tmp_path / "floats.parquet")
        floats = {"image": expected.numpy(), "label": data.labels.tolist()}
        datasets.Dataset.from_dict(floats, features=features).to_parquet(path)
        rows = datasets.Dataset.from_parquet(path, cache_dir=str(tmp_path / "cache")).with_format(None)
    try:
        assert torch.equal(as_image_tensors(rows, **options).images, expected)
    finally:
        datasets.enable_caching()
    assert not stores(tmp_path)


def test_load_images_keeps_what_it_decodes(rows, data, decoded, monkeypatch, tmp_path):
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", tmp_path / "cache")
    load_images(str(tmp_path / "set"), "train", keep=False)
    assert not stores(tmp_path)
    load_images(str(tmp_path / "set"), "train")
    decoded.clear()
    assert torch.equal(load_images(str(tmp_path / "set"), "train").images, data.images) and len(decoded) == 3
