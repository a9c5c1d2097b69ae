"""The arithmetic of adversarial weight perturbation, against numbers checked with its authors' code."""

import contextlib
import json

import pytest
import torch
import torch.nn.functional as F
from conftest import FIXTURES, tiny_net
from torch import nn

from bmtard_hooks import BMTARDConfig
from bmtard_hooks.callbacks.adversarial_weights import AdversarialWeightPerturbation, perturbed_weights
from bmtard_hooks.functional import kl_between
from bmtard_hooks.methods import make_method
from bmtard_hooks.state import DistillationState

RIVALS = json.loads((FIXTURES / "rival_vectors.json").read_text())
AWP = RIVALS["awp"]


def tensor(values):
    return torch.tensor(values, dtype=torch.float64)


class Net(nn.Module):
    """The network of the vectors: ``(x W^T + b) U^T``."""

    def __init__(self):
        super().__init__()
        inner = RIVALS["inner"]["config"]
        self.first, self.second = nn.Linear(4, 3).double(), nn.Linear(3, 3, bias=False).double()
        self.first.load_state_dict({"weight": tensor(inner["W"]), "bias": tensor(inner["b"])})
        self.second.load_state_dict({"weight": tensor(AWP["config"]["U"])})

    def forward(self, rows):
        return self.second(self.first(rows))


class Scene:
    """Stands in for the Trainer: a network and a loss.

    Args:
        loss: maps a network to its loss.
        restore: see the callback.
    """

    attack_gradient_scale = 1.0
    without_trace = contextlib.nullcontext

    def __init__(self, loss, restore="after_step"):
        self.model, self.loss, self.distillation = Net(), loss, DistillationState()
        self.callback = AdversarialWeightPerturbation(AWP["config"]["gamma"], restore=restore)
        self.callback.trainer = self

    def look(self, batch):
        return self.loss(self.model)

    def weighted(self, output):
        return output

    def perturb(self):
        """Return the directions and the loss after the perturbation."""
        before = [self.model.first.weight.detach().clone(), self.model.second.weight.detach().clone()]
        self.callback.on_crafted(None, None, None, batches=[{}])
        after = (self.model.first.weight, self.model.second.weight)
        directions = [(b - a).detach() / self.callback.gamma for a, b in zip(before, after, strict=True)]
        return directions, self.loss(self.model)


def close(found, expected):
    torch.testing.assert_close(found.detach(), tensor(expected), atol=2e-6, rtol=0)


@pytest.mark.parametrize("order", ["official_step_then_restore", "alternative_restore_then_step"])
def test_two_steps_match_the_vectors(order):
    labels, rows = torch.tensor(RIVALS["inner"]["config"]["labels"]), tensor(AWP["config"]["x_adv_at"])
    scene = Scene(
        lambda net: F.cross_entropy(net(rows), labels), "after_step" if "official" in order else "before_step"
    )
    config, net = AWP["config"], scene.model
    optimizer = torch.optim.SGD(
        net.parameters(), config["lr"], config["momentum"], weight_decay=config["weight_decay"]
    )
    assert scene.loss(net).item() == pytest.approx(AWP["expected"]["at_loss_unperturbed"], abs=1e-6)
    for expected in AWP["expected"][order]:
        bias = net.first.bias.detach().clone()
        (v_w, v_u), loss = scene.perturb()
        close(v_w, expected["v_W"])
        close(v_u, expected["v_U"])
        assert torch.equal(net.first.bias, bias)
        assert loss.item() == pytest.approx(expected["loss_at_perturbed"], abs=1e-6)
        optimizer.zero_grad()
        loss.backward()
        scene.callback.on_pre_optimizer_step(None, None, None)
        optimizer.step()
        scene.callback.on_optimizer_step(None, None, None)
        close(net.first.weight, expected["W"])
        close(net.first.bias, expected["b"])
        close(net.second.weight, expected["U"])


def direction_of(name, loss):
    expected, scene = AWP["expected"][name], Scene(loss)
    assert scene.loss(scene.model).item() == pytest.approx(expected["loss"], abs=1e-6)
    (v_w, v_u), after = scene.perturb()
    close(v_w, expected["v_W"])
    close(v_u, expected["v_U"])
    assert after.item() == pytest.approx(expected["loss_at_perturbed"], abs=1e-6)
    scene.callback.take_back()
    assert scene.loss(scene.model).item() == pytest.approx(expected["loss"], abs=1e-6)


def test_direction_of_the_trades_loss():
    inner = RIVALS["inner"]["config"]
    images, rows, labels = tensor(inner["x"]), tensor(AWP["config"]["x_adv_trades"]), torch.tensor(inner["labels"])

    def loss(net):
        clean = net(images)
        robust = kl_between(net(rows), clean).mean()
        return F.cross_entropy(clean, labels) + AWP["config"]["trades_beta"] * robust

    direction_of("trades_awp_direction", loss)


def test_direction_of_the_whole_distillation_loss(tmp_path):
    inner, logits = RIVALS["inner"]["config"], RIVALS["shared"]["logits"]
    method = make_method(BMTARDConfig(output_dir=str(tmp_path), method="bmtard", loss_scale=1 / 3))
    state = DistillationState.create(method.temperatures(), method.weights)
    batch = {"pixel_values": tensor(inner["x"]), "adv_pixel_values": tensor(AWP["config"]["x_adv_at"])}
    teachers = {"robust": lambda rows: tensor(logits["tr_adv"]), "clean": lambda rows: tensor(logits["tc_nat"])}

    def loss(net):
        parts = method.loss_parts(net, teachers, batch, state).parts
        return sum(state.weights[part] * value for part, value in parts.items())

    direction_of("bmtard_awp_direction", loss)


def test_neither_biases_nor_batch_norm_are_perturbed():
    student = tiny_net(0, batch_norm=True)
    student.head.weight.requires_grad_(False)
    assert list(perturbed_weights(student)) == ["conv.weight"]


# In the Trainer.
