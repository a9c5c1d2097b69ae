"""Numbers that go wrong: the run stops, names the first, the step and the likely cause; or leaves the step out and counts it."""

import copy
import itertools
from contextlib import nullcontext

import pytest
import torch
from conftest import sharp_net, tiny_data, tiny_net
from transformers import TrainerCallback

from bmtard_hooks import DistillationCallback
from bmtard_hooks.checkpoint_folders import checkpoints, why_unusable


class NotANumber(torch.autograd.Function):
    """The identity, with a gradient that is not finite."""

    @staticmethod
    def forward(ctx, x):
        return x.clone()

    @staticmethod
    def backward(ctx, gradient):
        return gradient * torch.nan


class Fault(TrainerCallback):
    """Goes wrong in some steps, counted from 1."""

    def __init__(self, kind, *steps):
        self.kind, self.steps, self.now = kind, steps, False

    def on_step_begin(self, args, state, control, **kwargs):
        self.now = state.global_step + 1 in self.steps

    def on_step_end(self, args, state, control, **kwargs):
        self.now = False


class FaultyStudent(torch.nn.Module):
    num_classes = 4

    def __init__(self, fault):
        super().__init__()
        self.net, self.fault = tiny_net(0, batch_norm=True), fault

    def forward(self, pixel_values):
        logits = self.net(pixel_values)
        kind = self.fault.kind if self.fault.now else None
        if kind == "loss" and self.training:
            return logits * torch.inf
        if (kind == "gradient" and self.training) or (kind == "attack" and not self.training):
            return NotANumber.apply(logits)
        return logits


class FaultyTeacher(torch.nn.Module):
    num_classes = 4

    def __init__(self, fault):
        super().__init__()
        self.net, self.fault = sharp_net(1, scale=8), fault

    def forward(self, pixel_values):
        return self.net(pixel_values) * (torch.nan if self.fault.now and self.fault.kind == "teacher" else 1.0)


class FaultyCollator:
    """A collator of somebody else, which gives a pixel that is not a number."""

    def __init__(self, fault):
        self.fault = fault

    def __call__(self, rows):
        images = torch.stack([row["pixel_values"] for row in rows]).float() / 255
        return {"pixel_values": images, "labels": torch.stack([row["labels"] for row in rows])}


class SpoilsBatch(TrainerCallback):
    """Puts a NaN into the micro-batches that were read for the step."""

    def __init__(self, fault):
        self.fault, self.trainer = fault, None

    def on_step_begin(self, args, state, control, **kwargs):
        if self.fault.now and self.fault.kind == "image":
            for batch in self.trainer._window.batches:
                batch["pixel_values"] = batch["pixel_values"].clone()
                batch["pixel_values"][0, 0, 0, 0] = torch.nan


MESSAGES = {
    "image": r"the clean images are not finite.*Likely cause: the data set or the collator",
    "attack": r"the gradient of the attack is not finite.*Likely cause: fp16 \(use bf16\), a forward",
    "teacher": r"the clean teacher's logits are not finite.*Likely cause: the teacher's weights are damaged",
    "loss": r"loss_(clean|robust) = nan.*Likely cause: the student's logits overflow: a learning rate too high",
    "gradient": r"the norm of the gradient = nan\. Likely cause: a learning rate too high",
}


@pytest.fixture
def faulty(make_trainer):
    def make(kind, *steps, **options):
        fault = Fault(kind, *steps)
        spoils = SpoilsBatch(fault)
        trainer = make_trainer(
            FaultyStudent(fault), tiny_data(24), clean_teacher=FaultyTeacher(fault), callbacks=[fault, spoils],
            data_collator=FaultyCollator(fault), fold_batch_norm=False,
            **{"save_strategy": "steps", "save_steps": 1, **options},
        )  # fmt: skip
        spoils.trainer = trainer
        return trainer

    return make


