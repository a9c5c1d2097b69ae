import logging

import pytest
import torch
from conftest import sharp_net, tiny_data, tiny_net
from torch.utils._python_dispatch import TorchDispatchMode
from transformers import TrainerCallback

from bmtard_hooks import PGDCollator, PixelClassifier, attack_mode
from bmtard_hooks.attacks import PGDSettings, cross_entropy, pgd
from bmtard_hooks.frozen_forwards import COUNTS_FOR_EACH, compile_options
from bmtard_hooks.models.folding import FoldedClassifier


class Recorder(PGDCollator):
    """Keeps every crafted batch."""

    crafted: list

    def craft(self, model, batch, **kwargs):
        crafted = super().craft(model, batch, **kwargs)
        self.crafted.append(crafted)
        return crafted


def recorded(make_trainer, **options):
    recorder = Recorder()
    recorder.crafted = []
    options = {
        "clean_teacher": sharp_net(1, batch_norm=True),
        "robust_teacher": sharp_net(2, batch_norm=True),
    } | options
    trainer = make_trainer(tiny_net(0, batch_norm=True), tiny_data(24), data_collator=recorder, **options)
    trainer.train()
    return trainer, recorder.crafted


def test_folding_changes_no_crafted_image_but_by_rounding(make_trainer):
    folded, fast = recorded(make_trainer, steps=10, num_train_epochs=2)
    plain, slow = recorded(
        make_trainer, steps=10, num_train_epochs=2, fold_batch_norm=False, overwrite_output_dir=True
    )
    assert isinstance(folded._copy, FoldedClassifier) and plain._copy is None
    assert all(isinstance(asked, FoldedClassifier) for asked in folded._asked.values())
    assert len(fast) == len(slow) == 12
    for a, b in zip(fast, slow, strict=True):
        assert torch.equal(a["pixel_values"], b["pixel_values"])
        apart = (a["adv_pixel_values"] - b["adv_pixel_values"]).abs()
        assert (apart > 1e-4).float().mean() < 0.01  # a rounded gradient near 0 changes its sign now and then
    for name, value in plain.model.state_dict().items():
        torch.testing.assert_close(folded.model.state_dict()[name], value, rtol=1e-2, atol=1e-3)


@pytest.mark.parametrize(("method", "folds"), [("bmtard", True), ("ard", False)])
def test_only_attacks_in_eval_mode_look_at_the_copy(make_trainer, monkeypatch, method, folds):
    calls = []
    forward = FoldedClassifier.forward

    def counting(self, pixels):
        calls.append((self.network, pixels.requires_grad))
        return forward(self, pixels)

    monkeypatch.setattr(FoldedClassifier, "forward", counting)
    trainer, _ = recorded(make_trainer, method=method)
    attacked = [asked for network, asked in calls if network is trainer.model and asked]
    assert len(attacked) == 1 + (12 if folds else 0)  # one to compare it with the student
    assert {network for network, _ in calls} >= {teacher.backbone for teacher in trainer.teachers.values()}


def test_evaluation_attacks_the_weights_of_now(make_trainer):
    def accuracy(fold):
        trainer, _ = recorded(make_trainer, eval_attack_steps=5, fold_batch_norm=fold, overwrite_output_dir=True)
        first = trainer.evaluate()
        with torch.no_grad():
            trainer.model.head.weight.neg_()
        return [{k: v for k, v in m.items() if "accuracy" in k or "loss" in k} for m in (first, trainer.evaluate())]

    folded, plain = accuracy(True), accuracy(False)
    assert folded[0] != folded[1]
    for a, b in zip(folded, plain, strict=True):
        assert a == pytest.approx(b, rel=1e-3)


class Sharpen(TrainerCallback):
    """Changes the student's forward, not its weights, after the first epoch."""

    def on_epoch_end(self, args, state, control, model=None, **kwargs):
        model.dropout.forward = lambda features: 3 * features


@pytest.mark.parametrize("precision", [{}, {"bf16": True}])
def test_a_forward_that_changes_in_training_ends_the_folding(make_trainer, caplog, precision):
    with caplog.at_level(logging.WARNING, "bmtard_hooks"):
        trainer, _ = recorded(make_trainer, num_train_epochs=2, callbacks=[Sharpen()], **precision)
    assert trainer._copy is None
    assert caplog.text.count("the student's forward has changed") == 1


def test_a_forward_that_changes_after_training_is_noticed_by_the_next_evaluation(make_trainer, caplog):
    trainer, _ = recorded(make_trainer)
    trainer.evaluate()
    assert trainer._copy is not None
    trainer.model.dropout.forward = lambda features: 3 * features
    with caplog.at_level(logging.WARNING, "bmtard_hooks"):
        trainer.evaluate()
    assert trainer._copy is None and "the student's forward has changed" in caplog.text


