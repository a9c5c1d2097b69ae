"""Which checkpoint a run goes on from: the newest whole one, and the log says which and why."""

import json
import logging
import re
import shutil

import pytest
import torch
from conftest import sharp_net, tiny_data, tiny_net

from bmtard_hooks.checkpoint_folders import (
    MANIFEST_NAME,
    UNFINISHED,
    checkpoints,
    newest_whole,
    publish,
    recover,
    seal,
    set_aside,
    why_unusable,
)
from bmtard_hooks.state import STATE_NAME


@pytest.fixture(scope="module")
def finished(tmp_path_factory):
    """A run with four checkpoints."""
    from bmtard_hooks import BMTARDConfig, BMTARDTrainer

    folder = tmp_path_factory.mktemp("finished") / "run"
    config = BMTARDConfig(
        output_dir=str(folder), per_device_train_batch_size=4, num_train_epochs=1, steps=1, logging_steps=1, augment="none",
        save_strategy="steps", save_steps=1, report_to="none", disable_tqdm=True, channels_last=False,
    )  # fmt: skip
    teachers = {"clean_teacher": sharp_net(1, scale=8), "robust_teacher": sharp_net(2)}
    trainer = BMTARDTrainer(tiny_net(0), config, train_dataset=tiny_data(), **teachers)
    trainer.train()
    return trainer, folder


@pytest.fixture
def run(finished, make_trainer, tmp_path):
    trainer, folder = finished
    shutil.copytree(folder, tmp_path / "run")
    options = {"steps": 1, "save_strategy": "steps", "save_steps": 1}
    return trainer, tmp_path / "run", lambda **changes: make_trainer(**{**options, **changes})


def test_every_file_of_a_checkpoint_is_listed_with_its_size(run):
    _, folder, _ = run
    assert [path.name for path in checkpoints(folder)] == [f"checkpoint-{step}" for step in (4, 3, 2, 1)]
    for path in checkpoints(folder):
        listed = json.loads((path / MANIFEST_NAME).read_text())["files"]
        assert listed.keys() == {file.name for file in path.iterdir()} - {MANIFEST_NAME}
        assert {"optimizer.pt", "trainer_state.json", STATE_NAME, "model.safetensors"} <= listed.keys()
        assert why_unusable(path) is None


def cut(path):
    path.write_bytes(path.read_bytes()[:-1])


def turn_a_bit(path):
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 1
    path.write_bytes(bytes(content))


@pytest.mark.parametrize(
    "name, damage, reason",
    [
        ("model.safetensors", cut, "model.safetensors has .* bytes, it was written with"),
        ("optimizer.pt", turn_a_bit, "optimizer.pt is damaged: its SHA-256"),
        ("trainer_state.json", lambda path: path.unlink(), "trainer_state.json is missing"),
        (MANIFEST_NAME, cut, "checkpoint_manifest.json is damaged"),
        (MANIFEST_NAME, lambda path: path.write_text("[]"), "checkpoint_manifest.json is damaged"),
        (STATE_NAME, lambda path: path.write_text("{}"), "distillation_state.json has 2 bytes"),
    ],
)  # fmt: skip
def test_damaged_checkpoint_is_passed_over_and_the_log_says_why(run, caplog, name, damage, reason, record_property):
    straight, folder, make = run
    damage(folder / "checkpoint-4" / name)
    resumed = make()
    with caplog.at_level(logging.INFO, "bmtard_hooks"):
        resumed.train(resume_from_checkpoint=True)
    messages = [record.getMessage() for record in caplog.records]
    assert any(re.search(f"checkpoint-4 is not used: {reason}", message) for message in messages), messages
    assert any("going on from" in m and "checkpoint-3, the newest that is whole" in m for m in messages)
    for left, right in zip(straight.model.parameters(), resumed.model.parameters(), strict=True):
        assert torch.equal(left, right)
    record_property("damaged checkpoints refused", 1)


def test_damaged_checkpoint_that_is_named_is_refused_with_a_whole_one(run):
    _, folder, make = run
    cut(folder / "checkpoint-2" / "model.safetensors")
    with pytest.raises(
        ValueError, match=r"checkpoint-2 cannot be resumed: model.safetensors has .* resume from .*checkpoint-4"
    ):
        make().train(resume_from_checkpoint=str(folder / "checkpoint-2"))


def test_run_that_begins_again_moves_the_other_runs_checkpoints_aside(run, caplog):
    _, folder, make = run
    trainer = make(overwrite_output_dir=True, save_steps=3)
    trainer.train()
    assert [path.name for path in checkpoints(folder)] == ["checkpoint-4", "checkpoint-3"]
    assert len(checkpoints(folder / "_previous-1")) == 4 and "are now in" in caplog.text


