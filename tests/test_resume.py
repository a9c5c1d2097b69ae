import json
import shutil

import pytest
import torch
from conftest import tiny_data, tiny_net

from bmtard_hooks import DistillationCallback, DistillationState
from bmtard_hooks.checkpoint_folders import MANIFEST_NAME
from bmtard_hooks.state import STATE_NAME, load_state, save_state

OPTIONS = [
    {},
    {"gradient_accumulation_steps": 2, "per_device_train_batch_size": 2},
    {"dataloader_num_workers": 1},
    {"eval_strategy": "steps", "eval_steps": 1},
    {"method": "trades"},
]


@pytest.mark.parametrize("options", OPTIONS, ids=lambda o: ",".join(o) or "plain")
@pytest.mark.parametrize("stop", [3, 4])  # in the middle and at the end of an epoch
def test_resumed_run_equals_the_straight_one_bit_for_bit(make_trainer, tmp_path, options, stop):
    def trainer():
        return make_trainer(
            tiny_net(0, batch_norm=True, dropout=0.3),
            tiny_data(16),
            num_train_epochs=2,
            save_strategy="steps",
            save_steps=1,
            augment="crop_flip",
            crop_padding=1,
            weight_rate=0.3,
            temperature_rate=0.1,
            **options,
        )

    straight = trainer()
    straight.train()
    for step in range(stop + 1, 9):
        shutil.rmtree(tmp_path / "run" / f"checkpoint-{step}")
    resumed = trainer()
    resumed.train(resume_from_checkpoint=True)
    assert resumed.state.global_step == straight.state.global_step == 8
    for name, value in straight.model.state_dict().items():
        assert torch.equal(value, resumed.model.state_dict()[name]), name
    assert straight.distillation.state_dict() == resumed.distillation.state_dict()
    keys = [key for key in straight.state.log_history[7] if not key.startswith(("train_", "eval_"))]
    logs = [[{key: row.get(key) for key in keys} for row in t.state.log_history] for t in (straight, resumed)]
    assert logs[0] == logs[1]


def test_state_survives_json_bit_for_bit(tmp_path):
    generator = torch.Generator().manual_seed(0)
    numbers = torch.rand(6, dtype=torch.float64, generator=generator).tolist()
    state = DistillationState.create({"a": numbers[0], "b": numbers[1]}, {"a": numbers[2], "b": 0.1 + 0.2})
    state.initial_losses["a"] = torch.tensor(numbers[4] * 1e-12, dtype=torch.float64)
    save_state(tmp_path, json.dumps(state.state_dict()))
    other = DistillationState.create({"a": 1, "b": 1}, {"a": 1, "b": 1})
    other.load_state_dict(load_state(tmp_path))
    assert other.state_dict() == state.state_dict()
    assert not list(tmp_path.glob("*.tmp"))


def checkpoint(make_trainer, tmp_path, **options):
    trainer = make_trainer(save_strategy="steps", save_steps=2, **options)
    trainer.train()
    return tmp_path / "run" / "checkpoint-2"


def test_checkpoint_of_another_method_is_refused(make_trainer, tmp_path):
    directory = checkpoint(make_trainer, tmp_path)
    with pytest.raises(ValueError, match="trained with method='bmtard', this run has 'mtard'"):
        make_trainer(method="mtard").train(resume_from_checkpoint=str(directory))
    with pytest.raises(ValueError, match=r"has callbacks \['EntropyBalance', 'LossBalance'\], this run has"):
        make_trainer(loss_balance=False).train(resume_from_checkpoint=str(directory))


def test_checkpoint_without_or_with_half_a_state_is_refused(make_trainer, tmp_path):
    directory = checkpoint(make_trainer, tmp_path)
    (directory / MANIFEST_NAME).unlink()  # as a release before 0.7 wrote it
    (directory / STATE_NAME).write_text('{"version": 1, "meth')
    with pytest.raises(ValueError, match="is not whole"):
        make_trainer().train(resume_from_checkpoint=str(directory))
    (directory / STATE_NAME).unlink()
    with pytest.raises(ValueError, match="missing: it is half-written, or not of BMTARDTrainer"):
        make_trainer().train(resume_from_checkpoint=str(directory))


def test_state_of_other_teachers_is_refused():
    state = DistillationState.create({"a": 1.0}, {"a": 1.0})
    with pytest.raises(ValueError, match=r"has temperatures for \['b'\], this run for \['a'\]"):
        state.load_state_dict({"temperatures": {"b": 1.0}, "weights": {"a": 1.0}, "initial_losses": {}})


def test_every_checkpoint_holds_the_state_also_when_only_the_model_is_saved(make_trainer, tmp_path):
    directory = checkpoint(make_trainer, tmp_path, save_only_model=True)
    content = json.loads((directory / STATE_NAME).read_text())
    assert content["method"] == "bmtard" and set(content["weights"]) == {"robust", "clean"}


def forget(directory, *keys):
    """Take entries out of what a run began with, as if an earlier release had written the checkpoint."""
    content = load_state(directory)
    for key in keys:
        del content["begun_with"][key]
    save_state(directory, json.dumps(content))
    (directory / MANIFEST_NAME).unlink()


