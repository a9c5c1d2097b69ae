"""Two trainings in one folder are told apart, and a killed one holds nobody up."""

import os
import signal
import subprocess
import sys

import pytest

from bmtard_hooks.sole_writer import LOCK, FolderInUse, SoleWriter

HOLD = """
import os, sys, time
from pathlib import Path
from bmtard_hooks.sole_writer import SoleWriter
writer = SoleWriter(Path(sys.argv[1]))
writer.take()
child = os.fork()
if child == 0:  # a data worker that outlives its parent
    time.sleep(60)
    os._exit(0)
print(child, flush=True)
time.sleep(60)
"""


@pytest.fixture
def other(tmp_path):
    """A process that holds the folder, with a child."""
    command = [sys.executable, "-c", HOLD, str(tmp_path)]
    process = subprocess.Popen(command, stdout=subprocess.PIPE, text=True)
    child = int(process.stdout.readline())
    yield process
    process.kill()
    process.wait()
    process.stdout.close()
    os.kill(child, signal.SIGKILL)


def test_second_training_is_refused_by_name_until_the_first_is_dead(other, tmp_path, make_trainer):
    options = {"output_dir": str(tmp_path), "max_steps": 1, "save_strategy": "no"}
    with pytest.raises(
        FolderInUse, match=f"being trained in by process {other.pid} on .*: wait for its end, stop it, or pass"
    ):
        make_trainer(**options).train()
    assert os.listdir(tmp_path) == [LOCK]
    other.kill()
    other.wait()
    trainer = make_trainer(**options)
    trainer.train()
    trainer.train()  # again, in the folder that is its own
    assert LOCK not in os.listdir(tmp_path)


def test_folder_is_left_when_a_training_fails(tmp_path, make_trainer):
    with pytest.raises(FileNotFoundError, match="holds no whole checkpoint"):
        make_trainer(output_dir=str(tmp_path)).train(resume_from_checkpoint=True)
    assert os.listdir(tmp_path) == []


def test_lock_is_taken_again_and_a_file_that_vanishes_is_no_lock(tmp_path):
    first, second = SoleWriter(tmp_path), SoleWriter(tmp_path / "below" / "it")
    first.take()
    first.take()
    second.take()
    first.leave()
    first.leave()
    assert os.listdir(tmp_path) == ["below"] and os.listdir(second.path.parent) == [LOCK]
    second.path.unlink()
    second.leave()


def test_file_system_without_locks_is_warned_about(tmp_path, monkeypatch, caplog):
    def refuse(*_):
        raise OSError(37, "No locks available")

    monkeypatch.setattr("bmtard_hooks.sole_writer.fcntl.lockf", refuse)
    SoleWriter(tmp_path).take()
    assert "cannot be locked" in caplog.text
