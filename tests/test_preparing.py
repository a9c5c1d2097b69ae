"""Images travel as bytes and become pixels on the training device, without a result that depends on it."""

import logging

import datasets
import pytest
import torch
from conftest import tiny_data, tiny_net
from PIL import Image

from bmtard_hooks import ImageTensors, PGDCollator
from bmtard_hooks.decoding import as_pixels


class Floats(PGDCollator):
    """Gives floats, because it extends the call."""

    def __call__(self, rows):
        return super().__call__(rows)


def trained(make_trainer, **options):
    options = {
        "model": tiny_net(0, batch_norm=True, dropout=0.2),
        "augment": "crop_flip",
        "num_train_epochs": 2,
        **options,
    }
    trainer = make_trainer(**options)
    trainer.train()
    return trainer


def outcome(trainer):
    predictions = trainer.predict(trainer.eval_dataset).predictions
    return [*trainer.model.state_dict().values(), *map(torch.from_numpy, predictions)]


@pytest.mark.parametrize("options", [
    {},
    {"channels_last": True},
    {"augment": "flip", "channels_last": True},
    {"augment": "none"},
    {"gradient_accumulation_steps": 2},
    {"dataloader_num_workers": 1},
    {"weight_averaging": "swa", "averaging_start": 0.0},
])  # fmt: skip
def test_a_run_on_bytes_equals_the_run_on_floats(make_trainer, options):
    on_bytes, on_floats = (trained(make_trainer, data_collator=kind(), **options) for kind in (PGDCollator, Floats))
    for trainer, dtype in ((on_bytes, torch.uint8), (on_floats, torch.float32)):
        assert trainer.data_collator([tiny_data()[0]])["pixel_values"].dtype == dtype
    assert all(torch.equal(*pair) for pair in zip(outcome(on_bytes), outcome(on_floats), strict=True))


@pytest.mark.parametrize("channels_last", [True, False])
def test_prepared_batch_holds_pixels_in_the_layout_of_the_run(make_trainer, channels_last):
    trainer = make_trainer(channels_last=channels_last)
    data = tiny_data(4)
    batch = {"pixel_values": data.images, "labels": data.labels}
    found = trainer._prepare_inputs(batch)["pixel_values"]
    assert torch.equal(found, data.images.float() / 255) and batch["pixel_values"].dtype == torch.uint8
    assert found.is_contiguous(memory_format=torch.channels_last if channels_last else torch.contiguous_format)
    floats = data.images.float() / 255
    # teachers know images by identity
    assert trainer._prepare_inputs({"pixel_values": floats})["pixel_values"] is floats


def test_callbacks_and_metrics_see_floats(make_trainer):
    seen = []

    def metrics(prediction):
        seen.append(torch.from_numpy(prediction.inputs))
        return {}

    class Net(torch.nn.Module):
        main_input_name = "pixel_values"

        def __init__(self):
            super().__init__()
            self.net, self.num_classes = tiny_net(0), 4

        def forward(self, pixel_values):
            return self.net(pixel_values)

    trainer = make_trainer(Net(), compute_metrics=metrics, include_for_metrics=["inputs"])
    trainer.evaluate()
    assert torch.equal(seen[0], as_pixels(trainer.eval_dataset.images))


def test_foreign_collator_may_give_bytes(make_trainer):
    def as_bytes(rows):
        return {name: torch.stack([row[name] for row in rows]) for name in ("pixel_values", "labels")}

    def as_floats(rows):
        return {**as_bytes(rows), "pixel_values": as_bytes(rows)["pixel_values"].float() / 255}

    runs = [trained(make_trainer, data_collator=collate, augment=None) for collate in (as_bytes, as_floats)]
    assert all(torch.equal(*pair) for pair in zip(*map(outcome, runs), strict=True))


def test_floats_of_a_data_set_pass_through(make_trainer):
    data = tiny_data()
    floats = ImageTensors(as_pixels(data.images), data.labels, data.label_names)
    runs = [trained(make_trainer, data=rows, channels_last=True) for rows in (data, floats)]
    assert all(torch.equal(*pair) for pair in zip(*map(outcome, runs), strict=True))


@pytest.mark.parametrize("pinned", [True, False])
def test_loader_does_not_wait_when_it_sends_from_pinned_memory(make_trainer, pinned):
    trainer = make_trainer()
    trainer.args.dataloader_pin_memory = pinned  # transformers switches it off on a CPU
    trainer.create_accelerator_and_postprocess()
    assert trainer.accelerator.non_blocking is pinned
    assert trainer.get_train_dataloader()._non_blocking is pinned


@pytest.fixture
def pictures():
    images = [Image.fromarray(image.permute(1, 2, 0).numpy()) for image in tiny_data(8).images]
    features = datasets.Features({"image": datasets.Image(), "label": datasets.ClassLabel(names=list("abcd"))})
    return datasets.Dataset.from_dict({"image": images, "label": [0, 1, 2, 3] * 2}, features=features)


def test_who_decodes_in_every_epoch_is_told_once(make_trainer, pictures, caplog):
    caplog.set_level(logging.INFO, "bmtard_hooks")
    make_trainer(data=pictures).train()
    (hint,) = [record.message for record in caplog.records if "as_image_tensors" in record.message]
    assert "decodes its pictures anew in every epoch" in hint and "dataloader_num_workers" in hint


@pytest.mark.parametrize("case", ["tensors", "workers", "transform"])
def test_who_does_not_is_left_alone(make_trainer, pictures, caplog, case):
    caplog.set_level(logging.INFO, "bmtard_hooks")
    transformed = pictures.with_transform(lambda rows: rows)
    data = {"tensors": tiny_data(), "workers": pictures, "transform": transformed}[case]
    make_trainer(data=data, max_steps=1, dataloader_num_workers=int(case == "workers")).train()
    assert "as_image_tensors" not in caplog.text
