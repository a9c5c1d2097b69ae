"""A number that is not finite on one rank alone: both ranks leave the step out, or both stop."""

from forked_ranks import run
from train_faulty_two_ranks import main


def test_both_ranks_leave_a_step_out_that_goes_wrong_on_one(tmp_path):
    ranks = run(main, tmp_path, 3)
    assert [rank["ended"] for rank in ranks] == ["well", "well"]
    assert [rank["steps"] for rank in ranks] == [4, 4]
    assert [rank["skipped"] for rank in ranks] == [2, 2]  # the marked image comes once an epoch
    assert ranks[0]["weights"] == ranks[1]["weights"]


def test_both_ranks_stop_and_name_what_went_wrong_on_one(tmp_path):
    ranks = run(main, tmp_path, 0)
    assert ranks[0]["steps"] == ranks[1]["steps"] and ranks[0]["weights"] == ranks[1]["weights"]
    named = sorted(rank["ended"].split(" is not finite")[0].partition(": ")[2] for rank in ranks)
    assert named == ["the gradient of the attack", "the gradient of the attack of one of the processes"]
    assert all("Likely cause: fp16" in rank["ended"] for rank in ranks)
