"""Micro-batches must train like one large batch for the methods that look at a whole step."""

import importlib

import pytest
import torch
from conftest import sharp_net, tiny_data, tiny_net

RUNS = {
    "fair_ard": {"ard_alpha": 0.5, "ard_temperature": 5.0},
    "absld": {"class_temperature_rate": 0.4},
    "saad": {"saad_clean_weight": 0.5, "weight_averaging": "none"},
    "bmtard + igdm": {"method": "bmtard", "igdm_weight": 2.0, "weight_rate": 0.3, "temperature_rate": 0.1},
    "adaad": {"adaad_alpha": 0.7},
    "ciard": {"ciard_teacher_lr": 0.1, "temperature_rate": 0.1, "ciard_push_weight": 0.5},
    "ciard, weighted": {"method": "ciard", "ciard_weighted": True, "ciard_teacher_lr": 0.1, "weight_rate": 0.3},
    "bmtard_union": {"weight_rate": 0.3, "temperature_rate": 0.1},
    "trades + awp": {"method": "trades", "awp_gamma": 0.2},
    "bmtard + awp": {"method": "bmtard", "awp_gamma": 0.2, "awp_restore": "before_step", "weight_rate": 0.3},
    "ciard + awp": {"method": "ciard", "awp_gamma": 0.2, "ciard_teacher_lr": 0.1},
}


@pytest.fixture(autouse=True)
def _same_noise_for_every_image(monkeypatch):
    noise = torch.randn(1, 3, 8, 8, generator=torch.Generator().manual_seed(0))
    module = importlib.import_module("bmtard_hooks.attacks.pgd")  # the package has a function of this name
    monkeypatch.setattr(module, "draw_noise", lambda shape, *_: noise.expand(tuple(shape)))


@pytest.mark.parametrize("name", RUNS)
def test_two_micro_batches_equal_one_large_batch(make_trainer, name):
    options = {"method": name, "loss_scale": 1.0, "learning_rate": 0.3, **RUNS[name]}

    def run(batch, accumulation):
        trainer = make_trainer(
            tiny_net(0), tiny_data(16), num_train_epochs=3, steps=2, per_device_train_batch_size=batch,
            robust_teacher=sharp_net(2), gradient_accumulation_steps=accumulation, **options,
        )  # fmt: skip
        trainer.train()
        return trainer

    large, small = run(8, 1), run(4, 2)
    assert large.state.global_step == small.state.global_step == 6
    first = tiny_net(0).state_dict()
    for key, value in large.model.state_dict().items():
        torch.testing.assert_close(value, small.model.state_dict()[key], rtol=1e-3, atol=2e-5)
        assert (value - first[key]).abs().max() > 1e-3
    for group, values in large.distillation.state_dict().items():
        for part, value in values.items():
            assert small.distillation.state_dict()[group][part] == pytest.approx(value, rel=1e-4), (group, part)
    for role, teacher in large.teachers.items():
        for key, value in teacher.state_dict().items():
            torch.testing.assert_close(value, small.teachers[role].state_dict()[key], rtol=1e-3, atol=2e-5)
