import copy
import pickle

import numpy as np
import pytest
import torch
from conftest import tiny_data, tiny_net
from PIL import Image

from bmtard_hooks import BMTARDConfig, ImageTensors, PGDCollator
from bmtard_hooks.decoding import as_pixels
from bmtard_hooks.randomness import keyed_generator


def picture(mode="RGB", seed=0):
    pixels = np.random.default_rng(seed).integers(0, 256, (8, 8, 3), dtype=np.uint8)
    return Image.fromarray(pixels).convert(mode)


@pytest.mark.parametrize(
    "row",
    [
        {"image": picture(), "label": 1},
        {"img": picture("L"), "fine_label": 1},
        {"pixel_values": torch.zeros(3, 8, 8, dtype=torch.uint8), "labels": torch.tensor(1)},
        {"x": torch.rand(3, 8, 8), "y": np.int64(1)},
        {"x": np.random.default_rng(0).random((3, 8, 8)), "y": 1},
        {"image": np.zeros((8, 8, 3), dtype=np.uint8), "label": 1, "other": "ignored"},
        (picture(), 1),
    ],
)
def test_rows_of_every_kind_become_pixels(row):
    batch = PGDCollator()([row, row])
    assert batch["pixel_values"].shape == (2, 3, 8, 8) and batch["pixel_values"].dtype == torch.float32
    assert batch["pixel_values"].min() >= 0 and batch["pixel_values"].max() <= 1
    assert batch["labels"].tolist() == [1, 1] and set(batch) == {"pixel_values", "labels"}


def test_bytes_become_the_same_pixels_as_pictures():
    image = picture()
    as_bytes = torch.from_numpy(np.array(image)).permute(2, 0, 1)
    collate = PGDCollator()
    torch.testing.assert_close(collate([(image, 0)])["pixel_values"], collate([(as_bytes, 0)])["pixel_values"])


def test_bytes_are_divided_as_floats_are():
    bytes_ = torch.arange(256, dtype=torch.uint8)
    expected = torch.tensor([byte / 255 for byte in range(256)], dtype=torch.float64).float()
    assert torch.equal(as_pixels(bytes_), expected) and as_pixels(expected) is expected


def test_rows_gathered_at_once_collate_as_rows_one_by_one():
    data, some = tiny_data(9), [7, 2, 2, -1]
    one_by_one, at_once = [data[i] for i in some], data.__getitems__(some)
    for collate in (PGDCollator(), PGDCollator(image_column="pixel_values", label_column="labels")):
        expected, found = collate(one_by_one), collate(at_once)
        assert at_once.untouched and found["pixel_values"].dtype == torch.float32
        assert all(torch.equal(expected[name], found[name]) for name in ("pixel_values", "labels"))
    with pytest.raises(ValueError, match="no image column 'scan'"):
        PGDCollator(image_column="scan")(at_once)
    with pytest.raises(ValueError, match="do not fit 2 classes"):
        PGDCollator(num_classes=2)(data.__getitems__(range(9)))


def test_gathered_floats_are_checked_and_odd_channels_understood():
    floats = ImageTensors(torch.rand(3, 3, 8, 8), torch.zeros(3))
    assert torch.equal(PGDCollator()(floats.__getitems__([2, 0]))["pixel_values"], floats.images[[2, 0]])
    floats.images[1] = 3
    with pytest.raises(ValueError, match=r"from 0.* to 3: pixels must be in \[0, 1\]"):
        PGDCollator()(floats.__getitems__([0, 1]))
    channels_behind = ImageTensors(torch.zeros(3, 8, 8, 3, dtype=torch.uint8), torch.zeros(3))
    assert PGDCollator()(channels_behind.__getitems__([0, 1]))["pixel_values"].shape == (2, 3, 8, 8)


def test_rows_that_somebody_changed_stay_changed():
    rows = tiny_data().__getitems__([0, 1])
    for row in rows:
        row["pixel_values"] = torch.zeros(3, 8, 8)
    assert PGDCollator()(rows)["pixel_values"].abs().max() == 0


@pytest.mark.parametrize("rows", [
    [{"image": picture(seed=i), "label": i} for i in range(2)],
    [{"x": torch.full((3, 8, 8), i, dtype=torch.uint8), "y": i} for i in range(2)],
    tiny_data().__getitems__([0, 1]),
])  # fmt: skip
def test_filled_collator_leaves_bytes_to_the_trainer(rows, tmp_path):
    filled = PGDCollator().resolved(BMTARDConfig(output_dir=str(tmp_path)))
    pixels = PGDCollator()(rows)["pixel_values"]
    assert filled(rows)["pixel_values"].dtype == torch.uint8
    assert torch.equal(as_pixels(filled(rows)["pixel_values"]), pixels)
    augmented = [
        c.craft(tiny_net(0), c(rows), key=(1,), views={})["pixel_values"] for c in (filled, PGDCollator(seed=42))
    ]
    assert torch.equal(*augmented) and augmented[0].dtype == torch.float32
    again = filled.bind(tiny_net(0))(rows)["pixel_values"]
    assert again.dtype == torch.float32 and again.max() <= 1


