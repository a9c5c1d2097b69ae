"""SIGTERM: the step is finished, a checkpoint is written, the process exits with 0, and the run can go on exactly."""

import os
import signal
import sys
import time

import pytest
from conftest import tiny_data
from killing import Forks, results, said, what_differs

from bmtard_hooks.checkpoint_folders import newest_whole
from bmtard_hooks.stopping import StoppedBySignal, StopRequest

pytestmark = pytest.mark.skipif(not sys.platform.startswith("linux"), reason="forks and reads /proc")


@pytest.fixture(scope="module")
def forks():
    with Forks() as server:
        yield server


@pytest.fixture(scope="module")
def straight(forks, tmp_path_factory):
    return forks.finish(tmp_path_factory.mktemp("straight"), **RARE)


# with few checkpoints of its own, so that what a signal leaves behind is the signal's
RARE = {"case": "bmtard", "save_steps": 100, "dataloader_num_workers": 0}


@pytest.mark.parametrize(
    "moment",
    [("step", 2), ("step", 5), ("step", 7), ("step", 15), ("evaluation", 2), ("evaluation", 3)],
    ids=lambda moment: f"{moment[0]} {moment[1]}",
)
def test_signalled_run_saves_exits_with_0_and_goes_on_exactly(forks, straight, tmp_path, moment, record_property):
    forks.start(tmp_path, signal_at=moment, **RARE)
    assert forks.wait() == [0], said(tmp_path)
    assert not (tmp_path / "result0.json").exists()
    assert "stopped by SIGTERM after step" in said(tmp_path)
    whole, _ = newest_whole(tmp_path / "run")
    ends = {"step": moment[1], "evaluation": 5 * moment[1] // 2 // 5 * 5 or 5}  # evaluated are the ends of epochs
    assert whole is not None and (moment[0] == "evaluation" or whole.name == f"checkpoint-{ends['step']}")
    assert what_differs(straight, forks.finish(tmp_path, **RARE)) == {}
    record_property("signals survived", 1)


def test_signal_from_outside_ends_a_run_with_data_workers_in_seconds(forks, tmp_path):
    options = {"case": "bmtard", "num_train_epochs": 500, "eval_strategy": "no", "save_steps": 10_000}
    forks.start(tmp_path, **options)
    _wait_for_logs(tmp_path)
    begun = time.monotonic()
    forks.signal(signal.SIGTERM, group=True)  # to the workers too, as a scheduler does
    assert forks.wait(30) == [0], said(tmp_path)
    assert time.monotonic() - begun < 10
    assert newest_whole(tmp_path / "run")[0] is not None


def test_signal_to_one_of_two_processes_stops_both_after_the_same_step(forks, tmp_path):
    options = {"case": "bmtard", "ranks": 2, "dataloader_num_workers": 0}
    straight = forks.finish(tmp_path / "straight", **options)
    forks.start(tmp_path / "stopped", num_train_epochs=500, save_steps=10_000, eval_strategy="no", **options)
    _wait_for_logs(tmp_path / "stopped")
    forks.signal(signal.SIGTERM, ranks=[1])
    assert forks.wait(60) == [0, 0], said(tmp_path / "stopped")
    assert newest_whole(tmp_path / "stopped" / "run")[0] is not None
    assert straight["steps"] == results(tmp_path / "straight", 2)["steps"]


def _wait_for_logs(folder):
    for _ in range(600):
        if "'loss'" in said(folder):
            return
        time.sleep(0.1)
    raise AssertionError(said(folder))


def test_request_stop_works_without_a_signal_and_leaves_handlers_as_they_were(make_trainer, tmp_path):
    before = signal.getsignal(signal.SIGTERM)
    trainer = make_trainer(save_strategy="no")
    trainer.request_stop()
    with pytest.raises(StoppedBySignal) as stopped:
        trainer.train()
    assert stopped.value.code == 0
    assert [path.name for path in (tmp_path / "run").glob("checkpoint-*")] == ["checkpoint-1"]
    assert signal.getsignal(signal.SIGTERM) is before


def test_evaluation_before_the_first_step_is_left_too(make_trainer, tmp_path):
    trainer = make_trainer(eval_on_start=True)
    trainer.request_stop()
    with pytest.raises(StoppedBySignal):
        trainer.train()
    assert trainer.state.global_step == 0 and list((tmp_path / "run").iterdir()) == []
    trainer.train()  # the wish was for that run
    assert trainer.state.global_step == 4


def test_handler_of_somebody_else_stays():
    heard = []
    before = signal.signal(signal.SIGUSR1, lambda *args: heard.append(1))
    try:
        request = StopRequest()
        with request.listening(["SIGUSR1"]):
            os.kill(os.getpid(), signal.SIGUSR1)
        assert heard == [1] and not request.requested
    finally:
        signal.signal(signal.SIGUSR1, before)


def test_standalone_evaluation_is_not_stopped(make_trainer):
    trainer = make_trainer(eval_dataset=tiny_data(6, seed=5))
    trainer.request_stop()
    assert "eval_w_robust" in trainer.evaluate()