def test_folders_of_an_older_release_get_the_names_of_this_one(run):
    _, folder, _ = run
    for name, what in (
        ("previous-1", "checkpoint-2"),
        ("previous-3", "checkpoint-3"),
        ("_previous-1", "checkpoint-1"),
    ):
        (folder / name).mkdir()
        (folder / what).rename(folder / name / what)
    (folder / "previous-results").mkdir()
    (folder / "previous-2").mkdir()  # of a user
    (folder / ".unfinished").mkdir()
    (folder / "checkpoint-4").rename(folder / ".unfinished" / "checkpoint-4")
    recover(folder)
    assert {path.relative_to(folder).as_posix() for path in folder.rglob("checkpoint-?")} == {
        *("checkpoint-4", "_previous-2/checkpoint-2", "_previous-3/checkpoint-3", "_previous-1/checkpoint-1")
    }
    assert (folder / "previous-results").is_dir() and (folder / "previous-2").is_dir()
    set_aside(folder)
    assert (folder / "_previous-4" / "checkpoint-4").is_dir() and not (folder / ".unfinished").exists()


def test_half_written_checkpoint_of_plain_trainer_is_not_picked_up(run):
    _, folder, _ = run
    half = folder / "checkpoint-9"
    half.mkdir()
    shutil.copy(folder / "checkpoint-4" / "model.safetensors", half)
    whole, passed_over = newest_whole(folder)
    assert whole is not None and whole.name == "checkpoint-4"
    assert passed_over == {
        "checkpoint-9": f"trainer_state.json and {STATE_NAME} missing: it is half-written, or not of BMTARDTrainer"
    }


def test_checkpoint_of_an_older_release_counts_without_a_list(run):
    _, folder, make = run
    for path in checkpoints(folder):
        (path / MANIFEST_NAME).unlink()
        state = json.loads((path / STATE_NAME).read_text())
        for key in ("run", "finite", "begun_with"):
            del state[key]
        (path / STATE_NAME).write_text(json.dumps(state))
    shutil.rmtree(folder / "checkpoint-4")
    trainer = make()
    trainer.train(resume_from_checkpoint=True)
    assert trainer.state.global_step == 4


def test_checkpoint_without_optimizer_cannot_be_resumed(make_trainer, tmp_path):
    make_trainer(save_strategy="epoch", save_only_model=True).train()
    with pytest.raises(FileNotFoundError, match=r"checkpoint-4: it holds no optimizer \(save_only_model=True\)"):
        make_trainer().train(resume_from_checkpoint=True)


def test_kill_between_two_renames_is_repaired(run):
    _, folder, _ = run
    passing = folder / UNFINISHED / "checkpoint-4"
    passing.parent.mkdir()
    (folder / "checkpoint-4").rename(folder / UNFINISHED / "replaced-checkpoint-4")
    shutil.copytree(folder / UNFINISHED / "replaced-checkpoint-4", passing)
    recover(folder)
    assert why_unusable(folder / "checkpoint-4") is None and not (folder / UNFINISHED).exists()


def test_unfinished_checkpoint_is_removed_when_the_run_goes_on(run, caplog):
    _, folder, make = run
    passing = folder / UNFINISHED / "checkpoint-5"
    passing.mkdir(parents=True)
    (passing / "model.safetensors").write_bytes(b"half")
    with caplog.at_level(logging.INFO, "bmtard_hooks"):
        make().train(resume_from_checkpoint=True)
    assert "checkpoint-5 was not finished when its run ended" in caplog.text and not (folder / UNFINISHED).exists()


def test_checkpoint_that_was_not_sealed_is_never_taken_for_one_of_an_older_release(run):
    _, folder, _ = run
    passing = folder / UNFINISHED / "checkpoint-5"
    shutil.copytree(folder / "checkpoint-4", passing)
    (passing / MANIFEST_NAME).unlink()
    cut(passing / "trainer_state.json")  # all files are there, and the last is half-written
    recover(folder)
    assert checkpoints(folder)[0].name == "checkpoint-4" and not (folder / UNFINISHED).exists()


def test_published_folder_replaces_one_of_the_same_name(tmp_path):
    for place, content in ((tmp_path / "checkpoint-1", "old"), (tmp_path / UNFINISHED / "checkpoint-1", "new")):
        place.mkdir(parents=True)
        (place / "optimizer.pt").write_text(content)
    seal(tmp_path / UNFINISHED / "checkpoint-1")
    publish(tmp_path / UNFINISHED / "checkpoint-1", tmp_path / "checkpoint-1")
    assert (tmp_path / "checkpoint-1" / "optimizer.pt").read_text() == "new"
    assert why_unusable(tmp_path / "checkpoint-1") is None and list((tmp_path / UNFINISHED).iterdir()) == []


