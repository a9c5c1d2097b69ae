"""Every method inside the Trainer: what a step costs, what it moves, and what it must leave alone."""

import copy

import pytest
import torch
from conftest import sharp_net, tiny_data, tiny_net
from every_method import ASKED, CASES, Moves, counted_teachers, plain_collator
from transformers import TrainerCallback

from bmtard_hooks import PGDCollator

METHODS = sorted({entry.options["method"] for entry in CASES.values()})


def train(make_trainer, **options):
    trainer = make_trainer(tiny_net(0, batch_norm=True), **options)
    trainer.train()
    return trainer


def weights(trainer):
    return [parameter.detach().clone() for parameter in trainer.model.parameters()]


def assert_equal_weights(one, other):
    for name, value in one.model.state_dict().items():
        assert torch.equal(value, other.model.state_dict()[name]), name


@pytest.mark.parametrize("name", CASES)
def test_step_forwards_as_often_as_the_authors_code_and_asks_each_teacher_once_for_everything(make_trainer, name):
    case, moves, teachers = CASES[name], Moves(), counted_teachers()
    passed = {role: copy.deepcopy(teacher.state_dict()) for role, teacher in teachers.items()}
    student = tiny_net(0, batch_norm=True)
    first = copy.deepcopy(student.state_dict())
    trainer = make_trainer(
        student,
        tiny_data(8),
        teachers=teachers,
        callbacks=[moves],
        num_train_epochs=2,
        steps=10,
        fold_batch_norm=False,
        **case.options,  # copies would not be counted
    )
    trainer.train()
    assert moves.by_step == [case.moves] * 4
    assert dict(ASKED) == {role: 4 * count + 1 for role, count in case.asked.items()}  # and one try before training
    assert not torch.equal(first["head.weight"], student.state_dict()["head.weight"])
    for role, state in passed.items():
        assert all(torch.equal(value, state[key]) for key, value in teachers[role].state_dict().items()), role
    for role, teacher in trainer.teachers.items():
        learns = role in trainer.method.trained_teachers
        assert all(module.training is learns for module in teacher.modules())
        assert all(parameter.requires_grad is learns for parameter in teacher.parameters())
        assert all(parameter.grad is None for parameter in teacher.parameters())


def test_introspection_begins_at_its_share_of_the_run(make_trainer):
    for method, moves in (("iad", [13, 13, 13, 14, 14]), ("adaiad", [3, 3, 3, 4, 4])):
        recorder = Moves()
        train(
            make_trainer,
            method=method,
            data=tiny_data(4),
            num_train_epochs=5,
            steps=10,
            iad_begin=0.6,
            callbacks=[recorder],
        )
        assert recorder.by_step == moves


@pytest.mark.parametrize("method", METHODS)
def test_collator_that_knows_nothing_of_attacks_is_enough(make_trainer, method):
    trainer = train(
        make_trainer, method=method, data=tiny_data(4), steps=1, num_train_epochs=2, data_collator=plain_collator
    )
    assert trainer.state.global_step == 2 and trainer.crafter.augment == "none"


@pytest.mark.parametrize("method", ["fair_ard", "bmtard_union"])
def test_foreign_attack_is_refused_by_methods_that_need_more_than_it_gives(make_trainer, method):
    collator = PGDCollator(attack=lambda images, labels: images)
    with pytest.raises(ValueError, match=f"does not go with method '{method}', which needs .*: leave attack= out"):
        train(make_trainer, method=method, data_collator=collator)


EVALUATED = ["absld", "saad", "ciard", "awp on bmtard"]


@pytest.mark.parametrize("name", EVALUATED)
def test_evaluation_between_steps_changes_nothing(make_trainer, name):
    runs = [
        train(
            make_trainer,
            **CASES[name].options,
            num_train_epochs=2,
            data=tiny_data(8),
            steps=1,
            eval_strategy=when,
            eval_steps=1,
        )
        for when in ("no", "steps")
    ]
    assert_equal_weights(*runs)
    assert runs[0].distillation.state_dict() == runs[1].distillation.state_dict()


class FirstValues(TrainerCallback):
    """Keeps what the state and the trained teacher are when a training begins."""

    def __init__(self):
        self.seen, self.trainer = [], None

    def on_step_begin(self, args, state, control, **kwargs):
        if state.global_step == 0:
            teacher = [p.detach().clone() for p in self.trainer.teachers["robust"].parameters()]
            self.seen.append((self.trainer.distillation.state_dict(), teacher))


