"""A run that is killed at any moment, and started again, ends as the run that was never killed: bit for bit."""

import sys

import killable_run
import pytest
from killing import Forks, seeded, survive

pytestmark = pytest.mark.skipif(not sys.platform.startswith("linux"), reason="forks and reads /proc")


@pytest.fixture(scope="module")
def forks():
    with Forks() as server:
        yield server


@pytest.mark.parametrize("case", killable_run.CASES)
def test_killed_run_ends_as_the_straight_one(forks, tmp_path, record_property, case):
    straight = forks.finish(tmp_path / "straight", case=case)
    assert straight["steps"] == 15 and len(straight["logs"]) == 7  # every fifth step, every epoch, and the summary
    assert survive(forks, tmp_path, seeded(case), straight, kills=8, case=case) >= 1
    record_property("kills survived", 8)


def test_two_killed_processes_end_as_the_straight_ones(forks, tmp_path, record_property):
    options = {"case": "bmtard", "ranks": 2, "dataloader_num_workers": 0}
    straight = forks.finish(tmp_path / "straight", **options)
    assert survive(forks, tmp_path, seeded("two processes"), straight, kills=6, **options) >= 1
    record_property("kills survived", 6)
