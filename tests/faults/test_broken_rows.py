"""Broken pictures inside a data set: the row is named, also in training and in data workers."""

import pickle

import numpy as np
import pytest
import torch
from conftest import tiny_data
from picturing import (
    AT,
    COLOURS,
    COUNT,
    Listed,
    coded,
    hub_rows,
    hub_rows_with,
    pages,
    pixels,
    rows_with,
    with_alpha,
)
from PIL import Image
from torch.utils.data import DataLoader, Subset, default_collate

from bmtard_hooks import PGDCollator
from bmtard_hooks.data import traced
from bmtard_hooks.image_tensors import as_image_tensors

# Data sets of files, decoded by the hub library.


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
