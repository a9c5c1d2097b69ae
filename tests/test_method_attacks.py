"""The inner attacks of the methods, as the collator runs them for the Trainer, against the vectors."""

import importlib

import pytest
import torch
from torch import nn

from bmtard_hooks import BMTARDConfig, PGDCollator
from bmtard_hooks.methods import make_method

ATTACKS = {
    "mtard_ce": ["bmtard", "mtard", "baseline", "lmtn", "ciard"],
    "ard_ce": ["ard", "fair_ard", "iad"],
    "sat_ce": ["sat"],
    "rslad_kl": ["rslad", "absld"],
    "trades_kl": ["trades"],
    "score_noextra_lse": ["score"],
}
CASES = [(name, method) for name, methods in ATTACKS.items() for method in methods]


@pytest.fixture
def linear(vectors, monkeypatch):
    """The linear student of the vectors; draws of noise are the vectors' too."""
    config = vectors["inner"]["config"]
    net = nn.Linear(4, 3).double()
    net.load_state_dict({"weight": torch.tensor(config["W"]), "bias": torch.tensor(config["b"])})
    draws = {"normal": torch.tensor(config["randn_draw"]), "uniform": torch.tensor(config["uniform_draw"])}
    module = importlib.import_module("bmtard_hooks.attacks.pgd")  # the package has a function of this name
    monkeypatch.setattr(module, "draw_noise", lambda shape, settings, generator=None: draws[settings.start].double())
    return net


@pytest.mark.parametrize("name, method_name", CASES)
def test_attack_and_its_count_of_correct_iterates(name, method_name, linear, vectors, tmp_path):
    config, expected = vectors["inner"]["config"], vectors["inner"]["expected"][name]
    args = BMTARDConfig(
        output_dir=str(tmp_path), method=method_name, eps=config["eps"], step_size=config["step"], steps=config["steps"],
        augment="none",
    )  # fmt: skip
    method = make_method(args)
    teacher_logits = torch.tensor(config["teacher_logits"], dtype=torch.float64)
    state = None
    if method.per_class():
        from bmtard_hooks.state import DistillationState

        state = DistillationState.create({}, {}, per_class={key: [1.0] * 3 for key in method.per_class()})
    crafted = (
        PGDCollator()
        .resolved(args)
        .craft(
            linear,
            {"pixel_values": torch.tensor(config["x"], dtype=torch.float64), "labels": torch.tensor(config["labels"])},
            forward=linear,
            objective=lambda batch: method.attack_objective(
                linear, {"robust": lambda x: teacher_logits}, batch, state
            ),
            views=method.adversarial_views,
            count_correct=True,
        )
    )
    wanted = torch.tensor(expected["x_adv"], dtype=torch.float64)
    torch.testing.assert_close(crafted["adv_pixel_values"], wanted, atol=1e-6, rtol=0)
    assert crafted["correct_steps"].tolist() == expected["correct_count"]
    assert all(parameter.requires_grad and parameter.grad is None for parameter in linear.parameters())


def test_only_fair_ard_pays_for_counting(tmp_path):
    counting = [
        name for names in ATTACKS.values() for name in names
        if make_method(BMTARDConfig(output_dir=str(tmp_path), method=name)).counts_correct_steps
    ]  # fmt: skip
    assert counting == ["fair_ard"]
