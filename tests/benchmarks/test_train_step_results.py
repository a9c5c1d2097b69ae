"""What the benchmark of a training step makes of measured seconds: ratios, the table, the kept file."""

import json
import sys
from pathlib import Path

import pytest

sys.path.insert(0, str(Path(__file__).parents[2] / "benchmarks"))

import train_step
from step import results
from step.results import Measured


def measured(seconds, attack=1.0, peaks=(10_000_000,)):
    return Measured(
        list(seconds), [2 * value for value in seconds], [{"attack": attack, "overhead": 0.5}], list(peaks), "by hand"
    )


def test_ratios_are_taken_within_a_round():
    shown = {
        "plain": measured([2.0, 8.0, 4.0], attack=3.0),
        "torchattacks": measured([3.0, 9.0, 5.0], attack=6.0),
        "default": measured([1.0, 2.0, 1.0], attack=2.0, peaks=(5_000_000, 20_000_000)),
        "same_kernels": measured([0.9, 1.0, 1.0]),
    }
    rows = results.summarise(shown, {"attack": 6e9, "student": 4e9}, {"float32": {"a": 2e10, "b": 1e10}}, 10)
    row = rows["default"]
    assert row["seconds"] == 1 and row["fastest"] == 1 and row["images_per_second"] == 10
    assert row["times_as_fast_as_plain"] == 4  # of 2, 4 and 4
    assert row["attack_times_as_fast_as_torchattacks"] == 3
    assert row["fraction_of_limit"] == 0.5 and row["peak_megabytes"] == 20
    assert row["hours_of_300_epochs"] == pytest.approx(300 * 5000 / 3600)
    assert row["phases"]["overhead"] == 0.5 and row["phases"]["data"] == 0
    overhead = results.trainer_overhead(shown)
    assert overhead == pytest.approx({"seconds": 1 / 9, "cpu_seconds": 1 / 9})  # of 0.11, 1 and 0
    assert results.trainer_overhead({"default": shown["default"]}) is None


def test_a_contender_without_references_has_no_ratio():
    row = results.summarise({"bf16": measured([2.0])}, {"attack": 1e9}, {"bfloat16": {"a": 1e9}}, 8)["bf16"]
    assert row["times_as_fast_as_plain"] is None and row["attack_times_as_fast_as_torchattacks"] is None
    assert row["fraction_of_limit"] == 0.5


def test_the_last_batch_of_an_epoch_counts():
    assert results.training_hours(2.0, 128) == pytest.approx(300 * 391 * 2 / 3600)


def run_of(student, contenders):
    rows = results.summarise(
        contenders, {"attack": 1e9}, {"float32": {"a": 2e9}, "bfloat16": {"a": 4e9}}, batch_size=4
    )
    overhead = results.trainer_overhead(contenders)
    return {
        "student": student, "clean_teacher": "resnet8_cifar", "robust_teacher": "resnet20_cifar", "batch_size": 4,
        "device": "a CPU", "flops": {"attack": 1e9}, "rates": {"float32": {"a": 2e9}}, "trainer_overhead": overhead,
        "contenders": rows,
    }  # fmt: skip


def test_the_table_shows_what_was_measured_and_dashes_for_the_rest():
    whole = run_of(
        "resnet8_cifar",
        {
            "plain": measured([4.0], peaks=(40_000_000,)),
            "torchattacks": measured([4.0], attack=3.0),
            "default": measured([2.0], attack=2.0, peaks=(30_000_000,)),
            "compiled": measured([1.6]),
            "bf16": measured([1.0]),
            "nchw": measured([0.5]),  # an ablation, which no user would call fast
        },
    )
    lines = results.markdown_table([whole, run_of("resnet20_cifar", {"plain": measured([3.0])})]).splitlines()
    assert lines[0].count("|") == lines[1].count("|") == lines[2].count("|") == 11
    cells = [cell.strip() for cell in lines[2].strip("|").split("|")]
    assert cells == [
        "resnet8_cifar", "resnet8_cifar + resnet20_cifar", "4", "a CPU", "4", "2.00x", "4.00x (bf16)", "1.50x",
        "25% / 25%", "0.75",
    ]  # fmt: skip
    assert [cell.strip() for cell in lines[3].strip("|").split("|")][4:] == ["3", "–", "–", "–", "–", "–"]


def test_what_was_measured_is_printed(capsys):
    results.print_run(run_of("resnet8_cifar", {"plain": measured([4.0]), "default": measured([2.0])}))
    printed = capsys.readouterr().out
    assert "limit in float32: 0.5 s a step at 2 GFLOP/s (a)" in printed and "Trainer" not in printed
    row = next(line for line in printed.splitlines() if line.startswith("default"))
    assert row.split()[1:5] == ["2", "2", "2", "–"]
    results.print_run(run_of("resnet8_cifar", {"default": measured([3.0]), "same_kernels": measured([2.0])}))
    assert "+50.0% on the clock" in capsys.readouterr().out


def test_a_file_keeps_students_that_were_measured_before(tmp_path, capsys):
    path = tmp_path / "kept.json"
    results.merge(path, run_of("resnet8_cifar", {"plain": measured([4.0])}))
    results.merge(path, run_of("resnet20_cifar", {"plain": measured([3.0])}))
    results.merge(path, run_of("resnet8_cifar", {"plain": measured([2.0])}))
    runs = json.loads(path.read_text())["runs"]
    assert [run["contenders"]["plain"]["seconds"] for run in runs.values()] == [2.0, 3.0]
    train_step.main(["--table", str(path)])
    assert capsys.readouterr().out.count("\n| resnet") == 2


def test_a_file_of_something_else_is_left_alone(tmp_path):
    path = tmp_path / "other.json"
    path.write_text('{"rows": {}}')
    with pytest.raises(ValueError, match="not a file of this benchmark"):
        results.merge(path, run_of("resnet8_cifar", {"plain": measured([4.0])}))
    assert path.read_text() == '{"rows": {}}'
