"""The file of decoded images: never believed if it does not fit, and whole whoever writes it."""

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
from picturing import COUNT
from PIL import Image

from bmtard_hooks.image_tensors import as_image_tensors

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