@pytest.mark.parametrize("accumulation", [1, 2])
@pytest.mark.parametrize("kind", MESSAGES)
def test_run_stops_and_names_part_step_and_cause(faulty, tmp_path, kind, accumulation, record_property):
    options = {"gradient_accumulation_steps": accumulation, "per_device_train_batch_size": 4 // accumulation}
    trainer = faulty(kind, 3, **options)
    with pytest.raises(FloatingPointError, match=f"^step 3: {MESSAGES[kind]}"):
        trainer.train()
    kept = checkpoints(tmp_path / "run")
    assert [path.name for path in kept] == ["checkpoint-2", "checkpoint-1"]
    assert [why_unusable(path) for path in kept] == [None, None]
    assert all(torch.isfinite(parameter).all() for parameter in trainer.model.parameters())
    record_property("bad numbers caught", 1)


class Snapshots(TrainerCallback):
    """Copies the student after every step."""

    def __init__(self):
        self.states = []

    def on_step_end(self, args, state, control, model=None, **kwargs):
        self.states.append({name: value.clone() for name, value in model.state_dict().items()})


@pytest.mark.parametrize("accumulation", [1, 2])
@pytest.mark.parametrize("kind", MESSAGES)
def test_step_that_is_left_out_changes_nothing_and_is_counted(faulty, kind, accumulation, record_property):
    options = {"gradient_accumulation_steps": accumulation, "per_device_train_batch_size": 4 // accumulation}
    trainer = faulty(kind, 3, max_skipped_steps=1, **options)
    snapshots = Snapshots()
    trainer.add_callback(snapshots)
    trainer.train()
    states = snapshots.states
    assert trainer.state.global_step == 6 and len(states) == 6
    assert all(torch.equal(states[1][name], states[2][name]) for name in states[1])
    assert not all(torch.equal(states[2][name], states[3][name]) for name in states[2])
    logs = [row for row in trainer.state.log_history if "loss" in row]
    assert [row.get("skipped_steps") for row in logs] == [None, None, 1, 1, 1, 1]
    assert all(abs(row["loss"]) < 1e3 for row in logs)
    record_property("bad numbers caught", 1)


class Remembers(DistillationCallback):
    """Keeps a number and a tensor of every step, as a callback of a user may."""

    def __init__(self):
        self.steps, self.total = [], torch.zeros(2)

    def on_losses(self, args, state, control, *, losses, **kwargs):
        self.steps.append(state.global_step + 1)
        self.total += state.global_step + 1

    def state_dict(self):
        return {"steps": self.steps}

    def load_state_dict(self, state):
        self.steps = state["steps"]

    def tensors(self):
        return {"total": self.total}

    def load_tensors(self, tensors):
        self.total = tensors["total"]


class Balances(TrainerCallback):
    """Reads the balance after every step."""

    def __init__(self):
        self.trainer, self.states = None, []

    def on_step_end(self, args, state, control, **kwargs):
        callbacks = [callback.state_dict() for callback in self.trainer.distillation_callbacks()]
        self.states.append(copy.deepcopy([self.trainer.distillation.state_dict(), callbacks]))


@pytest.mark.parametrize("accumulation", [1, 2])
@pytest.mark.parametrize("method", ["bmtard", "fair_ard", "absld"])
def test_step_left_out_for_its_gradient_moves_neither_balance_nor_callbacks(faulty, method, accumulation):
    remembers, balances = Remembers(), Balances()
    options = {"gradient_accumulation_steps": accumulation, "per_device_train_batch_size": 4 // accumulation}
    trainer = faulty(
        *("gradient", 1, 3), max_skipped_steps=1, method=method, temperature_rate=0.5, weight_rate=0.5, **options
    )
    trainer.add_callback(remembers)
    trainer.add_callback(balances)
    balances.trainer = trainer
    before = trainer.distillation.state_dict()
    trainer.train()
    states = balances.states
    assert states[0][0] == before and states[2] == states[1] and states[3] != states[2]
    assert remembers.steps == [2, 4, 5, 6] and remembers.total.tolist() == [17, 17]
    rows = [row for row in trainer.state.log_history if "loss" in row]
    assert [any(name.startswith("loss_") for name in row) for row in rows] == [False, True, False, True, True, True]


def test_steps_left_out_in_fp16_are_counted_in_a_row_only_if_they_are(faulty, monkeypatch):
    trainer = faulty("loss", 2, 4, 6, max_skipped_steps=1)
    monkeypatch.setattr(type(trainer.accelerator), "mixed_precision", property(lambda self: "fp16"))  # in name only
    trainer.train()
    assert trainer.state.global_step == 6 and trainer._finite.skipped == 3


@pytest.mark.parametrize("clipping", [0.0, 1.0])
@pytest.mark.parametrize("accumulation", [1, 2])
@pytest.mark.parametrize("kind", ["image", "teacher", "loss"])
def test_step_left_out_under_a_gradient_scaler_moves_neither_weights_nor_scale(
    faulty, monkeypatch, kind, accumulation, clipping
):
    options = {"gradient_accumulation_steps": accumulation, "per_device_train_batch_size": 4 // accumulation}
    trainer = faulty(kind, 1, 3, max_skipped_steps=1, max_grad_norm=clipping, weight_decay=0.1, **options)
    scaler = trainer.accelerator.scaler = torch.amp.GradScaler("cpu", init_scale=4.0, growth_interval=1)
    trainer.accelerator.native_amp = True
    monkeypatch.setattr(type(trainer.accelerator), "mixed_precision", property(lambda self: "fp16"))
    snapshots, scales, before = Snapshots(), [], copy.deepcopy(trainer.model.state_dict())

    class Scales(TrainerCallback):
        def on_step_end(self, args, state, control, lr_scheduler=None, **kwargs):
            scales.append((scaler.get_scale(), lr_scheduler.last_epoch))

    trainer.add_callback(snapshots)
    trainer.add_callback(Scales())
    trainer.train()
    states = [before, *snapshots.states]
    still = [all(torch.equal(a[name], b[name]) for name in a) for a, b in itertools.pairwise(states)]
    assert still == [True, False, True, False, False, False]
    assert scales == [(4.0, 1), (8.0, 2), (8.0, 3), (16.0, 4), (32.0, 5), (64.0, 6)]
    rows = [row for row in trainer.state.log_history if "loss" in row]
    assert [row["grad_norm"] == 0 for row in rows] == still and rows[-1]["skipped_steps"] == 2


@pytest.mark.parametrize(
    "value, precision, stops", [("inf", "fp16", False), ("nan", "fp16", True), ("inf", "no", True)]
)
def test_gradient_of_the_attack_may_overflow_in_fp16_alone(faulty, monkeypatch, value, precision, stops):
    trainer = faulty("none")
    monkeypatch.setattr(type(trainer.accelerator), "mixed_precision", property(lambda self: precision))
    trainer.note_attack(torch.full((2, 3, 4, 4), float(value)))
    with pytest.raises(FloatingPointError, match="of the attack is not finite") if stops else nullcontext():
        trainer._finite.watch(0, {})


@pytest.mark.parametrize("step", [3, 6])
def test_gradient_that_waits_for_the_next_step_is_looked_at_after_the_last_too(faulty, monkeypatch, step):
    def on_a_gpu(guard, step, norm):
        guard.note("gradient", f"the norm of step {step + 1}'s gradient", norm)

    monkeypatch.setattr("bmtard_hooks.finite_guard.FiniteGuard.watch_gradient", on_a_gpu)
    with pytest.raises(FloatingPointError, match=f"the norm of step {step}'s gradient = nan"):
        faulty("gradient", step, save_strategy="no").train()


def test_more_steps_in_a_row_than_allowed_stop_the_run(faulty, tmp_path):
    trainer = faulty("loss", 2, 4, 5, max_skipped_steps=1)
    with pytest.raises(FloatingPointError, match=r"^step 5: .* 2 steps were left out before, 1 in a row"):
        trainer.train()
    assert checkpoints(tmp_path / "run")[0].name == "checkpoint-4"


def test_count_of_steps_left_out_survives_a_resume(faulty):
    first = faulty("gradient", 2, max_skipped_steps=1, max_steps=3)
    first.train()
    second = faulty("gradient", max_skipped_steps=1)
    second.train(resume_from_checkpoint=True)
    assert second.state.global_step == 6 and second.state.log_history[-2]["skipped_steps"] == 1


@pytest.mark.parametrize("name", ["norm.running_var", "head.bias"])
def test_weight_or_statistic_that_is_not_finite_is_never_saved(make_trainer, tmp_path, name):
    class Spoil(TrainerCallback):
        def on_step_end(self, args, state, control, model=None, **kwargs):
            if state.global_step == 3:
                model.get_parameter(name).data.fill_(torch.nan) if "bias" in name else model.get_buffer(name).fill_(
                    torch.inf
                )

    trainer = make_trainer(tiny_net(0, batch_norm=True), callbacks=[Spoil()], save_strategy="steps", save_steps=1)
    with pytest.raises(FloatingPointError, match=f"step 3: {name} of the student is not finite"):
        trainer.train()
    assert checkpoints(tmp_path / "run")[0].name == "checkpoint-2"
