import logging

import pytest
from transformers import TrainerCallback

from bmtard_hooks.callbacks.balance_watch import FEW, BalanceWatch


class Moves(TrainerCallback):
    """Holds temperatures or weights where a test wants them."""

    def __init__(self, trainer_values):
        self.values = trainer_values

    def on_step_begin(self, args, state, control, **kwargs):
        for group, name, value in self.values:
            getattr(self.trainer.distillation, group)[name].fill_(value)


@pytest.fixture
def warnings_of(make_trainer, caplog, monkeypatch):
    def run(*values, **options):
        monkeypatch.setattr("bmtard_hooks.callbacks.balance_watch.FEW", 3)
        moves = Moves(values)
        trainer = make_trainer(callbacks=[moves], num_train_epochs=3, steps=1, **options)
        moves.trainer = trainer
        with caplog.at_level(logging.WARNING, "bmtard_hooks"):
            trainer.train()
        return [record.getMessage() for record in caplog.records if "balance_watch" in record.name]

    return run


def test_usual_run_with_one_temperature_at_the_lower_bound_is_silent(warnings_of):
    assert warnings_of(temperature_rate=0.1) == []


def test_temperature_at_its_upper_bound_is_warned_about_once_and_named(warnings_of):
    (message,) = warnings_of(("temperatures", "clean", 1.5), max_temperature=1.5, clean_temperature=1.5)
    assert message.startswith("the clean teacher's temperature is at its upper bound, 1.5, since step")
    assert "bmtard preview" in message


@pytest.mark.parametrize("value, words", [(1e-4, "nearly 0"), (0.9999, "nearly everything")])
def test_weight_that_leaves_nothing_to_the_other_part_is_warned_about(warnings_of, value, words):
    messages = warnings_of(("weights", "clean", value), ("weights", "robust", 1 - value), weight_rate=1e-9)
    assert len(messages) == 2 and any(
        m.startswith(f"the clean loss has a weight of {words} since step") for m in messages
    )


def test_method_without_balance_is_not_watched(warnings_of):
    assert warnings_of(("weights", "clean", 1e-4), ("weights", "robust", 1 - 1e-4), method="baseline") == []


def test_value_that_leaves_its_bound_begins_to_count_anew(make_trainer):
    trainer = make_trainer(max_temperature=2.0)
    watch = BalanceWatch(trainer)
    trainer.state.max_steps = 10
    for step in range(1, 3 * FEW, 5):
        trainer.state.global_step = step
        value = 1.9 if step % 50 == 1 else 2.0
        logs = {"loss": 1.0, "temperature_clean": value, "temperature_robust": 1.0}
        watch.on_log(trainer.args, trainer.state, trainer.control, logs=logs)
    assert not watch._told
