import shutil

import pytest
from forked_ranks import ONE, TWO, run
from train_two_ranks import main

PLAIN = {"batch_norm": False}


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return tmp_path_factory.mktemp("ddp")


@pytest.fixture(scope="module")
def two(folder):
    return train(folder / "two")


@pytest.fixture(scope="module")
def two_plain(folder):
    return train(folder / "two plain", **PLAIN)


@pytest.fixture(scope="module")
def one_with_large_batch(folder):
    return train(folder / "one", flags=ONE, batch=8, **PLAIN)[0]


def train(output, *, flags=TWO, batch=4, batch_norm=True, resume=None, accumulation=1):
    return run(main, output, batch, batch_norm, resume, accumulation, flags=flags)


def resume(finished, output, **options):
    """Train the second half again, in a copy of a finished run."""
    shutil.copytree(finished, output)
    shutil.rmtree(output / "checkpoint-8")
    return train(output, resume=output / "checkpoint-4", **options)


def test_two_processes_really_ran(two):
    assert [rank["world_size"] for rank in two] == [2, 2]


def test_weights_temperatures_and_loss_weights_are_identical_on_both_ranks(two):
    assert two[0]["weights"] == two[1]["weights"]
    assert two[0]["state"] == two[1]["state"]
    assert two[0]["state"]["weights"]["clean"] != 0.5 and two[0]["state"]["temperatures"]["clean"] != 1


def test_noise_and_images_differ_between_ranks_and_cover_the_data_once(two):
    assert not set(two[0]["noise"]) & set(two[1]["noise"])
    seen = [image for rank in two for image in rank["images"]]
    assert len(seen) == 64 and len(set(seen)) == 32  # two epochs of 32 images


def test_both_ranks_attack_and_evaluate_the_same_batch_statistics(two):
    assert two[0]["buffers"] == two[1]["buffers"] and len(set(two[0]["buffers"])) == 8
    assert two[0]["evaluation"] == two[1]["evaluation"]


def test_resume_on_two_ranks_is_bit_exact(two, folder, tmp_path):
    resumed = resume(folder / "two", tmp_path / "run")
    for straight, again in zip(two, resumed, strict=True):
        assert straight["weights"] == again["weights"] and straight["state"] == again["state"]
        assert straight["evaluation"] == again["evaluation"]
        assert again["noise"] == straight["noise"][4:]  # the second half


@pytest.mark.parametrize("accumulation", [1, 2])
def test_two_ranks_equal_one_process_with_twice_the_batch(accumulation, two_plain, one_with_large_batch, tmp_path):
    pairs = two_plain if accumulation == 1 else train(tmp_path / "two", accumulation=accumulation, **PLAIN)
    one = one_with_large_batch
    assert (pairs[0]["world_size"], one["world_size"]) == (2, 1)
    assert pairs[0]["state"] == {group: pytest.approx(values, rel=1e-4) for group, values in one["state"].items()}
    assert pairs[0]["evaluation"] == pytest.approx(one["evaluation"])
    for left, right in zip(pairs[0]["values"], one["values"], strict=True):
        assert left == pytest.approx(right, rel=1e-3, abs=1e-5)


def test_one_process_with_twice_the_batch_resumes_what_two_ranks_began(two_plain, folder, tmp_path):
    (resumed,) = resume(folder / "two plain", tmp_path / "run", flags=ONE, batch=8, **PLAIN)
    assert len(resumed["noise"]) == 4  # the second half
    expected = {group: pytest.approx(values, rel=1e-4) for group, values in two_plain[0]["state"].items()}
    assert resumed["state"] == expected
    for left, right in zip(two_plain[0]["values"], resumed["values"], strict=True):
        assert left == pytest.approx(right, rel=1e-3, abs=1e-5)