def test_auto_begins_anew_in_an_empty_folder_and_goes_on_in_one_with_a_run(make_trainer, tmp_path):
    first = make_trainer(save_strategy="steps", save_steps=3)
    first.train(resume_from_checkpoint="auto")
    assert first.state.global_step == 4
    second = make_trainer(save_strategy="steps", save_steps=3, steps=2)
    second.train(resume_from_checkpoint="auto")
    assert [row["step"] for row in second.state.log_history if "loss" in row] == [1, 2, 3, 4]


def test_resuming_where_there_is_nothing_says_what_to_pass(make_trainer, tmp_path):
    with pytest.raises(
        FileNotFoundError, match="holds no whole checkpoint: pass the output_dir of the run to go on with"
    ):
        make_trainer().train(resume_from_checkpoint=True)
    with pytest.raises(FileNotFoundError, match="does not exist: pass a checkpoint-N folder, or True for the newest"):
        make_trainer().train(resume_from_checkpoint=str(tmp_path / "checkpoint-7"))
    assert list((tmp_path / "run").iterdir()) == []


def test_other_teacher_or_data_cannot_take_over_a_run(run, caplog):
    make = run[2]
    with pytest.raises(ValueError, match="the clean teacher has other weights than the one with which the run"):
        make(clean_teacher=sharp_net(9, scale=8)).train(resume_from_checkpoint=True)
    with pytest.raises(ValueError, match="train_dataset has 20 rows, the run of .* began with 16"):
        make(data=tiny_data(20)).train(resume_from_checkpoint=True)
    make(learning_rate=0.05, logging_steps=3).train(resume_from_checkpoint=True)
    assert (
        "goes on with other options than it began with" in caplog.text and "learning_rate 0.1 -> 0.05" in caplog.text
    )
    assert "logging_steps" not in caplog.text.partition("goes on with other options")[2].partition("\n")[0]


def test_run_that_is_resumed_at_its_end_takes_no_further_step(run, make_trainer):
    resumed = run[2]()
    resumed.train(resume_from_checkpoint=True)
    assert resumed.state.global_step == 4
    mid_epoch = make_trainer(steps=1, max_steps=3, save_strategy="steps", save_steps=3, overwrite_output_dir=True)
    mid_epoch.train()
    again = make_trainer(steps=1, max_steps=3)
    again.train(resume_from_checkpoint=True)
    assert again.state.global_step == 3
    for left, right in zip(mid_epoch.model.parameters(), again.model.parameters(), strict=True):
        assert torch.equal(left, right)


def test_model_is_saved_file_by_file_under_its_name(make_trainer, tmp_path, monkeypatch):
    trainer = make_trainer()
    trainer.save_model()
    before = (tmp_path / "run" / "model.safetensors").read_bytes()
    monkeypatch.setattr(
        "safetensors.torch.save_file", lambda *a, **k: (_ for _ in ()).throw(OSError("No space left on device"))
    )
    with pytest.raises(OSError, match="model could not be written to .*No space left on device"):
        trainer.save_model()
    assert (tmp_path / "run" / "model.safetensors").read_bytes() == before
    assert not (tmp_path / "run" / UNFINISHED / "model").exists()


def with_best(make_trainer, **options):
    return make_trainer(
        method="natural", save_strategy="epoch", eval_strategy="epoch", load_best_model_at_end=True, learning_rate=0.0,
        metric_for_best_model="clean_accuracy", greater_is_better=False, **{"num_train_epochs": 2, **options},
    )  # fmt: skip


def test_checkpoint_whose_best_is_gone_is_not_used_if_the_run_is_to_end_with_the_best(make_trainer, tmp_path):
    with_best(make_trainer).train()  # the first stays the best
    assert newest_whole(tmp_path / "run", needs_best=True)[0] == tmp_path / "run" / "checkpoint-8"
    shutil.rmtree(tmp_path / "run" / "checkpoint-4")
    assert newest_whole(tmp_path / "run")[0] == tmp_path / "run" / "checkpoint-8"
    with pytest.raises(
        FileNotFoundError, match="its best checkpoint so far, checkpoint-4, cannot be loaded at the end: it is gone"
    ):
        with_best(make_trainer).train(resume_from_checkpoint=True)


def test_run_that_was_moved_finds_its_best_checkpoint(make_trainer, tmp_path):
    with_best(make_trainer).train()
    (tmp_path / "run").rename(tmp_path / "elsewhere")
    moved = with_best(make_trainer, num_train_epochs=3, output_dir=str(tmp_path / "elsewhere"))
    moved.train(resume_from_checkpoint=True)
    assert moved.state.global_step == 12
    assert moved.state.best_model_checkpoint == str(tmp_path / "elsewhere" / "checkpoint-4")
