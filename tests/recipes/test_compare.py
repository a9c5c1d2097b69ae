"""The comparison recipe from its command line: it trains what is missing, survives a kill, and says what it does not know."""

import json
import os
import re
import shutil
import signal
import subprocess
import sys
import time

import compare
import datasets
import pytest
import transformers
from scenery import CONFIGS, RECIPES, Layout, save_teachers, write_dataset

from bmtard_hooks.compare import make_plan
from bmtard_hooks.compare.record import read_record, run_lock

LAYOUT = Layout(4, 16, "img", ("label",), ("train", "test"))
BUDGET = {
    "student": "resnet8_cifar",
    "validation_images": 16,
    "num_train_epochs": 2,
    "per_device_train_batch_size": 16,
    "steps": 1,
    "eval_attack_steps": 1,
    "lr_scheduler_type": "cosine",
    "attacks": "fgsm",
}


@pytest.fixture(scope="module", autouse=True)
def _quiet():
    verbosity = transformers.logging.get_verbosity()
    yield
    transformers.logging.set_verbosity(verbosity)
    transformers.logging.enable_progress_bar()


@pytest.fixture(scope="module")
def scene(tmp_path_factory):
    directory = tmp_path_factory.mktemp("compare")
    datasets.config.HF_DATASETS_CACHE = directory / "cache"
    images = directory / "images"
    images.mkdir()
    return write_dataset(images, LAYOUT, 48), save_teachers(directory, LAYOUT.classes)


@pytest.fixture(scope="module")
def command(scene):
    data, teachers = scene

    def words(output_dir, *argv, **options):
        chosen = {"dataset": data, **BUDGET, "output_dir": output_dir, **options}
        chosen |= {f"{role}_teacher": teachers[role] for role in ("clean", "robust")}
        return [word for name, value in chosen.items() if value is not None for word in (f"--{name}", str(value))] + [
            *map(str, argv)
        ]

    return words


@pytest.fixture(scope="module")
def finished(command, tmp_path_factory):
    """A comparison of two methods and two seeds that is finished."""
    directory = tmp_path_factory.mktemp("finished")
    argv = command(directory, "--methods", "bmtard", "sat", "--seeds", 0, 1, "--with_teachers", "true")
    assert compare.main(argv) == 0
    return directory, argv


def content(directory):
    return json.loads((directory / "comparison.json").read_text())


def trained(directory, name):
    return read_record(directory / "runs" / name).training


def test_every_row_is_trained_measured_and_in_the_table(finished):
    directory, _ = finished
    rows = content(directory)["rows"]
    assert [row["label"] for row in rows] == ["clean teacher", "robust teacher", "bmtard", "sat"]
    for row in rows:
        assert [run["state"] for run in row["runs"]] == ["finished"] * (2 if "method" in row else 1)
        for run in row["runs"]:
            shares = run["columns"]["fgsm"]
            assert 0 <= shares["robust"] <= run["clean"] <= 1
            assert shares["w_robust"] == pytest.approx((run["clean"] + shares["robust"]) / 2)
            assert (directory / run["directory"] / "report.json").is_file()
    for row in rows[2:]:
        mean = sum(run["columns"]["fgsm"]["w_robust"] for run in row["runs"]) / 2
        assert row["mean"]["fgsm"]["w_robust"] == pytest.approx(mean)
        assert row["mean"]["fgsm"]["w_robust_error_seeds"] is not None
        assert [run["training"]["steps"] for run in row["runs"]] == [4, 4]
    table = (directory / "comparison.md").read_text()
    assert "| Method " in table and "FGSM W-Robust |" in table and "from training again" in table
    assert "each row minus bmtard" in table


def test_all_methods_start_from_the_weights_of_the_seed(finished):
    directory, _ = finished
    first = {
        (label, seed): read_record(directory / "runs" / label / f"seed{seed}").identity["first_weights"]
        for label in ("bmtard", "sat")
        for seed in (0, 1)
    }
    assert first["bmtard", 0] == first["sat", 0] != first["bmtard", 1] == first["sat", 1]


def test_finished_runs_are_left_alone_and_new_rows_are_added(finished, capsys):
    directory, argv = finished
    before = {name: trained(directory, name)["ended"] for name in ("bmtard/seed0", "sat/seed1")}
    fast = "quick start=bmtard:temperature_rate=0.05,lr_gamma=0.5"
    assert compare.main([*argv, "--methods", "bmtard", "sat", fast, "--seeds", "0"]) == 0
    assert {name: trained(directory, name)["ended"] for name in before} == before
    printed = capsys.readouterr().out
    assert "4 of 5 runs are finished already" in printed and "bmtard/seed0 starts" not in printed
    options = read_record(directory / "runs" / "quick_start" / "seed0").identity["options"]
    assert options["temperature_rate"] == 0.05 and options["lr_gamma"] == 0.5
    assert "quick start: bmtard with temperature_rate=0.05, lr_gamma=0.5" in (directory / "comparison.md").read_text()


