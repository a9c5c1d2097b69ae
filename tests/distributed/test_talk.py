"""What two ranks say to each other in a step: as little as there can be."""

import pytest
from forked_ranks import run
from talk_two_ranks import RUNS, main


@pytest.fixture(scope="module")
def ranks(tmp_path_factory):
    found = run(main, tmp_path_factory.mktemp("talk"))
    assert [rank["world size"] for rank in found] == [2, 2]
    return found


@pytest.mark.parametrize("name", RUNS)
def test_everything_observed_takes_one_all_reduce_a_step(ranks, name):
    for rank in ranks:
        assert [step["all_reduce"] for step in rank["steps"][name]] == [1, 1]


@pytest.mark.parametrize("name", RUNS)
def test_all_buffers_take_one_broadcast_before_an_attack(ranks, name):
    attacks = RUNS[name].get("gradient_accumulation_steps", 1)
    for rank in ranks:
        assert [step["broadcast"] for step in rank["steps"][name]] == [attacks, attacks]


@pytest.mark.parametrize("name", RUNS)
def test_attack_does_not_go_through_ddp(ranks, name):
    for rank in ranks:
        crafted = rank["through ddp"][name]
        assert len(crafted) == 2 * RUNS[name].get("gradient_accumulation_steps", 1) and not any(crafted)
        assert all(step["forward"] for step in rank["steps"][name])  # the training's forwards do


def test_synchronised_batch_norm_is_refused_on_cpus_before_work_starts(ranks):
    for rank in ranks:
        assert "sync_batch_norm=True needs GPUs" in rank["refusal"]
