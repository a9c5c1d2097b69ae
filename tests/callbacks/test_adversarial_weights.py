"""Adversarial weight perturbation in the Trainer: nobody but the step ever sees perturbed weights."""

import pytest
import torch
from conftest import sharp_net, tiny_data, tiny_net
from safetensors.torch import load_file
from transformers import TrainerCallback

from bmtard_hooks import DistillationCallback
from bmtard_hooks.callbacks.adversarial_weights import AdversarialWeightPerturbation


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
    tries, begun = [], []

    class Begin(TrainerCallback):
        def on_train_begin(self, args, state, control, model=None, **kwargs):
            begun.append(flat(model))

    def run_out_of_memory_once(control):
        if not tries:
            tries.append(True)
            raise RuntimeError("CUDA out of memory.")

    trainer = make_trainer(
        tiny_net(0), tiny_data(16), method="trades", awp_gamma=0.3, steps=1, learning_rate=1e-12, weight_decay=0.0,
        callbacks=[Fail("on_pre_optimizer_step", run_out_of_memory_once), Begin()], auto_find_batch_size=True,
    )  # fmt: skip
    trainer.train()
    assert tries and len(begun) == 2
    for weights in (*begun, flat(trainer.model)):
        torch.testing.assert_close(weights, flat(tiny_net(0)), atol=1e-6, rtol=0)


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


@pytest.mark.parametrize("value", [torch.inf, torch.nan], ids=str)
def test_search_that_overflows_perturbs_the_other_weights_alone(make_trainer, monkeypatch, value):
    found = AdversarialWeightPerturbation._gradient

    def overflowing(self, weights, batches):
        first, *others = found(self, weights, batches)
        first.view(-1)[3] = value  # as a backward in fp16 gives it
        return [first, *others]

    watch, start = Watch(), tiny_net(0, batch_norm=True)
    monkeypatch.setattr(AdversarialWeightPerturbation, "_gradient", overflowing)
    trainer = train(make_trainer, callbacks=[watch], learning_rate=1e-12, weight_decay=0.0)
    assert trainer.state.global_step == 4
    torch.testing.assert_close(flat(trainer.model), flat(start), atol=1e-6, rtol=0)
    still = start.conv.weight.numel()
    for weights in watch.inside:
        torch.testing.assert_close(weights[:still], flat(start)[:still], atol=1e-6, rtol=0)
        assert (weights - flat(start)).abs().max() > 0.01


@pytest.mark.parametrize(
    "gamma, restore, message", [(0.0, "after_step", "awp_gamma=0.0 must"), (0.1, "never", "awp_restore='never' is")]
)
def test_bad_settings_are_refused(gamma, restore, message):
    with pytest.raises(ValueError, match=message):
        AdversarialWeightPerturbation(gamma, restore=restore)
