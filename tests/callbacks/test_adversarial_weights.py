"""Adversarial weight perturbation: its arithmetic, and that nobody but the step ever sees perturbed weights."""

import contextlib
import json

import pytest
import torch
import torch.nn.functional as F
from conftest import FIXTURES, sharp_net, tiny_data, tiny_net
from safetensors.torch import load_file
from torch import nn
from transformers import TrainerCallback

from bmtard_hooks import BMTARDConfig, DistillationCallback
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


def flat(model):
    return torch.cat([parameter.detach().flatten() for parameter in model.parameters()])


class Watch(TrainerCallback):
    """Keeps the weights in every event of a step that others may use to look at them."""

    def __init__(self):
        self.inside, self.outside = [], []

    def on_pre_optimizer_step(self, args, state, control, model=None, **kwargs):
        self.inside.append(flat(model))

    def on_step_end(self, args, state, control, model=None, **kwargs):
        self.outside.append(flat(model))

    on_evaluate = on_save = on_epoch_end = on_step_end


def train(make_trainer, *, method="trades", gamma=0.3, **options):
    options = {"data": tiny_data(8), "num_train_epochs": 2, "steps": 1, **options}
    trainer = make_trainer(tiny_net(0, batch_norm=True), method=method, awp_gamma=gamma, **options)
    trainer.train()
    return trainer


def test_tiny_perturbation_is_the_plain_run_and_a_large_one_is_not(make_trainer):
    plain, tiny, large = (flat(train(make_trainer, gamma=gamma).model) for gamma in (0.0, 1e-7, 0.3))
    first = flat(tiny_net(0, batch_norm=True))
    assert (plain - tiny).norm() < 1e-3 * (plain - first).norm() < 0.1 * (plain - large).norm()


@pytest.mark.parametrize("restore", ["after_step", "before_step"])
def test_only_the_step_sees_perturbed_weights(make_trainer, tmp_path, restore):
    watch, first = Watch(), flat(tiny_net(0, batch_norm=True))
    train(
        make_trainer, callbacks=[watch], learning_rate=1e-12, weight_decay=0.0, awp_restore=restore, save_strategy="steps",
        save_steps=1, eval_strategy="steps", eval_steps=1,
    )  # fmt: skip
    assert len(watch.inside) == 4 and len(watch.outside) == 4 * 3 + 2
    for weights in watch.outside:
        torch.testing.assert_close(weights, first, atol=1e-6, rtol=0)
    for weights in watch.inside:  # this callback comes before the perturbation is taken back
        assert (weights - first).abs().max() > 0.01
    saved = load_file(tmp_path / "run" / "checkpoint-3" / "model.safetensors")
    torch.testing.assert_close(saved["conv.weight"], tiny_net(0, batch_norm=True).conv.weight, atol=1e-6, rtol=0)


def test_perturbation_begins_after_its_epochs(make_trainer):
    def after(**options):
        weights = Watch()
        train(make_trainer, callbacks=[weights], **options)
        return weights.outside

    plain, late = after(gamma=0.0), after(gamma=0.3, awp_begin=1)
    assert all(torch.equal(left, right) for left, right in zip(plain[:2], late[:2], strict=True))
    assert not torch.equal(plain[-1], late[-1])


class Fail(TrainerCallback):
    """Does something in the middle of the third step, when the weights are perturbed."""

    def __init__(self, event, action):
        setattr(
            self, event, lambda args, state, control, **kwargs: action(control) if state.global_step == 2 else None
        )


def interrupt(control):
    raise KeyboardInterrupt


def test_interrupted_step_leaves_no_perturbation(make_trainer):
    with_failure = {
        "callbacks": [Fail("on_pre_optimizer_step", interrupt)],
        "learning_rate": 1e-12,
        "weight_decay": 0.0,
    }
    trainer = make_trainer(tiny_net(0), tiny_data(16), method="trades", awp_gamma=0.3, steps=1, **with_failure)
    with pytest.raises(KeyboardInterrupt):
        trainer.train()
    torch.testing.assert_close(flat(trainer.model), flat(tiny_net(0)), atol=1e-6, rtol=0)


