"""Rows that are gathered at once, and whoever gets them."""

import copy
import pickle

import pytest
import torch
from conftest import tiny_data
from torch.utils.data import DataLoader, Subset, default_collate

from bmtard_hooks import ImageTensors, PGDCollator
from bmtard_hooks.data import NumberedCollate, numbered
from bmtard_hooks.image_rows import ImageRows

SOME = [5, 0, 5, -2]


def equal(first, second):
    assert set(first) == set(second)
    return all(torch.equal(first[name], second[name]) for name in first)


def test_gathered_rows_are_a_sequence_of_the_same_dictionaries():
    data = tiny_data()
    rows, expected = data.__getitems__(SOME), [data[index] for index in SOME]
    assert isinstance(rows, ImageRows) and len(rows) == 4
    assert all(equal(*pair) for pair in zip(rows, expected, strict=True))
    assert equal(rows[-1], expected[-1]) and [*map(set, rows[1:3])] == [{"pixel_values", "labels"}] * 2
    with pytest.raises(IndexError):
        rows[4]
    with pytest.raises((IndexError, RuntimeError)):
        data.__getitems__([16])


@pytest.mark.parametrize("wrap", [lambda rows: rows, lambda rows: pickle.loads(pickle.dumps(rows)), copy.deepcopy])
def test_every_collator_can_read_gathered_rows(wrap):
    data = tiny_data()
    rows, expected = wrap(data.__getitems__(SOME)), [data[index] for index in SOME]
    assert equal(default_collate(rows), default_collate(expected))
    assert torch.equal(torch.stack([row["pixel_values"] for row in rows]), data.images[SOME])
    assert equal(PGDCollator()(rows), PGDCollator()(expected))


def test_batch_does_not_share_memory_with_the_data():
    data = tiny_data()
    data.__getitems__([0, 1]).images.zero_()
    assert torch.equal(data.images, tiny_data().images)


@pytest.mark.parametrize("workers", [0, 1])
@pytest.mark.parametrize("wrap", [lambda rows: rows, lambda rows: Subset(Subset(rows, range(1, 15)), [9, 3, 0, 1, 2])])
def test_loaders_give_the_same_with_and_without_gathering(wrap, workers):
    class OneByOne(ImageTensors):
        def __getitems__(self, indices):
            return [self[index] for index in indices]

    data = tiny_data()
    alone = OneByOne(data.images, data.labels)
    loaders = [
        DataLoader(wrap(rows), 3, collate_fn=PGDCollator(), num_workers=workers, multiprocessing_context="fork" if workers else None)
        for rows in (data, alone)
    ]  # fmt: skip
    assert all(equal(*batches) for batches in zip(*loaders, strict=True))


def test_own_rows_of_a_subclass_are_not_passed_over():
    class Darkened(ImageTensors):
        def __getitem__(self, index):
            return {**super().__getitem__(index), "pixel_values": self.images[index] // 2}

    data = tiny_data()
    dark = Darkened(data.images, data.labels)
    (batch,) = DataLoader(dark, 16, collate_fn=PGDCollator())
    assert torch.equal(batch["pixel_values"], (data.images // 2).float() / 255)


@pytest.mark.parametrize("make", [
    lambda data: data,
    lambda data: Subset(data, range(16)),
    lambda data: [data[index] for index in range(16)],
    lambda data: [(row["pixel_values"], int(row["labels"])) for row in map(data.__getitem__, range(16))],
])  # fmt: skip
@pytest.mark.parametrize("workers", [0, 1])
def test_numbered_batches_know_their_positions(make, workers):
    data = tiny_data()
    loader = DataLoader(
        numbered(make(data)), 3, sampler=[4, 1, 3, 2], collate_fn=NumberedCollate(PGDCollator()), num_workers=workers,
        multiprocessing_context="fork" if workers else None,
    )  # fmt: skip
    batches = list(loader)
    assert [batch["image_index"].tolist() for batch in batches] == [[4, 1, 3], [2]]
    found = torch.cat([batch["pixel_values"] for batch in batches])
    assert torch.equal(found, data.images[[4, 1, 3, 2]].float() / 255)


def test_numbered_batch_is_a_sequence_of_numbered_rows():
    rows = numbered(tiny_data())
    batch = rows.__getitems__([7, 2])
    assert [row.position for row in batch] == [7, 2] and [row.position for row in batch[1:]] == [2]
    assert equal(batch[0].row, rows[7].row) and len(batch) == 2
    fresh = rows.__getitems__([7, 2])
    NumberedCollate(PGDCollator())(fresh)
    assert fresh.rows.untouched  # taken as two tensors, not row by row
    listed = NumberedCollate(PGDCollator())(list(batch))
    assert equal(listed, NumberedCollate(PGDCollator())(rows.__getitems__([7, 2])))


def test_a_loader_of_the_hub_library_fetches_numbered_batches_at_once():
    import datasets

    asked = []
    rows = datasets.Dataset.from_dict({"file": list(range(6)), "label": [0] * 6})
    rows.set_transform(
        lambda batch: asked.append(batch["file"]) or {**batch, "image": [torch.zeros(3, 2, 2)] * len(batch["file"])}
    )
    batches = list(DataLoader(numbered(rows), 4, collate_fn=NumberedCollate(PGDCollator())))
    assert asked == [[0, 1, 2, 3], [4, 5]] and batches[1]["image_index"].tolist() == [4, 5]
