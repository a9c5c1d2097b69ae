"""A disk that is full ends a run with a clear message and leaves the last checkpoint whole."""

import re
import shutil
import subprocess
import sys

import pytest
from killing import Forks, said, what_differs

from bmtard_hooks.checkpoint_folders import UNFINISHED, checkpoints, why_unusable

pytestmark = pytest.mark.skipif(not sys.platform.startswith("linux"), reason="forks and reads /proc")
OPTIONS = {"case": "absld", "save_total_limit": 100}


@pytest.fixture(scope="module")
def forks():
    with Forks() as server:
        yield server


@pytest.mark.parametrize("largest_file", [1000, 10_000])  # met by a JSON file, and by one of torch's
def test_file_size_quota_stops_the_run_before_anything_is_saved(forks, tmp_path, largest_file, record_property):
    forks.start(tmp_path, largest_file=largest_file, **OPTIONS)
    assert forks.wait() == [1]
    pattern = r"OSError: step 1: checkpoint-1 could not be written to .*No checkpoint was written before"
    assert re.search(pattern, said(tmp_path)), said(tmp_path)
    assert checkpoints(tmp_path / "run") == [] and not (tmp_path / "run" / UNFINISHED / "checkpoint-1").exists()
    record_property("full disks survived", 1)


def test_small_file_system_keeps_the_previous_checkpoint_and_the_run_goes_on_when_there_is_room(
    forks, tmp_path, record_property
):
    disk = tmp_path / "disk"
    disk.mkdir()
    mounted = shutil.which("mount") and subprocess.run(
        ["mount", "-t", "tmpfs", "-o", "size=400k", "tmpfs", str(disk)], capture_output=True
    )
    if not mounted or mounted.returncode:
        pytest.skip("mounting a tmpfs needs root")
    try:
        options = {**OPTIONS, "output": str(disk / "run")}
        forks.start(tmp_path / "full", **options)
        assert forks.wait() == [1]
        last = checkpoints(disk / "run")
        assert 1 <= len(last) < 15 and [why_unusable(path) for path in last] == [None] * len(last)
        log = said(tmp_path / "full")
        assert re.search(
            rf"OSError: step \d+: checkpoint-\d+ could not be written to .*C{last[0].name[1:]} is whole: make", log
        ), log
        subprocess.run(["mount", "-o", "remount,size=40m", str(disk)], check=True)
        straight = forks.finish(tmp_path / "straight", **OPTIONS)
        assert what_differs(straight, forks.finish(tmp_path / "full", **options)) == {}
        record_property("full disks survived", 1)
    finally:
        subprocess.run(["umount", "-l", str(disk)], check=True)
