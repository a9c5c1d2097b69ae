"""What a resumed run logs, evaluates and decides is what the uninterrupted one does, from whichever checkpoint it goes on."""

import json

import pytest
import torch
from conftest import tiny_data, tiny_net
from transformers import EarlyStoppingCallback, TrainerCallback

from bmtard_hooks.state import STATE_NAME
from bmtard_hooks.stopping import StoppedBySignal

TIMES = ("runtime", "per_second", "flos")


def logs(trainer):
    return [
        {key: value for key, value in row.items() if not any(word in key for word in TIMES)}
        for row in trainer.state.log_history
    ]


@pytest.mark.parametrize(
    "options",
    [
        {"logging_steps": 3},
        {"logging_strategy": "epoch", "eval_strategy": "epoch"},
        {"logging_steps": 5, "eval_strategy": "steps", "eval_steps": 2, "metric_for_best_model": "w_robust"},
        {"logging_steps": 3, "max_steps": 6, "num_train_epochs": 1},  # ends in the middle of an epoch
        {"logging_steps": 4, "lr_scheduler_type": "cosine", "max_grad_norm": 0.01, "gradient_accumulation_steps": 2},
        {"logging_steps": 3, "method": "saad", "weight_averaging": "swa", "averaging_start": 0.1},
    ],
    ids=lambda options: ",".join(options),
)
def test_log_is_the_same_from_every_checkpoint(make_trainer, tmp_path, options):
    def trainer():
        given = {
            "num_train_epochs": 2,
            "steps": 1,
            "save_strategy": "steps",
            "save_steps": 1,
            "weight_rate": 0.3,
            **options,
        }
        return make_trainer(tiny_net(0, batch_norm=True, dropout=0.3), tiny_data(16), **given)

    straight = trainer()
    straight.train()
    for step in range(1, straight.state.global_step + 1):
        resumed = trainer()
        resumed.train(resume_from_checkpoint=str(tmp_path / "run" / f"checkpoint-{step}"))
        assert logs(resumed) == logs(straight), step
        for left, right in zip(straight.model.parameters(), resumed.model.parameters(), strict=True):
            assert torch.equal(left, right)


def test_early_stopping_keeps_its_patience_and_its_decision(make_trainer, tmp_path):
    def trainer():
        stopping = EarlyStoppingCallback(2)
        made = make_trainer(
            data=tiny_data(40), callbacks=[stopping], learning_rate=0.0, save_strategy="steps", save_steps=1, steps=1,
            eval_strategy="steps", eval_steps=2, metric_for_best_model="w_robust",
        )  # fmt: skip
        return made, stopping

    straight, _ = trainer()
    straight.train()
    assert straight.state.global_step == 6  # the second evaluation without progress is the third of all
    for step in range(1, 7):
        resumed, stopping = trainer()
        resumed.train(resume_from_checkpoint=str(tmp_path / "run" / f"checkpoint-{step}"))
        assert resumed.state.global_step == 6 and logs(resumed) == logs(straight), step
        assert stopping.early_stopping_patience_counter == 2  # in the object that the user holds


@pytest.mark.parametrize("by_transformers", [False, True], ids=["by this Trainer", "by transformers"])
def test_each_of_two_callbacks_of_one_class_goes_on_with_its_own_numbers(make_trainer, tmp_path, by_transformers):
    def trainer():
        both = [EarlyStoppingCallback(9), EarlyStoppingCallback(2)]
        return make_trainer(
            data=tiny_data(40), callbacks=both, learning_rate=0.0, save_strategy="steps", save_steps=1, steps=1,
            eval_strategy="steps", eval_steps=2, metric_for_best_model="w_robust",
            restore_callback_states_from_checkpoint=by_transformers,
        )  # fmt: skip

    trainer().train()
    for step in range(1, 7):
        resumed = trainer()
        resumed.train(resume_from_checkpoint=str(tmp_path / "run" / f"checkpoint-{step}"))
        assert resumed.state.global_step == 6, step
    saved = json.loads((tmp_path / "run" / "checkpoint-6" / "trainer_state.json").read_text())["stateful_callbacks"]
    assert [entry["args"]["early_stopping_patience"] for entry in saved["EarlyStoppingCallback"]] == [9, 2]
    assert [entry["attributes"] for entry in saved["EarlyStoppingCallback"]] == [
        {"early_stopping_patience_counter": 2}
    ] * 2


