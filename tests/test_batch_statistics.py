import json

import pytest
import torch
from conftest import FIXTURES, tiny_data, tiny_net
from torch import nn
from transformers import TrainerCallback

from bmtard_hooks.batch_statistics import BatchesOfSeveral, estimate_statistics
from bmtard_hooks.callbacks.weight_averaging import WeightAveraging

SWA = {"weight_averaging": "swa", "averaging_start": 0.25}


@pytest.fixture(scope="module")
def numbers():
    return json.loads((FIXTURES / "rival_vectors.json").read_text())["weight_averaging"]


@pytest.mark.parametrize(("by_sample", "key"), [(True, "bn_sample_weighted"), (False, "bn_batch_equal")])
def test_estimated_statistics_are_the_vectors(numbers, by_sample, key):
    model = nn.Sequential(nn.BatchNorm1d(1, momentum=0.3), nn.Dropout(0.5))
    model[0].running_mean.fill_(99)
    model[0].num_batches_tracked.fill_(7)
    model[1].eval()
    batches = [torch.tensor(batch, dtype=torch.float32)[:, None] for batch in numbers["config"]["bn_batches"]]
    estimate_statistics(model, model, batches, by_sample)
    expected = numbers["expected"][key]
    assert model[0].running_mean.item() == pytest.approx(expected["mean"], abs=1e-6)
    assert model[0].running_var.item() == pytest.approx(expected["var"], abs=1e-6)
    assert model[0].momentum == 0.3 and model[0].training and not model[1].training


class NormOfOne(nn.Module):
    """A network that cannot be trained on one image."""

    num_classes = 4

    def __init__(self):
        super().__init__()
        self.conv, self.norm, self.head = nn.Conv2d(3, 6, 3, stride=2), nn.BatchNorm1d(6), nn.Linear(6, 4)

    def forward(self, pixel_values):
        return self.head(self.norm(torch.relu(self.conv(pixel_values)).mean((2, 3))))


@pytest.mark.parametrize("method", [{"method": "saad"}, {"method": "sat", **SWA}], ids=["saad", "swa"])
def test_an_image_that_is_left_over_is_averaged_with_the_batch_before(make_trainer, monkeypatch, method):
    seen = []
    batches = WeightAveraging._batches
    monkeypatch.setattr(
        WeightAveraging, "_batches", lambda self: (seen.append(len(batch)) or batch for batch in batches(self))
    )
    trainer = make_trainer(NormOfOne(), tiny_data(9), dataloader_drop_last=True, num_train_epochs=2, **method)
    trainer.train()
    assert seen and seen == [4, 5] * (len(seen) // 2)


def test_estimation_has_the_batches_that_were_found_to_fit(make_trainer):
    class TooLarge(TrainerCallback):
        def on_step_end(self, args, state, control, **kwargs):
            if trainer._train_batch_size > 4:
                raise RuntimeError("CUDA out of memory. Tried to allocate")

    options = dict(auto_find_batch_size=True, per_device_train_batch_size=8, callbacks=[TooLarge()], **SWA)
    trainer = make_trainer(tiny_net(0, batch_norm=True), tiny_data(16), **options)
    trainer.train()
    found = trainer._train_batch_size
    assert found <= 4 < trainer.args.train_batch_size
    assert {len(batch) for batch in list(trainer.weight_averages()[0]._batches())[:-1]} == {found}


@pytest.mark.parametrize(
    "count, size, batches",
    [(9, 4, [4, 5]), (10, 4, [4, 4, 2]), (8, 4, [4, 4]), (3, 1, [1, 1, 1]), (1, 4, [1]), (3, 2, [3]), (0, 4, [])],
)
def test_no_batch_has_one_index_unless_all_have(count, size, batches):
    found = list(BatchesOfSeveral(range(count), size))
    assert [len(batch) for batch in found] == batches
    assert [index for batch in found for index in batch] == list(range(count))
