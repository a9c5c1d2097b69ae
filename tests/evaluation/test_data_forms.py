"""evaluate_robustness takes two tensors as RobustBench has them, and says what to pass in place of what it cannot take."""

import pytest
import torch
from conftest import tiny_data
from datasets import Dataset, DatasetDict
from scene import short, trained

from bmtard_hooks import as_image_tensors, evaluate_robustness


@pytest.fixture(scope="module")
def scene():
    return trained()


@pytest.mark.parametrize("form", ["floats", "doubles", "bytes", "arrays", "channels last", "list"])
def test_two_tensors_are_measured_as_the_data_set_they_are(scene, form):
    net, data = scene
    x, y = data.images, data.labels
    given = {
        "floats": (x / 255, y),
        "doubles": (x.double() / 255, y.int()),
        "bytes": (x, y),
        "arrays": ((x / 255).numpy(), y.numpy()),
        "channels last": (x.permute(0, 2, 3, 1), y),
        "list": [x / 255, y],
    }[form]
    images = as_image_tensors(given)
    assert images.images.dtype == torch.uint8 and torch.equal(images.images, x) and torch.equal(images.labels, y)
    if form in ("floats", "bytes"):
        found, expected = (evaluate_robustness(net, rows, "fgsm", **short()) for rows in (given, data))
        assert found.row("fgsm") == expected.row("fgsm")


def test_two_tensors_keep_pixels_that_are_no_bytes():
    x, y = torch.rand(6, 3, 8, 8), torch.tensor([0, 1, 2, 0, 1, 2])
    assert torch.equal(as_image_tensors((x, y)).images, x) and len(as_image_tensors((x, y), limit=4)) == 4


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ((torch.full((2, 3, 8, 8), 2.0), torch.zeros(2)), r"pixels must be in \[0, 1\]"),
        ((torch.zeros(2, 3, 8, 8, dtype=torch.int64), torch.zeros(2)), "expected uint8 or float32"),
        ((torch.zeros(2, 3, 8, 8), torch.zeros(3)), "and 3 labels"),
        ((torch.zeros(2, 3, 8, 8), torch.tensor([0, -1])), "have the label -1"),
        ((torch.zeros(0, 3, 8, 8), torch.zeros(0)), "empty"),
    ],
)
def test_two_tensors_that_are_no_data_set_are_refused(given, message):
    with pytest.raises(ValueError, match=message):
        as_image_tensors(given)


def test_a_loader_a_name_and_splits_are_answered_with_what_to_pass(scene):
    net, _ = scene
    splits = DatasetDict({"test": Dataset.from_dict({"label": [0]})})
    for given, message in (
        (torch.utils.data.DataLoader(tiny_data(8)), "pass loader.dataset"),
        ("photos", r"pass load_images\('photos', 'test'\)"),
        (splits, r"dictionary of 'test': pass one of them, rows\['test'\]"),
    ):
        with pytest.raises(TypeError, match=message):
            evaluate_robustness(net, given, "fgsm", **short())


def test_two_rows_are_still_two_rows():
    rows = [(torch.rand(3, 8, 8), 0), (torch.rand(3, 8, 8), 1)]
    assert len(as_image_tensors(rows)) == 2 and as_image_tensors(rows).labels.tolist() == [0, 1]
