import json
from types import SimpleNamespace

import pytest
import torch
from conftest import FIXTURES
from torch import nn
from transformers import TrainerControl, TrainerState

from bmtard_hooks.callbacks.additions import added_callbacks
from bmtard_hooks.callbacks.weight_averaging import WeightAveraging
from bmtard_hooks.methods import make_method


@pytest.fixture(scope="module")
def numbers():
    return json.loads((FIXTURES / "rival_vectors.json").read_text())["weight_averaging"]


class Scalar(nn.Module):
    def __init__(self):
        super().__init__()
        self.value = nn.Parameter(torch.zeros(1, dtype=torch.float64))


def drive(callback, max_steps, epochs=1):
    """Attach a callback to a model of one number; returns a function that makes a step and tells the average."""
    model = Scalar()
    callback.attach(SimpleNamespace(model=model, train_dataset=[0], args=SimpleNamespace(device="cpu")))
    state = TrainerState(max_steps=max_steps, num_train_epochs=epochs, epoch=0.0)
    callback.on_train_begin(None, state, TrainerControl())

    def step(value):
        with torch.no_grad():
            model.value.fill_(value)
        state.global_step += 1
        state.epoch = state.global_step * epochs / max_steps
        callback.on_step_end(None, state, TrainerControl())
        with callback.in_model():
            return model.value.item()

    return step, state


@pytest.mark.parametrize(
    ("settings", "key"),
    [
        (dict(decay=0.995, start=2 / 6), "ema_gowal"),
        (dict(decay=0.999, start=2 / 6, warmup=False), "ema_plain_decay_0999_after_copy"),
        (dict(kind="swa", start=0.0), "swa_equal_mean"),
    ],
)
def test_running_averages_are_the_vectors(numbers, settings, key):
    step, _ = drive(WeightAveraging(**settings), max_steps=6, epochs=6)
    found = [step(value) for value in numbers["config"]["sequence"]]
    assert found == pytest.approx(numbers["expected"][key], abs=1e-6)


def test_the_decay_rises_as_the_vectors_say(numbers):
    callback, first = WeightAveraging(start=0.025), 5
    step, state = drive(callback, max_steps=200)
    step(0.0)
    for after, decay in numbers["expected"]["ema_decay_at_delta"].items():
        state.global_step = first + int(after) - 1
        callback._average.module.value.data.zero_()
        assert 1 - step(1.0) == pytest.approx(decay, abs=1e-6), after


def test_a_start_between_two_steps_is_taken_as_the_formula_has_it():
    step, _ = drive(WeightAveraging(start=0.25), max_steps=10)  # g0 = 2.5
    assert [step(1.0), step(2.0)] == [1.0, 2.0]
    assert step(3.0) == pytest.approx(2 * 1.5 / 10.5 + 3 * 9 / 10.5)
    step, _ = drive(WeightAveraging(start=0.0), max_steps=10)  # the initial 0 counts: d = 1 at the first step
    assert step(1.0) == pytest.approx(9 / 11)


def test_swa_averages_the_ends_of_epochs_from_its_start_on():
    callback = WeightAveraging("swa", start=2 / 4)
    step, _ = drive(callback, max_steps=8, epochs=4)
    found = [step(float(value)) for value in range(1, 9)]
    assert found == [1, 2, 3, 4, 5, 6, 6, 7] and callback.updates == 2  # its own, then 6, then (6 + 8) / 2
    callback = WeightAveraging("swa")
    step, state = drive(callback, max_steps=200, epochs=200)
    for _ in range(55):
        step(0.0)
    assert callback.updates == 0
    step(0.0)
    assert callback.updates == 1 and state.epoch == 56  # 0-based epoch 55 of 200


def test_options_choose_the_average(make_config):
    def average(**options):
        found = [c for c in added_callbacks(make_method(make_config(**options))) if isinstance(c, WeightAveraging)]
        return [(c.kind, c.start, c.statistics, c.decay, c.warmup) for c in found]

    assert average() == [] == average(method="saad", weight_averaging="none")
    assert average(method="saad") == [("swa", 95 / 200, "batches", 0.995, True)]
    assert average(method="saad", weight_averaging="swa") == average(method="saad")
    assert average(weight_averaging="swa") == [("swa", 55 / 200, "samples", 0.995, True)]
    assert average(method="saad", weight_averaging="ema") == average(weight_averaging="ema")
    assert average(weight_averaging="ema") == [("ema", 0.025, "live", 0.995, True)]
    given = dict(averaging_decay=0.9, averaging_start=0.5, averaging_statistics="average", averaging_warmup=False)
    assert average(weight_averaging="ema", **given) == [("ema", 0.5, "average", 0.9, False)]
    with pytest.raises(ValueError, match="averaging_statistics='mean' is not allowed"):
        average(weight_averaging="ema", averaging_statistics="mean")