def test_stop_between_micro_batches_leaves_no_perturbation(make_trainer, tmp_path):
    def stop(control):
        control.should_training_stop = control.should_save = True
        return control

    options = {"per_device_train_batch_size": 2, "gradient_accumulation_steps": 2, "save_strategy": "steps"}
    trainer = make_trainer(
        tiny_net(0), tiny_data(16), method="trades", awp_gamma=0.3, steps=1, learning_rate=1e-12, weight_decay=0.0,
        callbacks=[Fail("on_substep_end", stop)], **options,
    )  # fmt: skip
    trainer.train()
    assert trainer.state.global_step == 2
    torch.testing.assert_close(flat(trainer.model), flat(tiny_net(0)), atol=1e-6, rtol=0)
    saved = load_file(tmp_path / "run" / "checkpoint-2" / "model.safetensors")
    torch.testing.assert_close(saved["conv.weight"], tiny_net(0).conv.weight, atol=1e-6, rtol=0)


def test_retry_with_a_smaller_batch_leaves_no_perturbation(make_trainer):
    tries = []

    def run_out_of_memory_once(control):
        if not tries:
            tries.append(True)
            raise RuntimeError("CUDA out of memory.")

    trainer = make_trainer(
        tiny_net(0), tiny_data(16), method="trades", awp_gamma=0.3, steps=1, learning_rate=1e-12, weight_decay=0.0,
        callbacks=[Fail("on_pre_optimizer_step", run_out_of_memory_once)], auto_find_batch_size=True,
    )  # fmt: skip
    trainer.train()
    assert tries
    torch.testing.assert_close(flat(trainer.model), flat(tiny_net(0)), atol=1e-6, rtol=0)


class Balance(DistillationCallback):
    """Counts how often a step's losses are shown, and whether that is at perturbed weights."""

    def __init__(self):
        self.weights = []

    def on_losses(self, args, state, control, *, model=None, **kwargs):
        self.weights.append(flat(model))


@pytest.mark.parametrize("accumulation", [1, 2])
def test_balance_moves_once_per_step_at_the_perturbed_weights(make_trainer, accumulation):
    balance, watch = Balance(), Watch()
    trainer = train(
        make_trainer, method="bmtard", callbacks=[balance, watch], per_device_train_batch_size=4 // accumulation,
        gradient_accumulation_steps=accumulation, temperature_rate=0.1,
    )  # fmt: skip
    assert len(balance.weights) == 4
    assert all(torch.equal(left, right) for left, right in zip(balance.weights, watch.inside, strict=True))
    moved = trainer.distillation.temperatures["clean"].item() - 1
    assert moved == pytest.approx(0.3 + 0.001)  # the learning rate has fallen twice before the last step
    assert trainer.model.norm.num_batches_tracked.item() == 4 * 2 * accumulation


def test_callback_that_a_user_adds_works_with_a_method_that_forwards_before_the_attack(make_trainer):
    runs = []
    for options in ({"awp_gamma": 0.3}, {"callbacks": [AdversarialWeightPerturbation(0.3)]}):
        teacher = sharp_net(2, batch_norm=True)
        trainer = make_trainer(
            tiny_net(0, batch_norm=True), tiny_data(8), method="ciard", num_train_epochs=2, steps=1, robust_teacher=teacher,
            **options,
        )  # fmt: skip
        trainer.train()
        runs.append(flat(trainer.model))
    torch.testing.assert_close(*runs)
    added = make_trainer(tiny_net(0), tiny_data(8), method="trades", num_train_epochs=2, steps=1)
    added.add_callback(AdversarialWeightPerturbation(0.3))
    added.train()
    given = make_trainer(tiny_net(0), tiny_data(8), method="trades", num_train_epochs=2, steps=1, awp_gamma=0.3)
    given.train()
    torch.testing.assert_close(flat(added.model), flat(given.model))


@pytest.mark.parametrize(
    "gamma, restore, message", [(0.0, "after_step", "awp_gamma=0.0 must"), (0.1, "never", "awp_restore='never' is")]
)
def test_bad_settings_are_refused(gamma, restore, message):
    with pytest.raises(ValueError, match=message):
        AdversarialWeightPerturbation(gamma, restore=restore)
