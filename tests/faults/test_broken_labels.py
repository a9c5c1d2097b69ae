"""Labels that are none: refused with the number of their row."""

import datasets
import numpy as np
import pytest
import torch
from conftest import tiny_data
from picturing import AT, COLOURS, COUNT, Listed, coded, hub_rows, rows_with
from torch.utils.data import DataLoader

from bmtard_hooks import ImageTensors, PGDCollator
from bmtard_hooks.data import traced
from bmtard_hooks.image_tensors import as_image_tensors

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