def test_other_attacks_are_measured_without_training_again(finished, tmp_path):
    directory = tmp_path / "copy"
    shutil.copytree(finished[0], directory)
    ended = trained(directory, "sat/seed0")["ended"]
    argv = [*finished[1], "--output_dir", str(directory), "--attacks", "fgsm", "pgd_sat:steps=2", "--seeds", "0"]
    assert compare.main(argv) == 0
    found = content(directory)
    assert found["columns"] == ["fgsm", "pgd_sat:steps=2", "worst_case"]
    assert trained(directory, "sat/seed0")["ended"] == ended
    assert set(found["best"]) == set(found["columns"])


def test_run_with_other_options_is_refused_with_the_difference_until_retrain(finished, tmp_path, capsys):
    directory = tmp_path / "copy"
    shutil.copytree(finished[0], directory)
    argv = [
        *finished[1],
        "--output_dir",
        str(directory),
        "--methods",
        "sat",
        "--seeds",
        "0",
        "--learning_rate",
        "0.05",
    ]
    before = trained(directory, "sat/seed0")
    assert compare.main(argv) == 2
    message = capsys.readouterr().err
    assert "sat/seed0: learning_rate: 0.1 on disk, 0.05 now" in message and "--retrain" in message
    assert trained(directory, "sat/seed0") == before
    assert compare.main([*argv, "--retrain", "true"]) == 0
    assert trained(directory, "sat/seed0")["weights"] != before["weights"]
    assert content(directory)["rows"][-1]["runs"][0]["state"] == "finished"


def test_failed_run_is_listed_with_its_reason_and_stops_no_other(command, tmp_path, capsys):
    argv = command(tmp_path, "--methods", "exploding=natural:learning_rate=1e30", "natural")
    assert compare.main(argv) == 1
    exploding, natural = content(tmp_path)["rows"]
    assert exploding["runs"][0]["state"] == "failed" and "FloatingPointError" in exploding["runs"][0]["reason"]
    assert natural["runs"][0]["state"] == "finished" and natural["mean"]["fgsm"]["seeds"] == 1
    table = (tmp_path / "comparison.md").read_text()
    assert "exploding (failed)" in table and "FloatingPointError" in table
    assert "exploding/seed0 failed: FloatingPointError" in capsys.readouterr().out


def test_killed_run_goes_on_from_its_last_checkpoint_and_ends_the_same(command, tmp_path, capsys):
    cut, whole = tmp_path / "cut", tmp_path / "whole"
    options = {"num_train_epochs": 6, "save_total_limit": 1}
    program = [sys.executable, str(RECIPES / "compare.py"), *command(cut, "--methods", "bmtard", **options)]
    environment = {**os.environ, "HF_DATASETS_CACHE": str(tmp_path / "cache"), "OMP_NUM_THREADS": "1"}
    process = subprocess.Popen(program, env=environment, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE)
    run = cut / "runs" / "bmtard" / "seed0"
    while process.poll() is None and not list(run.glob("checkpoint-*/trainer_state.json")):
        time.sleep(0.002)
    process.send_signal(signal.SIGKILL)
    assert process.wait() == -signal.SIGKILL, process.stderr.read()
    process.stderr.close()
    assert read_record(run).state == "training"
    assert compare.main(command(cut, "--methods", "bmtard", **options)) == 0
    assert "bmtard/seed0 goes on from checkpoint-" in capsys.readouterr().out
    assert compare.main(command(whole, "--methods", "bmtard", **options)) == 0
    assert trained(cut, "bmtard/seed0")["weights"] == trained(whole, "bmtard/seed0")["weights"]
    rows = [content(directory)["rows"][0]["runs"][0] for directory in (cut, whole)]
    assert rows[0]["columns"] == rows[1]["columns"] and rows[0]["clean"] == rows[1]["clean"]


def test_two_processes_give_what_one_gives(command, finished, tmp_path, capfd, monkeypatch):
    monkeypatch.setenv("HF_DATASETS_CACHE", str(tmp_path / "cache"))
    monkeypatch.setenv("OMP_NUM_THREADS", "1")
    methods = ("--methods", "sat", "exploding=natural:learning_rate=1e30")
    assert compare.main(command(tmp_path / "two", *methods, processes=2)) == 1
    assert trained(tmp_path / "two", "sat/seed0")["weights"] == trained(finished[0], "sat/seed0")["weights"]
    exploding = content(tmp_path / "two")["rows"][1]["runs"][0]
    assert exploding["state"] == "failed" and "FloatingPointError" in exploding["reason"]
    assert "sat/seed0 test: clean" in capfd.readouterr().out