@pytest.mark.parametrize("method", ["fair_ard", "absld", "ciard", "bmtard_union"])
def test_second_training_begins_like_the_first(make_trainer, method):
    values = FirstValues()
    trainer = make_trainer(
        tiny_net(0, batch_norm=True), tiny_data(8), method=method, num_train_epochs=3, steps=1, callbacks=[values],
        robust_teacher=sharp_net(2, batch_norm=True), ciard_teacher_lr=0.1, weight_rate=0.5, temperature_rate=0.1,
    )  # fmt: skip
    values.trainer = trainer
    trainer.train()
    after = trainer.distillation.state_dict()
    trainer.train()
    (first, teacher), (second, again) = values.seen
    assert first == second != after
    assert all(torch.equal(left, right) for left, right in zip(teacher, again, strict=True))


@pytest.mark.parametrize("method", ["adaad", "ciard"])
def test_compiled_networks_train_the_same(make_trainer, method):
    def run(**options):
        return train(
            make_trainer, method=method, data=tiny_data(8), num_train_epochs=3, steps=2, ciard_teacher_lr=0.1,
            robust_teacher=sharp_net(2, batch_norm=True), **options,
        )  # fmt: skip

    plain, compiled = run(), run(torch_compile=True, torch_compile_backend="eager")
    for left, right in zip(weights(plain), weights(compiled), strict=True):
        torch.testing.assert_close(left, right, rtol=1e-4, atol=1e-6)
    ours, theirs = (list(trainer.teachers["robust"].state_dict().values()) for trainer in (plain, compiled))
    for left, right in zip(ours, theirs, strict=True):
        torch.testing.assert_close(left, right, rtol=1e-4, atol=1e-6)


@pytest.mark.parametrize("name", ["adaad", "saad", "ciard", "awp on trades"])
def test_bf16_trains_and_keeps_weights_in_float32(make_trainer, name):
    trainer = train(make_trainer, **CASES[name].options, data=tiny_data(4), num_train_epochs=2, steps=1, bf16=True)
    assert all(parameter.dtype == torch.float32 for parameter in trainer.model.parameters())
    assert trainer.state.log_history[0]["loss"] > 0
    for teacher in trainer.teachers.values():
        assert all(parameter.dtype == torch.float32 for parameter in teacher.parameters())


@pytest.mark.parametrize("name", ["igdm on bmtard", "saad-c", "ciard", "bmtard_union"])
def test_memory_layout_does_not_matter(make_trainer, name):
    runs = [
        train(
            make_trainer, **CASES[name].options, data=tiny_data(8), num_train_epochs=2, steps=2, channels_last=layout
        )
        for layout in (False, True)
    ]
    for left, right in zip(weights(runs[0]), weights(runs[1]), strict=True):
        torch.testing.assert_close(left, right, rtol=1e-4, atol=1e-5)


HOSTS = [name for name in CASES if name != "natural" and "igdm on" not in name and "awp on" not in name]


@pytest.mark.parametrize("name", HOSTS)
def test_both_sides_of_matched_gradients_reach_the_student(make_trainer, name):
    # a shift of all logits cancels in the difference, but only if both forwards have their gradient
    trainer = make_trainer(**{**CASES[name].options, "igdm_weight": 1.0})
    images = torch.rand(4, 3, 8, 8, generator=torch.Generator().manual_seed(0))
    batch = {"pixel_values": images, "labels": torch.tensor([0, 1, 2, 3]), "correct_steps": torch.ones(4)}
    for number, view in enumerate(trainer.method.adversarial_views, 1):
        batch[view] = (images + 0.05 * number * torch.sin(40 * images)).clamp(0, 1)
    teachers, state = trainer.ask_teachers(), trainer.distillation
    batch |= trainer.method.before_attack(trainer.student, teachers, batch, state)
    (batch,) = trainer.method.prepare(teachers, [batch], state)
    part = trainer.method.loss_parts(trainer.student, teachers, batch, state).parts["igdm"]
    head = trainer.model.head
    bias, weight = torch.autograd.grad(part, (head.bias, head.weight))
    assert bias.abs().max() < 1e-6 < weight.abs().max()


def test_matched_gradients_do_not_teach_the_teacher(make_trainer):
    def teacher_after(igdm_weight):
        trainer = train(
            make_trainer, method="ciard", igdm_weight=igdm_weight, data=tiny_data(4), num_train_epochs=2,
            ciard_teacher_lr=0.1,
        )  # fmt: skip
        return torch.cat([parameter.detach().flatten() for parameter in trainer.teachers["robust"].parameters()])

    first = torch.cat([parameter.detach().flatten() for parameter in sharp_net(2).parameters()])
    assert not torch.equal(teacher_after(1e-9), first)
    assert torch.equal(teacher_after(1e-9), teacher_after(1e3))
