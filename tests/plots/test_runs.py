import json

import pytest
from sample_runs import sample_log, write_state

from bmtard_hooks.plots import Run, load_run, names_of
from bmtard_hooks.plots.runs import TEMPERATURE, WEIGHT


def test_log_of_the_newest_checkpoint_is_read_by_number(tmp_path):
    for step in (90, 1000):
        write_state(tmp_path / "run" / f"checkpoint-{step}", sample_log("clean", count=step // 10), step)
    run = load_run(tmp_path / "run")
    assert run.name == "run" and len(run.log) == 100 and run.notes == []


def test_state_of_the_directory_itself_wins_unless_a_checkpoint_goes_further(tmp_path):
    write_state(tmp_path, sample_log("clean", count=3), 20)
    write_state(tmp_path / "checkpoint-20", sample_log("clean", count=2), 20)
    assert len(load_run(tmp_path).log) == 3
    write_state(tmp_path / "checkpoint-30", sample_log("clean", count=4), 30)
    assert len(load_run(tmp_path).log) == 4


def test_a_torn_checkpoint_is_named_and_the_one_before_is_read(tmp_path):
    write_state(tmp_path / "checkpoint-20", sample_log("clean", count=2), 20)
    torn = write_state(tmp_path / "checkpoint-30", sample_log("clean", count=3), 30)
    torn.write_text(torn.read_text()[:100])
    run = load_run(tmp_path)
    assert len(run.log) == 2
    assert len(run.notes) == 1 and "checkpoint-30" in run.notes[0]


@pytest.mark.parametrize("whole", [True, False])
def test_a_file_with_a_state_or_with_the_log_alone_is_a_run(tmp_path, whole):
    log = sample_log("clean", count=5)
    path = tmp_path / "history.json"
    path.write_text(json.dumps({"global_step": 50, "log_history": log} if whole else log))
    run = load_run(path, "mine")
    assert run.name == "mine" and run.log == log and run.directory is None
    assert load_run(path).name == "history"


@pytest.mark.parametrize(
    ("content", "message"),
    [(None, "neither trainer_state.json nor a checkpoint"), ("{", "damaged"), ('{"loss": 1}', "nor its log_history")],
)
def test_a_directory_without_a_log_is_refused_with_the_reason(tmp_path, content, message):
    if content is not None:
        (tmp_path / "trainer_state.json").write_text(content)
    with pytest.raises(ValueError, match=message):
        load_run(tmp_path)


def test_a_path_that_does_not_exist_is_refused(tmp_path):
    with pytest.raises(FileNotFoundError, match="output_dir of a run"):
        load_run(tmp_path / "nowhere")


def test_runs_are_named_by_as_many_directories_as_it_takes(tmp_path):
    for path in ("one/student", "two/student", "three"):
        (tmp_path / path).mkdir(parents=True)
    assert names_of([tmp_path / "three", tmp_path / "one" / "student"]) == ["three", "student"]
    assert names_of([tmp_path / "one/student", tmp_path / "two/student"]) == ["one/student", "two/student"]
    with pytest.raises(ValueError, match="given twice"):
        names_of([tmp_path / "three", tmp_path / "two" / ".." / "three"])


def test_series_that_every_class_has_become_one_with_its_range():
    log = [
        {
            "epoch": epoch,
            **{f"temperature_robust_{label}": epoch + label for label in range(4)},
            "temperature_robust": 7,
        }
        for epoch in (1, 2)
    ]
    series = Run("absld", log).series(TEMPERATURE)
    assert list(series) == ["robust per class (mean, range)", "robust"]
    classes = series["robust per class (mean, range)"]
    assert (classes.values, classes.low, classes.high) == ([2.5, 3.5], [1, 2], [4, 5])
    assert series["robust"].low is None and series["robust"].values == [7, 7]


def test_a_teacher_whose_name_ends_in_a_number_is_no_class():
    log = sample_log("clean", "robust", "robust_l2", "view_1", "view_2", count=2)
    assert list(Run("union", log).series(WEIGHT)) == ["clean", "robust", "robust_l2", "view_1", "view_2"]


def test_values_that_are_no_numbers_are_passed_over():
    log = [{"epoch": 1.0, "weight_clean": 0.5, "weight_note": "high", "weight_per_class": [1, 2], "weight_on": True}]
    assert list(Run("odd", log).series(WEIGHT)) == ["clean"]


def test_places_are_steps_where_epochs_are_not_logged():
    log = [{"step": 10, "weight_clean": 0.5}, {"step": 20, "weight_clean": 0.6}, {"train_runtime": 3.0}]
    run = Run("old", log)
    assert not run.has_epochs
    assert run.series(WEIGHT, by_epoch=False)["clean"].places == [10, 20]
    assert Run("new", [{**entry, "epoch": 1.0} for entry in log[:2]] + log[2:]).has_epochs
