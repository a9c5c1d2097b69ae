from dataclasses import dataclass

import pytest

from bmtard_hooks import BMTARDConfig
from bmtard_hooks.arguments import DataArguments, parse


@dataclass
class Extra:
    """One more option."""

    model: str = "resnet8_cifar"


def parsed(tmp_path, text="", argv=()):
    path = tmp_path / "run.yaml"
    path.write_text(text)
    return parse([Extra, DataArguments, BMTARDConfig], ["--config", str(path), "--output_dir", str(tmp_path), *argv])


def test_numbers_that_yaml_reads_as_strings_are_numbers(tmp_path):
    text = "learning_rate: 1e-3\nweight_decay: 5e-4\nlr_milestones: [3, 4.5]\nloss_balance: false\neps: 0.0314\nsteps: 7\nmodel: x"
    extra, _, config = parsed(tmp_path, text)
    assert (config.learning_rate, config.weight_decay, config.lr_milestones) == (1e-3, 5e-4, [3.0, 4.5])
    assert config.loss_balance is False and config.entropy_balance is None and config.steps == 7
    assert extra.model == "x"


def test_command_line_wins_over_the_file(tmp_path):
    _, data, config = parsed(
        tmp_path, "steps: 7\ndataset: a", ["--steps", "3", "--entropy_balance", "false", "--bf16", "false"]
    )
    assert (config.steps, data.dataset, config.entropy_balance, config.bf16) == (3, "a", False, False)


def test_unknown_option_in_the_file_names_the_nearest(tmp_path):
    with pytest.raises(
        ValueError, match=r"run\.yaml: unknown option 'temprature_rate': did you mean .*temperature_rate"
    ):
        parsed(tmp_path, "temprature_rate: 0.1")
    with pytest.raises(ValueError, match="it holds a list"):
        parsed(tmp_path, "- a")
    with pytest.raises(FileNotFoundError, match=r"none\.yaml does not exist"):
        parse([BMTARDConfig], ["--config=none.yaml"])


def test_defaults_are_the_papers(tmp_path):
    _, _, config = parsed(tmp_path)
    attack = config.train_attack()
    assert (attack.eps, attack.step_size, attack.steps, attack.start) == (8 / 255, 2 / 255, 10, "normal")
    assert (config.optim, config.learning_rate, config.momentum, config.weight_decay) == ("sgd", 0.1, 0.9, 2e-4)
    assert (config.num_train_epochs, config.per_device_train_batch_size, config.max_grad_norm) == (300, 128, 0)
    assert (config.temperature_rate, config.weight_rate, config.loss_balance_power) == (0.001, 0.025, 1)
    assert (config.min_temperature, config.max_temperature, config.loss_scale) == (1, 10, 0.1)
    evaluation = config.evaluation_attack()
    assert (evaluation.steps, evaluation.step_size, evaluation.start, evaluation.clip_start) == (
        20,
        0.003,
        "uniform",
        True,
    )


def test_every_option_has_help():
    from dataclasses import fields

    from transformers import TrainingArguments

    own = {entry.name for entry in fields(BMTARDConfig)} - {entry.name for entry in fields(TrainingArguments)}
    assert len(own) > 30
    assert not [e.name for e in fields(BMTARDConfig) if e.name in own and not e.metadata.get("help")]


@pytest.mark.parametrize("fast", [True, False])
def test_bf16_on_a_cpu_without_it_is_warned_about(fast, monkeypatch, tmp_path, caplog):
    monkeypatch.setattr("bmtard_hooks.config._has_fast_bf16", lambda: fast)
    BMTARDConfig(output_dir=str(tmp_path), bf16=True, use_cpu=True)
    assert ("about 10 times slower than float32" in caplog.text) is not fast
