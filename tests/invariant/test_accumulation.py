"""Several small batches must train like one large batch."""

import pytest
import torch
from conftest import sharp_net, tiny_data, tiny_net
from transformers import TrainerCallback, ViTConfig, ViTForImageClassification

from bmtard_hooks import DistillationCallback


class Gradients(TrainerCallback):
    """Keeps the gradient of every optimizer step."""

    def __init__(self):
        self.steps = []

    def on_pre_optimizer_step(self, args, state, control, model=None, **kwargs):
        self.steps.append([parameter.grad.clone() for parameter in model.parameters()])


class Listener(DistillationCallback):
    """Keeps what the balance event shows."""

    def __init__(self):
        self.seen = []

    def on_losses(self, args, state, control, *, losses, entropies, distillation, **kwargs):
        weights = {name: value.item() for name, value in distillation.weights.items()}
        self.seen.append(({name: value.item() for name, value in losses.items()}, weights, kwargs))


def gradients_of(make_trainer, model, batch, accumulation, **options):
    recorder = Gradients()
    options = {"clean_teacher": sharp_net(1, 8.0), "robust_teacher": sharp_net(2), **options}
    trainer = make_trainer(
        model,
        tiny_data(24),
        callbacks=[recorder],
        per_device_train_batch_size=batch,
        gradient_accumulation_steps=accumulation,
        start="zero",  # the noise of micro-batches is their own
        **options,
    )
    trainer.train()
    return recorder.steps, trainer


@pytest.mark.parametrize("balance", [True, False])
def test_accumulation_equals_the_large_batch(make_trainer, balance):
    options = {"entropy_balance": balance, "loss_balance": balance, "weight_rate": 0.5, "temperature_rate": 0.1}
    large, one = gradients_of(make_trainer, tiny_net(0), 8, 1, **options)
    small, many = gradients_of(make_trainer, tiny_net(0), 2, 4, **options)
    assert len(large) == len(small) == 3
    for a, b in zip(large, small, strict=True):
        for left, right in zip(a, b, strict=True):
            torch.testing.assert_close(left, right, rtol=1e-4, atol=1e-6)
    for group, values in one.distillation.state_dict().items():
        assert many.distillation.state_dict()[group] == pytest.approx(values, rel=1e-5), group
    assert one.state.log_history[0]["loss"] == pytest.approx(many.state.log_history[0]["loss"], rel=1e-4)
    assert (one.distillation.weights["clean"].item() != 0.5) is balance


def test_accumulation_does_not_scale_the_gradient_of_a_vit(make_trainer):
    # a forward with **kwargs makes transformers skip the division by the number of micro-batches
    def vit():
        torch.manual_seed(0)
        config = ViTConfig(
            hidden_size=16, num_hidden_layers=1, num_attention_heads=2, intermediate_size=16, image_size=8,
            patch_size=4, num_labels=4, hidden_dropout_prob=0.0, attention_probs_dropout_prob=0.0,
        )  # fmt: skip
        return ViTForImageClassification(config)

    large, _ = gradients_of(make_trainer, vit(), 8, 1)
    small, _ = gradients_of(make_trainer, vit(), 2, 4)
    for left, right in zip(large[0], small[0], strict=True):
        torch.testing.assert_close(left, right, rtol=1e-3, atol=1e-6)


def test_balance_moves_once_per_optimizer_step_and_a_preview_moves_no_statistics(make_trainer):
    listener = Listener()
    student = tiny_net(0, batch_norm=True)
    trainer = make_trainer(
        student, tiny_data(20), callbacks=[listener], per_device_train_batch_size=2, gradient_accumulation_steps=4
    )
    trainer.train()
    assert trainer.state.global_step == len(listener.seen) == 3  # the last window has only two micro-batches
    assert student.norm.num_batches_tracked.item() == 2 * 10  # two forwards per micro-batch, none for the previews


def test_dropout_sees_the_same_masks_in_preview_and_step(make_trainer):
    listener = Listener()
    trainer = make_trainer(
        tiny_net(0, dropout=0.5), callbacks=[listener], per_device_train_batch_size=2, gradient_accumulation_steps=2
    )
    trainer.train()
    for (losses, weights, _), entry in zip(listener.seen, trainer.state.log_history, strict=False):
        assert entry["loss"] == pytest.approx(sum(weights[name] * losses[name] for name in losses), rel=1e-2)
        assert entry["loss_clean"] == pytest.approx(losses["clean"], rel=1e-5)


def test_teachers_answer_once_per_micro_batch(make_trainer):
    class Counting(torch.nn.Module):
        num_classes, calls = 4, 0

        def __init__(self):
            super().__init__()
            self.net = sharp_net(1)

        def forward(self, pixel_values):
            Counting.calls += isinstance(pixel_values, torch.Tensor)  # which a trace is not
            return self.net(pixel_values)

    make_trainer(
        clean_teacher=Counting(), per_device_train_batch_size=2, gradient_accumulation_steps=4, entropy_balance=False
    ).train()
    assert Counting.calls == 8 + 1  # 16 images, and one try before training