def test_a_student_that_stays_keeps_its_copy_in_half_precision(make_trainer, caplog):
    trainer, crafted = recorded(make_trainer, num_train_epochs=3, bf16=True)
    assert trainer._copy.module.conv.weight.dtype == torch.bfloat16
    assert crafted[0]["adv_pixel_values"].dtype == torch.float32
    assert "changed" not in caplog.text


def test_a_second_training_makes_new_copies(make_trainer):
    trainer, _ = recorded(make_trainer)
    first = trainer._copy
    trainer.train()
    assert trainer._copy is not None and trainer._copy is not first


class HostReads(TorchDispatchMode):
    """Counts the operations that would make the host wait for a GPU."""

    WAITS = ("_local_scalar_dense", "is_nonzero", "nonzero", "masked_select", "equal", "_unique2")

    def __init__(self):
        super().__init__()
        self.seen = []

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        if func.overloadpacket.__name__ in self.WAITS:
            self.seen.append(func.overloadpacket.__name__)
        return func(*args, **(kwargs or {}))


class Watch(TrainerCallback):
    """Watches every step but the first, which records the initial losses."""

    def __init__(self, mode):
        self.mode, self.per_step = mode, []

    def on_step_begin(self, args, state, control, **kwargs):
        if state.global_step:
            self.mode.seen.clear()
            self.mode.__enter__()

    def on_step_end(self, args, state, control, **kwargs):
        if state.global_step > 1:
            self.mode.__exit__(None, None, None)
            self.per_step.append(list(self.mode.seen))


@pytest.mark.parametrize("options", [{}, {"gradient_accumulation_steps": 2}, {"augment": "crop_flip"}])
def test_no_step_reads_anything_back_but_the_alarm_for_losses_that_are_not_finite(make_trainer, monkeypatch, options):
    # on a CPU the alarm looks at once; on a GPU it copies without waiting
    monkeypatch.setattr("bmtard_hooks.finite_guard.FiniteGuard.watch", lambda *args: None)
    watch = Watch(HostReads())
    make_trainer(tiny_net(0, batch_norm=True), tiny_data(32), callbacks=[watch], logging_steps=100, **options).train()
    assert len(watch.per_step) >= 3
    assert not any(watch.per_step), watch.per_step


def learnt_scene():
    """A student that has learnt to tell brightness apart, and images of which an attack breaks some."""
    generator = torch.Generator().manual_seed(0)
    labels = torch.arange(256) % 4
    images = 0.2 + 0.2 * labels.view(-1, 1, 1, 1) + 0.15 * torch.randn(256, 3, 8, 8, generator=generator)
    images, student = images.clamp(0, 1), PixelClassifier(tiny_net(0, batch_norm=True))
    optimizer = torch.optim.Adam(student.parameters(), lr=0.01)
    for _ in range(60):
        optimizer.zero_grad()
        torch.nn.functional.cross_entropy(student(images), labels).backward()
        optimizer.step()
    return student.eval(), images, labels


def test_attacks_in_half_precision_are_as_strong():
    student, images, labels = learnt_scene()
    exact, coarse = FoldedClassifier(student), FoldedClassifier(student).to_precision(torch.bfloat16)

    def in_half_precision(pixels):
        with torch.autocast("cpu", torch.bfloat16):
            return coarse(pixels)

    def robust_accuracy(forward):
        settings = PGDSettings(eps=0.1, step_size=0.03, steps=10)
        generator = torch.Generator().manual_seed(1)
        with attack_mode(student):
            found = pgd(forward, images, cross_entropy(labels), settings, generator=generator)
        return (student(found).argmax(dim=1) == labels).float().mean().item()

    plain, folded, half = robust_accuracy(student), robust_accuracy(exact), robust_accuracy(in_half_precision)
    assert 0.2 < plain < 0.8
    assert folded == pytest.approx(plain, abs=0.01)
    assert half == pytest.approx(plain, abs=0.04)  # one standard error of 256 images is 0.03


@pytest.mark.skipif(not COUNTS_FOR_EACH, reason="this torch compiles eight versions of one code, whatever the network")
def test_every_copy_is_compiled_however_many_there_are(make_config):
    made = []

    def counting(graph, inputs):
        made.append(graph)
        return graph.forward

    pixels, options = torch.rand(2, 3, 8, 8), compile_options(make_config())
    for seed in range(10):
        copy = FoldedClassifier.checked(PixelClassifier(tiny_net(seed, batch_norm=True).eval()), pixels)
        copy.compile(**{**options, "backend": counting})
        copy(pixels)
    assert len(made) == 10
