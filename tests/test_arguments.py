import json
import pickle
from dataclasses import dataclass, replace

import pytest

from bmtard_hooks import BMTARDConfig
from bmtard_hooks.arguments import DataArguments, option, parse
from bmtard_hooks.methods import make_method


@dataclass
class Extra:
    """One more option."""

    model: str = "resnet8_cifar"


def parsed(tmp_path, text="", argv=()):
    path = tmp_path / "run.yaml"
    path.write_text(text)
    return parse([Extra, DataArguments, BMTARDConfig], ["--config", str(path), "--output_dir", str(tmp_path), *argv])


def test_numbers_that_yaml_reads_as_strings_are_numbers(tmp_path):
    text = "learning_rate: 1e-3\nweight_decay: 5e-4\nlr_milestones: [3, 4.5]\nloss_balance: false\neps: 4/255\nsteps: 7\nmodel: x"
    extra, _, config = parsed(tmp_path, text)
    assert (config.learning_rate, config.weight_decay, config.lr_milestones) == (1e-3, 5e-4, [3.0, 4.5])
    assert config.loss_balance is False and config.entropy_balance is None and config.steps == 7
    assert config.eps == 4 / 255
    assert extra.model == "x"


def test_empty_list_in_a_file_is_an_empty_list(tmp_path):
    *_, config = parsed(tmp_path, "stop_signals: []")
    assert config.stop_signals == []
    *_, config = parsed(tmp_path, "stop_signals: []", ["--stop_signals", "SIGINT"])
    assert config.stop_signals == ["SIGINT"]
    with pytest.raises(ValueError, match=r"steps is the list \[\], expected one value"):
        parsed(tmp_path, "steps: []")


def test_default_steps_of_attacks_in_l2_are_a_share_of_the_radius(tmp_path):
    def steps(**options):
        config = BMTARDConfig(output_dir=str(tmp_path), **options)
        return config.train_attack().step_size, config.evaluation_attack().step_size

    assert steps(eps=0.1) == steps() == (2 / 255, 0.003)
    assert steps(norm="l2", eps=0.5) == pytest.approx((0.125, 0.003 * 0.5 * 255 / 8))
    assert steps(norm="l2", eps=0.5, eval_attack_eps=1.0)[1] == pytest.approx(0.003 * 255 / 8)
    assert steps(norm="l2", eps=0.5, method="trades")[0] == pytest.approx(0.007 * 0.5 * 255 / 8)
    assert steps(norm="l2", eps=0.5, step_size=0.1, eval_attack_step_size=0.05) == (0.1, 0.05)


def test_a_changed_copy_of_a_config_fills_in_anew_what_was_not_given(make_config):
    choosing = {"load_best_model_at_end": True, "eval_strategy": "epoch", "save_strategy": "epoch"}
    base = make_config(seed=0, **choosing)
    assert (base.data_seed, base.metric_for_best_model) == (0, "w_robust")
    for changes in ({"seed": 1}, {"eval_attack": False}, {"method": "natural", "seed": 2}):
        for origin in (base, pickle.loads(pickle.dumps(base)), replace(base, seed=5)):
            copied, made = replace(origin, **{"seed": 0, **changes}), make_config(**{"seed": 0, **choosing, **changes})
            assert copied.to_dict() == made.to_dict()
    given = make_config(seed=0, data_seed=0, metric_for_best_model="w_robust", **choosing)
    kept = replace(given, seed=1, eval_attack=False)
    assert (kept.data_seed, kept.metric_for_best_model) == (0, "w_robust")


def test_a_changed_copy_of_a_config_finds_anew_which_value_of_a_metric_is_better(make_config):
    choosing = {"load_best_model_at_end": True, "eval_strategy": "epoch", "save_strategy": "epoch"}
    base = make_config(**choosing)
    assert base.greater_is_better and base.to_dict()["greater_is_better"] is True
    assert '"greater_is_better": true' in base.to_json_string() and "greater_is_better=True" in repr(base)
    for origin in (base, pickle.loads(pickle.dumps(base)), replace(base, seed=5)):
        copied = replace(origin, metric_for_best_model="loss")
        assert copied.greater_is_better == False and copied.to_dict()["greater_is_better"] is False  # noqa: E712
        assert replace(copied, metric_for_best_model="accuracy").greater_is_better
    given = make_config(**choosing, metric_for_best_model="turn", greater_is_better=False)
    assert replace(given, metric_for_best_model="w_robust").greater_is_better is False


def test_filled_in_options_are_written_as_plain_values(make_config):
    options = make_config(seed=3, load_best_model_at_end=True, eval_strategy="epoch", save_strategy="epoch")
    written = options.to_dict()
    assert (type(written["data_seed"]), type(written["metric_for_best_model"])) == (int, str)
    assert json.loads(options.to_json_string())["data_seed"] == 3
    assert options.to_sanitized_dict()["data_seed"] == 3


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


def test_options_are_not_abbreviated(tmp_path):
    with pytest.raises(ValueError, match="unknown option --learning: did you mean --learning_rate"):
        parsed(tmp_path, argv=["--learning", "0.1"])


def test_defaults_are_the_papers(tmp_path):
    _, _, config = parsed(tmp_path)
    attack = config.train_attack()
    assert (attack.eps, attack.step_size, attack.steps, attack.start) == (8 / 255, 2 / 255, 10, "normal")
    assert (config.optim, config.learning_rate, config.momentum, config.weight_decay) == ("sgd", 0.1, 0.9, 2e-4)
    assert (config.num_train_epochs, config.per_device_train_batch_size, config.max_grad_norm) == (300, 128, 0)
    assert (config.temperature_rate, config.weight_rate, config.loss_balance_power) == (0.001, 0.025, 1)
    assert (config.min_temperature, config.max_temperature, make_method(config).loss_scale) == (1, 10, 0.1)
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


