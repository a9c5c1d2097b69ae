"""A teacher that learns beside the student: when it steps, by how much, and what the student sees of it."""

import itertools
from types import SimpleNamespace

import pytest
import torch
from conftest import sharp_net, tiny_data, tiny_net
from safetensors.torch import load_file
from transformers import TrainerCallback

from bmtard_hooks import DistillationCallback
from bmtard_hooks.callbacks.teacher_training import TeacherTraining
from bmtard_hooks.functional import kl_to_teacher, soften
from bmtard_hooks.methods.ciard import teacher_lr_factor
from bmtard_hooks.state import TENSORS_NAME


class TeacherWatch(TrainerCallback):
    """Keeps the trained teacher's weights and gradient in every step."""

    def __init__(self):
        self.weights, self.gradients, self.trainer = [], [], None

    def parameters(self):
        return list(self.trainer.teachers["robust"].parameters())

    def on_pre_optimizer_step(self, args, state, control, **kwargs):
        if not self.weights:
            self.weights.append([p.detach().clone() for p in self.parameters()])
        self.gradients.append([None if p.grad is None else p.grad.clone() for p in self.parameters()])

    def on_step_end(self, args, state, control, **kwargs):
        self.weights.append([p.detach().clone() for p in self.parameters()])


def watched(make_trainer, **options):
    watch = TeacherWatch()
    options = {"data": tiny_data(4), "num_train_epochs": 12, "steps": 1, "ciard_teacher_lr": 0.2, **options}
    options.setdefault("robust_teacher", sharp_net(2, batch_norm=True))
    trainer = make_trainer(tiny_net(0, batch_norm=True), method="ciard", callbacks=[watch], **options)
    watch.trainer = trainer
    trainer.train()
    return watch, trainer


def test_teacher_steps_like_its_own_sgd_after_a_sixth_of_the_run_and_not_in_the_last_epoch(make_trainer):
    watch, _ = watched(make_trainer, ciard_teacher_momentum=0.5, ciard_teacher_weight_decay=0.1)
    assert len(watch.weights) == 13
    moved = [
        not all(torch.equal(a, b) for a, b in zip(*pair, strict=True)) for pair in itertools.pairwise(watch.weights)
    ]
    assert moved == [False] * 2 + [True] * 9 + [False]  # 12 epochs of one step; the rate of the last is 0
    assert [gradients[0] is not None for gradients in watch.gradients] == [False] * 2 + [True] * 10
    own = [value.clone().requires_grad_(True) for value in watch.weights[2]]
    optimizer = torch.optim.SGD(own, 0.2, momentum=0.5, weight_decay=0.1)
    for epoch in range(2, 12):
        for parameter, gradient in zip(own, watch.gradients[epoch], strict=True):
            parameter.grad = gradient
        optimizer.param_groups[0]["lr"] = 0.2 * teacher_lr_factor(epoch, 12)
        optimizer.step()
        for parameter, value in zip(own, watch.weights[epoch + 1], strict=True):
            torch.testing.assert_close(parameter.detach(), value)


def test_teacher_gradient_is_that_of_the_cross_entropy_on_the_students_images(make_trainer):
    class Crafted(DistillationCallback):
        batches = []

        def on_crafted(self, args, state, control, *, batches, **kwargs):
            Crafted.batches.append([dict(batch) for batch in batches])

    watch = TeacherWatch()
    trainer = make_trainer(
        tiny_net(0), tiny_data(8), method="ciard", callbacks=[watch, Crafted()], num_train_epochs=3, steps=1, max_steps=2,
        per_device_train_batch_size=2, gradient_accumulation_steps=2, robust_teacher=sharp_net(2, batch_norm=True),
    )  # fmt: skip
    watch.trainer = trainer
    trainer.train()
    own = sharp_net(2, batch_norm=True).train()
    losses = [
        torch.nn.functional.cross_entropy(own(batch["adv_pixel_values"]), batch["labels"])
        for batch in Crafted.batches[0]
    ]
    (sum(losses) / 2).backward()
    for parameter, gradient in zip(own.parameters(), watch.gradients[0], strict=True):
        torch.testing.assert_close(parameter.grad, gradient)