def test_rows_may_differ_in_precision(command, tmp_path):
    rows = ("--methods", "sat", "half=sat:bf16=true", "whole=sat")
    assert compare.main(command(tmp_path, *rows, "--num_train_epochs", 1, "--processes", 1)) == 0
    weights = [trained(tmp_path, f"{name}/seed0")["weights"] for name in ("sat", "half", "whole")]
    assert weights[0] == weights[2] != weights[1]


def test_only_some_runs_can_be_done(command, tmp_path):
    argv = command(tmp_path, "--methods", "natural", "sat", num_train_epochs=1)
    assert compare.main([*argv, "--only", "sat/seed0"]) == 0
    assert [row["runs"][0]["state"] for row in content(tmp_path)["rows"]] == ["not started", "finished"]


def test_launch_of_several_processes_is_refused(command, tmp_path, capsys, monkeypatch):
    argv = command(tmp_path, "--methods", "natural")
    monkeypatch.setenv("WORLD_SIZE", "2")
    assert compare.main(argv) == 2
    assert "start it with python" in capsys.readouterr().err


def test_run_of_another_process_is_left_alone(command, tmp_path, capsys):
    argv = command(tmp_path, "--methods", "natural")
    with run_lock(tmp_path / "runs" / "natural" / "seed0"):
        assert compare.main(argv) == 1
    assert f"is worked on by process {os.getpid()}" in capsys.readouterr().out
    assert "Not finished yet: natural/seed0" in (tmp_path / "comparison.md").read_text()


@pytest.mark.parametrize(
    ("argv", "message"),
    [
        (["--methods", "bmtrad"], "unknown method 'bmtrad': did you mean bmtard"),
        (["--methods", "sat:learning_rat=1"], "unknown option 'learning_rat': did you mean learning_rate"),
        (["--methods", "sat:learning_rate=fast"], "row 'sat learning_rate=fast': .*'fast' is no number"),
        (["--methods", "sat:eps=-1"], "row 'sat eps=-1': eps=-1"),
        (["--methods", "sat:seed=1"], "seed is not an option of a row"),
        (["--methods", "sat", "sat"], "would share a directory"),
        (["--methods", "x=sat:student=resnet9_cifar"], "row 'x': .*resnet9_cifar"),
        (["--methods", "sat", "--attacks", "pgd_tradse"], "unknown attack 'pgd_tradse': did you mean pgd_trades"),
        (["--methods", "sat", "--seed", "3"], "pass --seeds"),
        (["--methods", "sat", "--only", "sat/seed7"], "the runs are sat/seed0"),
        ([], "pass --methods"),
    ],
)
def test_mistakes_are_found_before_anything_is_written(command, tmp_path, capsys, argv, message):
    directory = tmp_path / "none"
    assert compare.main(command(directory, *argv)) == 2
    error = capsys.readouterr().err
    assert re.search(message, error)
    assert not directory.exists()


def test_missing_teachers_are_named_with_the_rows_that_need_them(command, tmp_path, capsys):
    argv = command(tmp_path / "none", "--methods", "sat", "bmtard", "mtard")
    position = argv.index("--clean_teacher")
    assert compare.main(argv[:position] + argv[position + 2 :]) == 2
    assert "pass --clean_teacher for bmtard, mtard" in capsys.readouterr().err


def test_choice_of_the_last_checkpoint_needs_no_evaluation(command, tmp_path):
    argv = command(tmp_path, "--methods", "natural", choose="last", eval_strategy="no", num_train_epochs=1)
    assert compare.main(argv) == 0
    assert trained(tmp_path, "natural/seed0")["chosen_step"] == 2


def test_small_config_gives_every_row_the_same_budget(scene, tmp_path):
    data, teachers = scene
    argv = ["--config", str(CONFIGS / "compare_small.yaml"), "--dataset", data, "--validation_images", "16"]
    argv += ["--clean_teacher", teachers["clean"], "--robust_teacher", teachers["robust"]]
    plan = make_plan([*argv, "--output_dir", str(tmp_path)])
    assert len(plan.rows) == 13
    options = [run.identity["options"] for run in plan.runs]
    assert all(entry == options[0] for entry in options)
    assert options[0]["lr_scheduler_type"] == "cosine" and options[0]["loss_scale"] == 1.0
