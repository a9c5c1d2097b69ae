"""What a kill may leave behind: locks of dead processes, checkpoints that are not whole, damaged records."""

import os
import subprocess
import sys

import pytest

from bmtard_hooks.compare.identity import differences
from bmtard_hooks.compare.record import (
    Record,
    RunIsBusy,
    clear,
    is_locked,
    read_record,
    run_lock,
    write_record,
)

HOLDER = """
import fcntl, sys, time
stream = open(sys.argv[1], "a+")
fcntl.flock(stream, fcntl.LOCK_EX)
print("held", flush=True)
time.sleep(60)
"""


def test_lock_names_the_process_that_holds_it(tmp_path):
    with run_lock(tmp_path):
        assert is_locked(tmp_path)
        with pytest.raises(RunIsBusy, match=f"process {os.getpid()} on "), run_lock(tmp_path):
            pass
    assert not is_locked(tmp_path)


def test_lock_of_a_killed_process_holds_nobody_up(tmp_path):
    with subprocess.Popen([sys.executable, "-c", HOLDER, str(tmp_path / "lock")], stdout=subprocess.PIPE) as process:
        assert process.stdout.readline() == b"held\n"
        assert is_locked(tmp_path)
        process.kill()
    with run_lock(tmp_path):
        assert is_locked(tmp_path)


def test_record_is_replaced_whole_and_a_damaged_one_is_none(tmp_path):
    assert read_record(tmp_path) is None
    record = Record("finished", {"method": "sat"}, {"steps": 3}, {"weights": "abc"})
    write_record(tmp_path, record)
    assert read_record(tmp_path) == record
    path = tmp_path / "run.json"
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])
    assert read_record(tmp_path) is None
    with run_lock(tmp_path):
        clear(tmp_path)
    assert [path.name for path in tmp_path.iterdir()] == ["lock"]


def test_option_that_a_release_has_no_more_counts_only_if_it_was_changed():
    saved = {"options": {"kept": 1, "moved": 2}, "changed": ["moved"]}
    assert differences(saved, {"options": {}}) == ["moved: 2 on disk, (nothing) now"]


def test_identities_differ_in_what_is_named():
    saved = {"method": "sat", "options": {"steps": 10, "eps": 0.1}, "teachers": {}, "data": {"train": "a"}}
    now = {"method": "sat", "options": {"steps": 7, "eps": 0.1}, "teachers": {"clean": "x"}, "data": {"train": "b"}}
    assert differences(saved, saved) == []
    assert differences(saved, now) == [
        "steps: 10 on disk, 7 now",
        "data.train: a on disk, b now",
        "teachers.clean: (nothing) on disk, x now",
    ]


def test_option_that_an_older_release_did_not_have_counts_as_its_default():
    assert differences({"options": {}}, {"options": {"trades_beta": 6.0}}) == []
    assert differences({"options": {}}, {"options": {"trades_beta": 5.0}}) == ["trades_beta: 6.0 on disk, 5.0 now"]
