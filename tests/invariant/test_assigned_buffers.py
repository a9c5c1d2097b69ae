"""Statistics that a network assigns, where BatchNorm changes its own in place, move as often as the step says."""

import pytest
import torch
from conftest import tiny_data, tiny_net
from transformers import TrainerCallback

from bmtard_hooks.attacks import attack_mode


class Counting(torch.nn.Module):
    """A student that keeps a moving mean and counts its forwards in training mode, in place or in new tensors."""

    num_classes = 4

    def __init__(self, in_place):
        super().__init__()
        self.net, self.in_place, self.spoiled = tiny_net(0, batch_norm=True), in_place, False
        self.register_buffer("mean", torch.zeros(4))
        self.register_buffer("count", torch.zeros((), dtype=torch.long))
        self.register_buffer("latest", None)

    def forward(self, pixel_values):
        logits = self.net(pixel_values)
        if self.training:
            mean, count = 0.9 * self.mean + 0.1 * logits.detach().mean(0), self.count + 1
            if self.in_place:
                self.mean.copy_(mean)
                self.count.copy_(count)
            else:
                self.mean, self.count, self.latest = mean, count, mean
        return logits * torch.inf if self.spoiled else logits - 0.1 * self.mean


class Spoils(TrainerCallback):
    """Lets the third step go wrong."""

    def on_step_begin(self, args, state, control, model=None, **kwargs):
        model.spoiled = state.global_step == 2

    def on_step_end(self, args, state, control, model=None, **kwargs):
        model.spoiled = False


@pytest.mark.parametrize(
    "options",
    [
        {"gradient_accumulation_steps": 2, "per_device_train_batch_size": 2},
        {"awp_gamma": 0.01},
        {"max_skipped_steps": 1, "callbacks": [Spoils()]},
        {
            "weight_averaging": "swa",
            "averaging_start": 0.0,
            "averaging_statistics": "batches",
            "eval_strategy": "epoch",
        },
    ],
    ids=["looked at in advance", "perturbed", "left out", "averaged"],
)
def test_assigned_statistics_are_those_that_are_changed_in_place(make_trainer, options):
    found = []
    for in_place in (True, False):
        trainer = make_trainer(
            Counting(in_place), tiny_data(16), fold_batch_norm=False, overwrite_output_dir=True, **options
        )
        trainer.train()
        found.append({name: v for name, v in trainer.model.state_dict().items() if name != "latest"})
    assert found[0]["count"] > 0
    for name, value in found[0].items():
        assert torch.equal(value, found[1][name]), name


def test_foreign_attack_leaves_no_trace_in_assigned_statistics():
    model = Counting(in_place=False).train()
    before = dict(model.named_buffers())
    values = {name: buffer.clone() for name, buffer in before.items()}
    with attack_mode(model, train_mode=True, foreign=True):
        model(torch.rand(2, 3, 8, 8))
        assert model.count == 1 and model.latest is not None
    after = dict(model.named_buffers())
    assert after.keys() == before.keys() and model.latest is None
    assert all(after[name] is buffer and torch.equal(buffer, values[name]) for name, buffer in before.items())