def test_filled_collator_gives_floats_where_bytes_would_surprise(tmp_path):
    class Extended(PGDCollator):
        def __call__(self, rows):
            return {name: value * 1 for name, value in super().__call__(rows).items()}

    asked = BMTARDConfig(output_dir=str(tmp_path), include_for_metrics=["inputs"])
    mixed = [(torch.full((3, 8, 8), 255, dtype=torch.uint8), 0), (torch.ones(3, 8, 8), 1)]
    for collate, rows in (
        (Extended().resolved(BMTARDConfig(output_dir=str(tmp_path))), mixed[:1]),
        (PGDCollator().resolved(asked), mixed[:1]),
        (PGDCollator().resolved(BMTARDConfig(output_dir=str(tmp_path))), mixed),
    ):
        batch = collate(rows)["pixel_values"]
        assert batch.dtype == torch.float32 and batch.max() <= 1


def test_named_columns_are_used():
    collate = PGDCollator(image_column="scan", label_column="grade")
    assert collate([{"scan": picture(), "grade": 2, "label": 0}])["labels"].tolist() == [2]


def test_grey_images_keep_one_channel_on_request():
    assert PGDCollator(mode="L")([(picture("L"), 0)])["pixel_values"].shape == (1, 1, 8, 8)


def batch_of(count=6):
    return PGDCollator()([tiny_data(count)[i] for i in range(count)])


@pytest.mark.parametrize("loss", ["ce", "kl", "margin", lambda logits, labels: -logits.gather(1, labels[:, None])])
@pytest.mark.parametrize("norm", ["linf", "l2"])
def test_craft_raises_the_loss_inside_the_ball(loss, norm):
    model, batch = tiny_net(0, batch_norm=True), batch_of()
    crafted = PGDCollator(0.1, 0.05, 5, norm=norm, loss=loss, augment="none", start="uniform").craft(model, batch)
    assert crafted["pixel_values"] is batch["pixel_values"] and "adv_pixel_values" not in batch
    delta = crafted["adv_pixel_values"] - batch["pixel_values"]
    assert delta.abs().max() > 0
    assert (delta.abs().max() if norm == "linf" else delta.flatten(1).norm(dim=1).max()) <= 0.1 + 1e-6
    model.eval()
    losses = [torch.nn.functional.cross_entropy(model(batch_pixels), batch["labels"]) for batch_pixels in
              (batch["pixel_values"], crafted["adv_pixel_values"])]  # fmt: skip
    assert losses[1] > losses[0] or loss == "kl"


def test_craft_depends_on_its_key_alone():
    model, batch = tiny_net(0), batch_of()
    collator = PGDCollator(steps=1, start="uniform")
    first = collator.craft(model, batch, key=(3, 0, 0))
    torch.manual_seed(99)
    again = collator.craft(model, batch, key=(3, 0, 0))
    other_rank = collator.craft(model, batch, key=(3, 0, 1))
    for name in ("pixel_values", "adv_pixel_values"):
        assert torch.equal(first[name], again[name])
        assert not torch.equal(first[name], other_rank[name])


def test_keyed_generator_separates_neighbouring_keys():
    draws = {torch.rand(1, generator=keyed_generator(*key)).item() for key in [(1, 23), (12, 3), ("1", 23), (1, 2, 3)]}
    assert len(draws) == 4


def test_callable_attack_is_used_and_checked():
    model, batch = tiny_net(0), batch_of()
    crafted = PGDCollator(attack=lambda x, y: (x + 0.5).clamp(0, 1), augment="none").craft(model, batch)
    torch.testing.assert_close(crafted["adv_pixel_values"], (batch["pixel_values"] + 0.5).clamp(0, 1))
    with pytest.raises(ValueError, match=r"the attack returned pixels from .* they must stay in \[0, 1\]"):
        PGDCollator(attack=lambda x, y: x + 2).craft(model, batch)
    with pytest.raises(ValueError, match="the attack returned shape"):
        PGDCollator(attack=lambda x, y: x[:1]).craft(model, batch)


