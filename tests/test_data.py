import datasets
import numpy as np
import pytest
import torch
from PIL import Image

from bmtard_hooks import PGDSettings
from bmtard_hooks.attacks.pgd import draw_noise_by_image
from bmtard_hooks.data import NumberedCollate, augment, class_count, is_map_style, numbered
from bmtard_hooks.decoding import as_pixels
from bmtard_hooks.first_rows import absent_classes
from bmtard_hooks.image_tensors import ImageTensors, as_image_tensors, load_images


@pytest.fixture
def folder(tmp_path):
    """A data set in the hub's parquet layout."""
    pixels = np.random.default_rng(0).integers(0, 256, (12, 6, 5, 3), dtype=np.uint8)
    rows = {"img": [Image.fromarray(image) for image in pixels], "label": [i % 3 for i in range(12)]}
    features = datasets.Features({"img": datasets.Image(), "label": datasets.ClassLabel(names=["a", "b", "c"])})
    for split in ("train", "test"):
        datasets.Dataset.from_dict(rows, features=features).to_parquet(
            tmp_path / "set" / f"{split}-00000-of-00001.parquet"
        )
    return tmp_path / "set", pixels


def test_load_images_decodes_a_local_directory_once(folder, monkeypatch, tmp_path):
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", tmp_path / "cache")
    directory, pixels = folder
    data = load_images(str(directory), "test")
    assert torch.equal(data.images, torch.from_numpy(pixels).permute(0, 3, 1, 2))
    assert data.labels.tolist() == [i % 3 for i in range(12)]
    assert (data.label_names, data.num_classes) == (["a", "b", "c"], 3)
    assert len(load_images(str(directory), "train", limit=5)) == 5
    with pytest.raises(ValueError, match=r"no image column 'scan' among \['img', 'label'\]"):
        load_images(str(directory), "test", image_column="scan")


def test_class_count_comes_from_the_data_sets_features(folder):
    rows = datasets.Dataset.from_parquet(str(folder[0] / "test-00000-of-00001.parquet"))
    assert class_count(rows) == 3
    assert class_count([1, 2]) is None


def per_image_crop_and_flip(image, top, left, flip, padding):
    channels, height, width = image.shape
    padded = torch.zeros(channels, height + 2 * padding, width + 2 * padding, dtype=image.dtype)
    padded[:, padding : padding + height, padding : padding + width] = image
    cropped = padded[:, top : top + height, left : left + width]
    return torch.stack([row[:, torch.arange(width - 1, -1, -1)] for row in cropped]) if flip else cropped


def pictures_as(kind, *shape):
    bytes_ = torch.randint(0, 256, shape, generator=torch.Generator().manual_seed(0), dtype=torch.uint8)
    images = bytes_ if kind == "bytes" else as_pixels(bytes_)
    return images.contiguous(memory_format=torch.channels_last) if kind == "channels last" else images


@pytest.mark.parametrize("kind", ["bytes", "floats of bytes", "channels last"])
@pytest.mark.parametrize("shape, padding", [((3, 7, 5), 2), ((1, 6, 6), 4), ((4, 3, 8), 1), ((3, 5, 5), 0)])
def test_batched_augmentation_equals_the_per_image_definition(kind, shape, padding):
    images = pictures_as(kind, 32, *shape)
    found = augment(images, "crop_flip", padding, torch.Generator().manual_seed(3))
    generator = torch.Generator().manual_seed(3)
    tops = lefts = torch.zeros(32, dtype=torch.long)
    if padding:
        tops, lefts = (torch.randint(0, 2 * padding + 1, (32,), generator=generator) for _ in range(2))
    flips = torch.rand(32, generator=generator) < 0.5
    assert len(set(tops.tolist())) == 2 * padding + 1 and 0 < flips.sum() < 32 and found.dtype == images.dtype
    for i in range(32):
        expected = per_image_crop_and_flip(images[i], int(tops[i]), int(lefts[i]), bool(flips[i]), padding)
        assert torch.equal(found[i], expected)


def test_layout_that_augmentation_gives():
    rows, pixels = pictures_as("floats of bytes", 4, 3, 8, 6), pictures_as("channels last", 4, 3, 8, 6)
    for images in (rows, pixels):
        assert augment(images, "crop_flip").is_contiguous(memory_format=torch.channels_last)
        assert augment(images, "flip").stride() == images.stride()


@pytest.mark.parametrize("kind", ["crop_flip", "crop", "flip"])
def test_augmentation_never_waits_for_the_device(kind):
    images = torch.empty(8, 3, 6, 6, dtype=torch.uint8, device="meta")  # has no values that could be looked at
    assert augment(as_pixels(images), kind).shape == images.shape


@pytest.mark.parametrize("kind", ["none", "crop", "flip", "crop_flip"])
def test_augmentation_keeps_shape_and_range(kind):
    images = torch.rand(8, 1, 6, 6)
    changed = augment(images, kind, 2, torch.Generator().manual_seed(0))
    assert changed.shape == images.shape and changed.min() >= 0 and changed.max() <= 1
    assert torch.equal(changed, images) is (kind == "none")