@pytest.mark.parametrize("whole", [True, False], ids=["with its record", "of an earlier release"])
def test_early_stopping_that_the_checkpoint_did_not_know_joins_the_run(make_trainer, tmp_path, whole):
    options = {
        **{"data": tiny_data(40), "learning_rate": 0.0, "steps": 1, "save_strategy": "steps", "save_steps": 1},
        **{"eval_strategy": "steps", "eval_steps": 2, "metric_for_best_model": "w_robust"},
    }
    make_trainer(max_steps=3, **options).train()
    checkpoint = tmp_path / "run" / "checkpoint-3"
    if not whole:
        path = checkpoint / STATE_NAME
        content = json.loads(path.read_text())
        del content["run"]
        path.write_text(json.dumps(content))
        (checkpoint / "checkpoint_manifest.json").unlink()
    stopping = EarlyStoppingCallback(2)
    resumed = make_trainer(callbacks=[stopping], **options)
    resumed.train(resume_from_checkpoint=str(checkpoint))
    assert resumed.state.global_step == 6 and stopping.early_stopping_patience_counter == 2
    state = json.loads((tmp_path / "run" / "checkpoint-6" / "trainer_state.json").read_text())
    assert state["stateful_callbacks"]["EarlyStoppingCallback"]["attributes"] == {"early_stopping_patience_counter": 2}


class AsksToStop(TrainerCallback):
    """Asks its Trainer to stop in a step."""

    trainer = None

    def __init__(self, step):
        self.step = step

    def on_step_end(self, args, state, control, **kwargs):
        if state.global_step == self.step:
            self.trainer.request_stop()


@pytest.mark.parametrize(
    "options",
    [
        {"eval_strategy": "steps", "eval_steps": 2, "save_strategy": "steps", "save_steps": 4},
        {"eval_strategy": "epoch", "save_strategy": "epoch", "load_best_model_at_end": True},
        {"eval_strategy": "steps", "eval_steps": 2, "save_strategy": "best", "logging_strategy": "epoch"},
    ],
    ids=["steps", "epoch", "best"],
)
def test_evaluation_that_a_stop_left_out_is_made_when_the_run_goes_on(make_trainer, tmp_path, options):
    def trainer(folder, *callbacks):
        return make_trainer(
            tiny_net(0, batch_norm=True, dropout=0.3), tiny_data(16), callbacks=list(callbacks), num_train_epochs=2, steps=1,
            metric_for_best_model="w_robust", output_dir=str(tmp_path / folder), **{"logging_steps": 3, **options},
        )  # fmt: skip

    straight = trainer("straight")
    straight.train()
    for step in range(1, 9):
        asks = AsksToStop(step)
        stopped = asks.trainer = trainer(f"stopped{step}", asks)
        with pytest.raises(StoppedBySignal):
            stopped.train()
        resumed = trainer(f"stopped{step}")
        resumed.train(resume_from_checkpoint=True)
        assert logs(resumed) == logs(straight), step
        assert resumed.state.best_global_step == straight.state.best_global_step
        for left, right in zip(straight.model.parameters(), resumed.model.parameters(), strict=True):
            assert torch.equal(left, right)


class Hears(TrainerCallback):
    """Writes down what it is told."""

    def __init__(self):
        self.told = []

    def on_train_begin(self, args, state, control, **kwargs):
        self.told.append(("train begins", state.global_step))

    def on_epoch_begin(self, args, state, control, **kwargs):
        self.told.append(("epoch begins", state.global_step))

    def on_epoch_end(self, args, state, control, **kwargs):
        self.told.append(("epoch ends", state.global_step))

    def on_evaluate(self, args, state, control, **kwargs):
        self.told.append(("evaluated", state.global_step))


class Killed(TrainerCallback):
    """Ends its run when the checkpoint of a step is written."""

    def __init__(self, step):
        self.step = step

    def on_save(self, args, state, control, **kwargs):
        if state.global_step == self.step:
            raise KeyboardInterrupt


@pytest.mark.parametrize("ending", [Killed, AsksToStop], ids=["killed", "stopped"])
@pytest.mark.parametrize("added", ["constructor", "add_callback"])
def test_what_was_missed_is_told_to_a_callback_after_the_beginning_however_it_was_added(make_trainer, ending, added):
    def trainer(*callbacks):
        return make_trainer(
            data=tiny_data(16), callbacks=list(callbacks), num_train_epochs=2, steps=1, method="sat",
            save_strategy="steps", save_steps=4, eval_strategy="epoch",
        )  # fmt: skip

    end = ending(4)
    ended = trainer(end)
    end.trainer = ended
    with pytest.raises((KeyboardInterrupt, StoppedBySignal)):
        ended.train()
    hears = Hears()
    resumed = trainer(*([hears] if added == "constructor" else []))
    if added == "add_callback":
        resumed.add_callback(hears)
    resumed.train(resume_from_checkpoint=True)
    assert hears.told == [
        *[("train begins", 4), ("epoch ends", 4), ("evaluated", 4)],
        *[("epoch begins", 4), ("epoch ends", 8), ("evaluated", 8)],
    ]
