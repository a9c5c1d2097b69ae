"""What a resumed run logs, evaluates and decides is what the uninterrupted one does, from whichever checkpoint it goes on."""

import pytest
import torch
from conftest import tiny_data, tiny_net
from transformers import EarlyStoppingCallback, TrainerCallback

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