@pytest.mark.parametrize(
    "options, message",
    [
        (
            {"per_device_train_batch_size": 8},
            r"a step has 8 images \(.*size 8 x .*steps 1 x world_size 1\).* had 4 \(",
        ),
        ({"per_device_train_batch_size": 8}, "To go on with 4, pass per_device_train_batch_size=4; or start anew"),
        ({"per_device_train_batch_size": 1}, "To go on with 4, pass gradient_accumulation_steps=4; or"),
        ({"gradient_accumulation_steps": 2}, "To go on with 4, pass gradient_accumulation_steps=1; or"),
        ({"per_device_train_batch_size": 3, "gradient_accumulation_steps": 3}, "pass the same batch size, accum"),
    ],
)
@pytest.mark.parametrize("old", [False, True])
def test_other_images_per_step_are_refused(make_trainer, tmp_path, options, message, old):
    directory = checkpoint(make_trainer, tmp_path)
    if old:
        forget(directory, "images_per_step")
    with pytest.raises(ValueError, match=message):
        make_trainer(**options).train(resume_from_checkpoint=str(directory))


def test_same_images_per_step_in_other_parts_go_on(make_trainer, tmp_path, caplog):
    options = {"num_train_epochs": 2, "save_strategy": "steps", "save_steps": 2}
    make_trainer(**options).train()
    for stop, parts in ((4, (2, 2)), (6, (4, 1)), (2, (1, 4))):
        directory = tmp_path / "run" / f"checkpoint-{stop}"
        resumed = make_trainer(**options, per_device_train_batch_size=parts[0], gradient_accumulation_steps=parts[1])
        resumed.train(resume_from_checkpoint=str(directory))
        assert (resumed.state.global_step, resumed.state.epoch) == (
            8,
            2,
        ) and "goes on with other options" in caplog.text


def test_batch_size_that_was_found_is_the_one_that_counts_on_resume(make_trainer, tmp_path, monkeypatch):
    from bmtard_hooks import BMTARDTrainer

    original = BMTARDTrainer.compute_loss

    def too_large(self, model, inputs, *args, **kwargs):
        if len(inputs["labels"]) > 4:
            raise RuntimeError("CUDA out of memory.")
        return original(self, model, inputs, *args, **kwargs)

    monkeypatch.setattr(BMTARDTrainer, "compute_loss", too_large)
    options = {
        "per_device_train_batch_size": 8,
        "auto_find_batch_size": True,
        "save_strategy": "steps",
        "save_steps": 1,
    }
    first = make_trainer(**options)
    first.train()
    size = first._train_batch_size
    assert size <= 4
    directory = str(tmp_path / "run" / "checkpoint-2")
    for same in (options, {"per_device_train_batch_size": size}):
        resumed = make_trainer(**same)
        resumed.train(resume_from_checkpoint=directory)
        assert resumed.state.global_step == first.state.global_step
    with pytest.raises(ValueError, match=f"a step has 8 images .* had {size}"):
        make_trainer(per_device_train_batch_size=8).train(resume_from_checkpoint=directory)


class Counter(DistillationCallback):
    """Remembers how many steps it saw."""

    def __init__(self):
        self.steps = 0

    def on_losses(self, *args, **kwargs):
        self.steps += 1

    def state_dict(self):
        return {"steps": self.steps}

    def load_state_dict(self, state):
        self.steps = state["steps"]


def test_callbacks_of_users_come_back_with_their_state_and_identity(make_trainer, tmp_path):
    make_trainer(callbacks=[Counter()], save_strategy="steps", save_steps=2).train()
    counter = Counter()
    make_trainer(callbacks=[counter]).train(resume_from_checkpoint=str(tmp_path / "run" / "checkpoint-2"))
    assert counter.steps == 4


def test_resume_from_the_command_line_means_the_last_checkpoint(make_trainer):
    make_trainer(save_strategy="steps", save_steps=3).train()
    trainer = make_trainer()
    trainer.train(resume_from_checkpoint="true")
    assert [entry["step"] for entry in trainer.state.log_history if "loss" in entry] == [1, 2, 3, 4]


def test_retry_with_a_smaller_batch_starts_the_balance_anew(make_trainer, monkeypatch):
    from bmtard_hooks import BMTARDTrainer

    original, failed = BMTARDTrainer.compute_loss, []

    def out_of_memory_once(self, *args, **kwargs):
        if self.state.global_step == 2 and not failed:
            failed.append(self.distillation.state_dict())
            raise RuntimeError("CUDA out of memory.")
        return original(self, *args, **kwargs)

    monkeypatch.setattr(BMTARDTrainer, "compute_loss", out_of_memory_once)
    trainer = make_trainer(auto_find_batch_size=True, weight_rate=0.5)
    trainer.train()
    assert failed and trainer.state.log_history[0]["weight_clean"] == 0.5 != failed[0]["weights"]["clean"]


def test_mean_loss_that_a_resumed_training_returns_is_that_of_all_its_steps(make_trainer, tmp_path):
    straight = make_trainer(save_strategy="steps", save_steps=1).train()
    resumed = make_trainer().train(resume_from_checkpoint=str(tmp_path / "run" / "checkpoint-3"))
    assert resumed.training_loss == resumed.metrics["train_loss"] == straight.metrics["train_loss"]
    assert straight.training_loss == straight.metrics["train_loss"]