@pytest.mark.parametrize("norm", ["linf", "l2"])
@pytest.mark.parametrize("start", ["uniform", "normal"])
def test_noise_of_an_image_does_not_depend_on_its_batch(norm, start):
    settings = PGDSettings(norm=norm, start=start)
    state = torch.get_rng_state()
    together = draw_noise_by_image(range(300), (3, 4, 4), settings, 42, "eval")
    alone = draw_noise_by_image([4], (3, 4, 4), settings, 42, "eval")
    assert torch.equal(together[4], alone[0]) and torch.equal(state, torch.get_rng_state())
    assert not torch.equal(together[4], together[5])
    assert abs(together.mean()) < 0.02
    if start == "uniform" and norm == "linf":
        assert -1 <= together.min() < -0.99 and 0.99 < together.max() < 1
    elif start == "uniform":  # a point of the unit ball: half of them lie beyond the radius 0.5 ** (1 / 48)
        radii = together.flatten(1).norm(dim=1)
        assert radii.max() <= 1 + 1e-6 and 0.4 < (radii > 0.5 ** (1 / 48)).float().mean() < 0.6
    else:
        assert 0.95 < together.std() < 1.05


def test_split_holds_out_without_overlap():
    data = ImageTensors(torch.arange(10, dtype=torch.uint8).view(10, 1, 1, 1), torch.zeros(10))
    rest, held_out = data.split(3)
    assert (len(rest), len(held_out)) == (7, 3)
    assert sorted(torch.cat([rest.images, held_out.images]).flatten().tolist()) == list(range(10))
    with pytest.raises(ValueError, match="cannot hold out 10 of 10"):
        data.split(10)


def test_rows_know_their_position_and_collators_need_not_care():
    rows = numbered([("image", 3), ("other", 4)])
    batch = NumberedCollate(lambda pairs: {"names": [name for name, _ in pairs]})([rows[1], rows[0]])
    assert batch["names"] == ["other", "image"] and batch["image_index"].tolist() == [1, 0]
    assert NumberedCollate(list)([1, 2]) == [1, 2]
    assert numbered(rows) is rows and numbered({"a": rows})["a"] is rows


def test_streams_are_told_from_map_style_data():
    class Stream(torch.utils.data.IterableDataset):
        def __iter__(self):
            return iter([])

        def __len__(self):
            return 0

    assert not is_map_style(Stream()) and not is_map_style(row for row in []) and not is_map_style(None)
    assert is_map_style([1]) and numbered(None) is None


def test_image_tensors_refuse_other_types_unequal_lengths_and_values_that_are_no_pixels():
    with pytest.raises(ValueError, match="expected uint8 or float32"):
        ImageTensors(torch.zeros(2, 3, 4, 4, dtype=torch.float64), torch.zeros(2))
    with pytest.raises(ValueError, match="and 3 labels"):
        ImageTensors(torch.zeros(2, 3, 4, 4, dtype=torch.uint8), torch.zeros(3))
    with pytest.raises(ValueError, match=r"from 0 to 255: pixels must be in \[0, 1\]"):
        ImageTensors(torch.tensor([0.0, 255.0]).expand(1, 3, 4, 2), torch.zeros(1))


def test_floats_that_are_not_bytes_keep_their_values():
    exact = ImageTensors(torch.full((1, 3, 2, 2), 0.123), torch.zeros(1))
    assert torch.equal(exact.pixels(slice(None)), torch.full((1, 3, 2, 2), 0.123))
    rows = [(torch.full((3, 2, 2), 0.123), 0), (torch.full((3, 2, 2), 255, dtype=torch.uint8), 1)]
    mixed = as_image_tensors(rows)
    assert torch.allclose(mixed.pixels(slice(None))[:, 0, 0, 0], torch.tensor([0.123, 1.0]))
    assert as_image_tensors([(torch.full((3, 2, 2), 51 / 255), 0)]).images.dtype == torch.uint8


def test_images_of_several_sizes_are_scaled_on_demand():
    rows = [{"image": Image.new("RGB", size, (9, 9, 9)), "label": 0} for size in ((8, 12), (16, 16))]
    with pytest.raises(ValueError, match="2 sizes.*image_size"):
        as_image_tensors(rows)
    assert as_image_tensors(rows, image_size=8).images.shape == (2, 3, 8, 8)


@pytest.mark.parametrize(
    "order, limit, warned",
    [("sorted", 6, True), ("sorted", 13, False), ("sorted", 18, False), ("mixed", 6, False), ("mixed", 2, False)],
)
def test_first_rows_that_leave_classes_out_are_warned_about(order, limit, warned, caplog):
    labels = [index // 6 if order == "sorted" else index % 3 for index in range(18)]
    features = datasets.Features({"image": datasets.Image(), "label": datasets.ClassLabel(names=["a", "b", "c"])})
    rows = {"image": [Image.new("RGB", (8, 8))] * 18, "label": labels}
    as_image_tensors(datasets.Dataset.from_dict(rows, features=features), limit=limit)
    assert ("sorted by class" in caplog.text) == warned


@pytest.mark.parametrize("classes", [2, 10, 100, 1000, 10_000])
def test_random_first_rows_are_hardly_ever_warned_about(classes):
    generator = torch.Generator().manual_seed(0)
    for count in (1, classes // 2, classes, 4 * classes):
        drawn = torch.randint(0, classes, (200, count), generator=generator).tolist()
        assert sum(absent_classes(labels, classes) is not None for labels in drawn) <= 4
    for first in (classes // 2, max(1, classes // 10)):
        assert absent_classes([index % first for index in range(10 * classes)], classes)


def test_empty_and_unlabelled_data_is_refused():
    with pytest.raises(ValueError, match="empty"):
        as_image_tensors([])
    with pytest.raises(ValueError, match="2 of 2 images have the label -1"):
        as_image_tensors([{"image": Image.new("RGB", (2, 2)), "label": label} for label in (None, -1)])
    with pytest.raises(ValueError, match="no label column"):
        as_image_tensors([{"image": Image.new("RGB", (2, 2))}])