def test_soft_labels_come_from_batch_statistics_and_carry_no_gradient_to_the_teacher(make_trainer):
    trainer = make_trainer(tiny_net(0), tiny_data(4), method="ciard", robust_teacher=sharp_net(2, batch_norm=True))
    images = torch.rand(4, 3, 8, 8, generator=torch.Generator().manual_seed(0))
    batch = {"pixel_values": images, "adv_pixel_values": images.flip(0), "labels": torch.arange(4)}
    teachers, state = trainer.ask_teachers(), trainer.distillation
    (batch,) = trainer.method.prepare(teachers, [batch], state)
    output = trainer.method.loss_parts(trainer.student, teachers, batch, state)
    student_logits = trainer.student(batch["adv_pixel_values"])
    for mode, agrees in ((True, True), (False, False)):
        own = sharp_net(2, batch_norm=True).train(mode)
        kl = kl_to_teacher(student_logits, soften(own(batch["adv_pixel_values"]))).mean()
        assert (abs(output.parts["robust"].item() - 0.1 * kl.item()) < 1e-7) is agrees
    teacher = list(trainer.teachers["robust"].parameters())
    found = torch.autograd.grad(output.parts["robust"], teacher, allow_unused=True, retain_graph=True)
    assert found == (None,) * len(teacher)
    pushed = torch.autograd.grad(output.parts["push"], teacher, allow_unused=True)
    assert pushed == (None,) * len(teacher)


def test_student_sees_clean_images_before_the_attack_which_knows_their_statistics(make_trainer):
    seen = []

    class Norm(torch.nn.BatchNorm2d):
        def forward(self, values):
            seen.append((self.training, self.num_batches_tracked.item(), torch.is_grad_enabled()))
            return super().forward(values)

    student = tiny_net(0)
    student.norm = Norm(6)
    trainer = make_trainer(student, tiny_data(4), method="ciard", num_train_epochs=1, steps=2, eval_attack=False)
    before = len(seen)
    trainer.train()
    step = seen[before:][-4:]
    assert step == [(True, 0, True), (False, 1, True), (False, 1, True), (True, 1, True)]


def test_checkpoint_holds_the_teacher_and_its_momentum(make_trainer, tmp_path):
    _, trainer = watched(make_trainer, save_strategy="steps", save_steps=6)
    tensors = load_file(tmp_path / "run" / "checkpoint-12" / TENSORS_NAME)
    kinds = {name.split(".")[1] for name in tensors}
    assert kinds == {"teacher", "momentum"}
    prefix = next(name for name in tensors if ".teacher." in name).split(".")[0]
    for name, value in trainer.teachers["robust"].state_dict().items():
        assert torch.equal(tensors[f"{prefix}.teacher.{name}"], value)


def test_training_again_starts_with_the_teacher_that_was_passed(make_trainer):
    watch, trainer = watched(make_trainer)
    first = watch.weights[0]
    assert not all(torch.equal(a, b) for a, b in zip(first, watch.weights[-1], strict=True))
    watch.weights.clear()
    trainer.train()
    assert all(torch.equal(a, b) for a, b in zip(first, watch.weights[0], strict=True))


def test_step_that_was_broken_off_leaves_no_gradient_on_the_teacher(make_trainer):
    class Break(TrainerCallback):
        def on_substep_end(self, *args, **kwargs):
            raise KeyboardInterrupt

    trainer = make_trainer(
        tiny_net(0), tiny_data(8), method="ciard", num_train_epochs=2, steps=1, callbacks=[Break()],
        per_device_train_batch_size=2, gradient_accumulation_steps=2,
    )  # fmt: skip
    with pytest.raises(KeyboardInterrupt):
        trainer.train()
    assert any(parameter.grad is not None for parameter in trainer.teachers["robust"].parameters())
    left = []

    class Begin(TrainerCallback):
        def on_train_begin(self, *args, **kwargs):
            left.extend(parameter.grad for parameter in trainer.teachers["robust"].parameters())

    trainer.remove_callback(Break)
    trainer.add_callback(Begin())
    trainer.train()
    assert left == [None] * len(left) != []


def test_callback_belongs_to_the_trainer_that_it_was_given_to_last(make_trainer):
    mine = TeacherTraining("robust", 0.1, 0.0, 0.0, lambda epoch, epochs: 1.0, lambda state: True)
    for seed in (2, 3):
        teacher = sharp_net(seed)
        trainer = make_trainer(tiny_net(0), method="ciard", callbacks=[mine], robust_teacher=teacher, steps=1)
        trainer.train()
        assert not torch.equal(trainer.teachers["robust"].backbone.conv.weight, teacher.conv.weight)
        assert [c for c in trainer.distillation_callbacks() if isinstance(c, TeacherTraining)] == [mine]


def test_half_precision_with_scaled_gradients_is_refused():
    callback = TeacherTraining("robust", 0.1, 0.0, 0.0, lambda epoch, epochs: 1.0, lambda state: True)
    accelerator = SimpleNamespace(mixed_precision="fp16")
    trainer = SimpleNamespace(teachers={"robust": tiny_net(0)}, accelerator=accelerator)
    with pytest.raises(ValueError, match="does not know fp16's gradient scale: use bf16=True"):
        callback.attach(trainer)