@pytest.mark.parametrize("name", ["FGSM", "PGD", "APGD", "FAB", "Square"])
def test_torchattacks_objects_leave_no_trace(name):
    import torchattacks

    model, batch = tiny_net(0, batch_norm=True).train(), batch_of()
    options = {"Square": {"n_queries": 5}, "FAB": {"n_classes": 4, "steps": 2}}.get(name, {})
    wrapper = torch.nn.Sequential(model)  # a fresh wrapper: torchattacks would put the inner model into train mode
    attack = getattr(torchattacks, name)(wrapper, eps=8 / 255, **options)
    model.norm.eval()
    before = [torch.get_rng_state(), model.norm.running_mean.clone()]
    crafted = PGDCollator(attack=attack, augment="none").craft(model, batch)
    assert crafted["adv_pixel_values"].shape == batch["pixel_values"].shape
    assert model.training and not model.norm.training
    assert all(parameter.grad is None and parameter.requires_grad for parameter in model.parameters())
    assert torch.equal(before[0], torch.get_rng_state()) and torch.equal(before[1], model.norm.running_mean)


def test_spawned_workers_stack_rows_whatever_the_attack():
    collator = PGDCollator(attack=lambda x, y: x)
    loader = torch.utils.data.DataLoader(
        tiny_data(4), batch_size=4, num_workers=1, collate_fn=collator, multiprocessing_context="spawn"
    )
    assert torch.equal(next(iter(loader))["pixel_values"], tiny_data(4).images.float() / 255)


def test_pickled_collator_carries_neither_model_nor_attack():
    collator = PGDCollator(attack=lambda x, y: x, loss=lambda logits, labels: logits).bind(tiny_net(0))
    copied = pickle.loads(pickle.dumps(collator))
    assert copied._model is None and copied.attack is None and copied.loss is None


def test_trainer_fills_what_was_left_open_and_leaves_the_users_collator_alone(tmp_path):
    config = BMTARDConfig(output_dir=str(tmp_path), method="sat", seed=3, steps=7, augment="flip", eps=0.1)
    mine = PGDCollator(eps=4 / 255)
    filled = mine.resolved(config, num_classes=5)
    assert (filled.settings.eps, filled.settings.steps, filled.settings.start) == (4 / 255, 7, "uniform")
    assert (filled.seed, filled.augment, filled.num_classes) == (3, "flip", 5)
    assert (mine.seed, mine.augment, mine.num_classes, mine.settings.steps) == (None, None, None, 10)
    explicit = PGDCollator(steps=2, start="zero", seed=0, augment="none").resolved(config)
    assert (explicit.settings.steps, explicit.settings.start, explicit.seed, explicit.augment) == (
        2,
        "zero",
        0,
        "none",
    )


@pytest.mark.parametrize(
    "rows, message",
    [
        (
            [{"picture": picture(), "label": 0}],
            r"no image column .* among \['label', 'picture'\]: pass image_column=NAME to PGDCollator.*, on a command line "
            r"--image_column NAME\. .* the Trainer removed it: set remove_unused_columns=False",
        ),
        ([{"image": picture(), "target": 0}], "no label column"),
        ([(torch.full((3, 8, 8), 2.0), 0)], r"values from 2 to 2: pixels must be in \[0, 1\]"),
        ([(torch.full((3, 8, 8), torch.nan), 0)], "values from nan to nan: pixels must be"),
        ([(torch.zeros(3, 8, 8, dtype=torch.int32), 0)], "dtype torch.int32: pass uint8"),
        ([(torch.zeros(5), 0)], r"shape \(5,\): expected"),
        ([(picture(), 7)], r"labels from 7 to 7 do not fit 4 classes \(0 to 3\)"),
        ([(picture(), -1)], "labels from -1"),
        ([(torch.rand(3, 8, 8), 0), (torch.rand(3, 9, 9), 0)], "several shapes in one batch"),
    ],
)
def test_bad_rows_are_refused(rows, message):
    with pytest.raises(ValueError, match=message):
        PGDCollator(num_classes=4)(rows)


@pytest.mark.parametrize(
    "options, message", [({"loss": "mse"}, "loss='mse' is unknown"), ({"augment": "cutout"}, "augment='cutout'")]
)
def test_bad_settings_are_refused(options, message):
    with pytest.raises(ValueError, match=message):
        PGDCollator(**options)
    with pytest.raises(ValueError, match="output='both' is unknown"):
        PGDCollator().bind(tiny_net(0), output="both")


def test_copies_keep_the_attack_the_loss_and_the_model():
    def attack(images, labels):
        return images

    def loss(logits, labels):
        return logits[:, 0]

    model = tiny_net(0)
    for copied in (copy.copy, copy.deepcopy):
        twin = copied(PGDCollator(attack=attack, loss=loss, steps=1, augment="none").bind(model))
        assert twin.attack is attack and twin.loss is loss and twin._model is model
        batch = twin([(torch.rand(3, 8, 8), 1), (torch.rand(3, 8, 8), 2)])
        assert batch["pixel_values"].shape == (2, 3, 8, 8)
    first = PGDCollator()
    second = copy.deepcopy(first)
    second._explicit["eps"] = 0.5
    assert first._explicit["eps"] is None
