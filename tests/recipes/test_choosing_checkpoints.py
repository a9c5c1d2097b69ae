"""A recipe evaluates and chooses its checkpoint without being told, as far as its options allow."""

import json

import cifar10
import pytest
import train_teacher
from scenery import LAYOUTS, write_dataset

from bmtard_hooks import BMTARDConfig
from bmtard_hooks.arguments import parse
from bmtard_hooks.choosing_checkpoints import choosing_defaults

FAST = (
    *("--steps", "1", "--eval_attack_steps", "1", "--num_train_epochs", "2", "--per_device_train_batch_size", "16"),
    *("--disable_tqdm", "true", "--validation_images", "12", "--test_limit", "8"),
)


def parsed(tmp_path, *words):
    (config,) = parse([BMTARDConfig], ["--output_dir", str(tmp_path), *words], defaults=choosing_defaults)
    names = ("eval_strategy", "save_strategy", "load_best_model_at_end", "save_total_limit")
    return config, tuple(getattr(value, "value", value) for value in (getattr(config, name) for name in names))


@pytest.mark.parametrize(
    ("words", "expected"),
    [
        ("", ("epoch", "epoch", True, 2)),
        ("--max_steps 3", ("epoch", "epoch", True, 2)),
        ("--eval_strategy no", ("no", "epoch", False, 2)),
        ("--save_strategy no", ("epoch", "no", False, 2)),
        ("--save_strategy no --eval_strategy steps", ("steps", "no", False, 2)),
        ("--save_strategy best", ("epoch", "best", True, 2)),
        ("--save_strategy steps --save_steps 7", ("steps", "steps", True, 2)),
        ("--eval_strategy steps --eval_steps 7", ("steps", "steps", True, 2)),
        ("--eval_strategy steps --save_strategy epoch", ("steps", "epoch", False, 2)),
        ("--load_best_model_at_end false --save_total_limit 5", ("epoch", "epoch", False, 5)),
    ],
)
def test_defaults_follow_what_is_given(tmp_path, words, expected):
    assert parsed(tmp_path, *words.split())[1] == expected


@pytest.mark.parametrize("kind", ["eval", "save"])
def test_evaluating_and_saving_have_the_same_steps(tmp_path, kind):
    config, _ = parsed(tmp_path, f"--{kind}_strategy", "steps", f"--{kind}_steps", "7")
    assert (config.eval_steps, config.save_steps) == (7, 7)
    config, _ = parsed(tmp_path, f"--{kind}_strategy", "steps", "--logging_steps", "9")
    assert (config.eval_steps, config.save_steps) == (9, 9)


def test_a_file_counts_as_given(tmp_path):
    (tmp_path / "run.yaml").write_text("eval_strategy: 'no'\n")
    assert parsed(tmp_path, "--config", str(tmp_path / "run.yaml"))[1] == ("no", "epoch", False, 2)


def test_strategies_that_differ_are_warned_about(tmp_path, caplog):
    parsed(tmp_path, "--eval_strategy", "epoch", "--save_strategy", "steps")
    assert "no checkpoint is chosen: pass the same for both" in caplog.text
    with pytest.raises(ValueError, match="so pass the same for both"):
        parsed(tmp_path, *["--eval_strategy", "epoch", "--save_strategy", "steps", "--load_best_model_at_end", "true"])


@pytest.mark.parametrize(
    ("recipe", "words"),
    [(train_teacher, ()), (cifar10, ("--method", "sat")), (cifar10, ("--method", "sat", "--max_steps", "1"))],
    ids=["teacher", "student", "max_steps"],
)
def test_a_recipe_without_a_file_ends_with_its_best_checkpoint(recipe, words, tmp_path, tmp_path_factory, capsys):
    data = write_dataset(tmp_path_factory.mktemp("data"), LAYOUTS["cifar10"]._replace(side=16), images=40)
    model = "--model" if recipe is train_teacher else "--student"
    recipe.main(["--dataset", data, *FAST, model, "resnet8_cifar", "--output_dir", str(tmp_path / "run"), *words])
    state = json.loads((tmp_path / "run" / "trainer_state.json").read_text())
    measured = [entry for entry in state["log_history"] if "eval_clean_accuracy" in entry]
    assert measured and state["best_model_checkpoint"]
    name = "eval_clean_accuracy" if recipe is train_teacher else "eval_w_robust"
    assert state["best_metric"] == max(entry[name] for entry in measured)