@dataclass
class Few:
    """Three options."""

    model: str = option("resnet8_cifar", "Network.")
    steps: int = option(10, "Steps.")
    milestones: list[float] | None = option(None, "Epochs.")


def write(directory, **files):
    for name, text in files.items():
        path = directory / f"{name.replace('__', '/')}.yaml"
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)


def few(directory, name="run", argv=(), **kwargs):
    (parsed,) = parse([Few], ["--config", str(directory / f"{name}.yaml"), *argv], **kwargs)
    return parsed.model, parsed.steps, parsed.milestones


def test_including_file_wins_over_what_it_includes_and_later_includes_over_earlier(tmp_path):
    write(
        tmp_path,
        run="model: own\ninclude: [parts/first.yaml, parts/second.yaml]",
        parts__first="model: first\nsteps: 1\nmilestones: [1, 2]",
        parts__second="model: second\nsteps: 2",
    )
    assert few(tmp_path) == ("own", 2, [1.0, 2.0])
    assert few(tmp_path, argv=["--steps", "7"]) == ("own", 7, [1.0, 2.0])


def test_includes_nest_with_paths_relative_to_the_including_file(tmp_path, monkeypatch):
    write(
        tmp_path,
        rows__run="include: ../parts/middle.yaml\nmilestones: null",
        parts__middle="include: deep.yaml\nsteps: 3",
        parts__deep="steps: 9\nmodel: deep\nmilestones: [4]",
    )
    monkeypatch.chdir(tmp_path / "parts")
    assert few(tmp_path / "rows") == ("deep", 3, None)  # null takes back what was included


def test_file_may_be_included_twice_but_not_by_itself(tmp_path):
    write(
        tmp_path,
        run="include: [left.yaml, right.yaml]",
        left="include: base.yaml",
        right="include: base.yaml\nsteps: 4",
        base="model: base",
        loop="include: loop2.yaml",
        loop2="include: ./loop.yaml",
    )
    assert few(tmp_path) == ("base", 4, None)
    with pytest.raises(ValueError, match=r"in a circle: \S*loop\.yaml → \S*loop2\.yaml → \S*loop\.yaml"):
        few(tmp_path, "loop")


def test_errors_of_included_files_name_them(tmp_path):
    write(
        tmp_path,
        run="include: middle.yaml",
        middle="include: absent.yaml",
        typo="include: base.yaml",
        base="modle: x",
        number="include: 3",
    )
    with pytest.raises(FileNotFoundError, match=r"run\.yaml → \S*middle\.yaml → \S*absent\.yaml does not exist"):
        few(tmp_path)
    with pytest.raises(ValueError, match=r"base\.yaml: unknown option 'modle': did you mean model"):
        few(tmp_path, "typo")
    with pytest.raises(ValueError, match=r"number\.yaml: include is 3, expected a path or a list"):
        few(tmp_path, "number")


def test_defaults_of_a_program_lose_against_the_file(tmp_path):
    write(tmp_path, run="steps: 5")
    assert few(tmp_path, defaults={"steps": 2, "model": "mine"}) == ("mine", 5, None)
    assert Few().steps == 10
    with pytest.raises(ValueError, match="defaults: unknown option 'step': did you mean steps"):
        few(tmp_path, defaults={"step": 2})


@pytest.fixture
def two_splits(tmp_path_factory):
    import datasets

    directory = tmp_path_factory.mktemp("split")  # not tmp_path: `datasets` takes a folder called test_… for a split
    datasets.config.HF_DATASETS_CACHE = tmp_path_factory.mktemp("cache")
    rows = {"pixel_values": [[[[0.5] * 4] * 4] * 3] * 5, "label": [0, 1, 2, 0, 1]}
    for name in ("train", "valid"):  # `datasets` reads the second as "validation"
        datasets.Dataset.from_dict(rows).to_parquet(directory / f"{name}-00000-of-00001.parquet")
    return str(directory)


def test_first_split_that_exists_is_read(two_splits):
    train, validation, test = DataArguments(two_splits, test_split="valid,validation", validation_images=2).load()
    assert (len(train), len(validation), len(test), test.split_name) == (3, 2, 5, "validation")


def test_a_split_for_choosing_takes_the_place_of_held_out_images(two_splits):
    train, validation, _ = DataArguments(two_splits, test_split="validation", validation_split="validation").load()
    assert (len(train), len(validation), validation.split_name) == (5, 5, "validation")


def test_a_size_that_is_none_is_refused(two_splits):
    with pytest.raises(ValueError, match="--image_size 0 is no side of a square"):
        DataArguments(two_splits, image_size=0).load()


def test_missing_split_names_the_option_and_the_splits(two_splits):
    with pytest.raises(ValueError, match=r"no split 'test': pass --test_split with one of train, validation"):
        DataArguments(two_splits).load()
    with pytest.raises(ValueError, match=r"no split 'a' or 'b': pass --train_split with one of train, validation"):
        DataArguments(two_splits, train_split="a,b").load()
    with pytest.raises(ValueError, match="no label column 'fine_label' among"):
        DataArguments(two_splits, test_split="validation", label_column="fine_label").load()
