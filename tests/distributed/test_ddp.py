import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

pytestmark = pytest.mark.xdist_group("two ranks")  # one launch at a time
SCRIPT = Path(__file__).with_name("train_two_ranks.py")


def run(output, *, processes=2, norm="bn", stop=4, resume="-", accumulation=1):
    words = [str(SCRIPT), str(output), norm, str(stop), str(resume), str(accumulation)]
    launch = [sys.executable, "-m", "accelerate.commands.launch", "--num_machines", "1", "--mixed_precision", "no",
              "--dynamo_backend", "no", "--num_processes", str(processes)]  # fmt: skip
    # --cpu would silently start one process only
    launch += ["--multi_gpu", "--main_process_port", "0"] if processes > 1 else ["--cpu"]
    done = subprocess.run(
        [*launch, *words], env={**os.environ, "OMP_NUM_THREADS": "1"}, capture_output=True, text=True, timeout=240
    )
    assert done.returncode == 0, done.stderr[-4000:]
    return [json.loads((output / f"rank{rank}.json").read_text()) for rank in range(processes)]


@pytest.fixture(scope="module")
def two(tmp_path_factory):
    return run(tmp_path_factory.mktemp("ddp") / "run")


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


def test_resume_on_two_ranks_is_bit_exact(two, tmp_path):
    run(tmp_path / "run")
    shutil.rmtree(tmp_path / "run" / "checkpoint-8")
    resumed = run(tmp_path / "run", resume=tmp_path / "run" / "checkpoint-4")
    for straight, again in zip(two, resumed, strict=True):
        assert straight["weights"] == again["weights"] and straight["state"] == again["state"]
        assert straight["evaluation"] == again["evaluation"]


@pytest.mark.parametrize("accumulation", [1, 2])
def test_two_ranks_equal_one_process_with_twice_the_batch(tmp_path, accumulation):
    pairs = run(tmp_path / "two", norm="plain", accumulation=accumulation)
    one = run_one_with_large_batch(tmp_path / "one")
    assert pairs[0]["state"] == {group: pytest.approx(values, rel=1e-4) for group, values in one["state"].items()}
    assert pairs[0]["evaluation"] == pytest.approx(one["evaluation"])
    for left, right in zip(pairs[0]["values"], one["values"], strict=True):
        assert left == pytest.approx(right, rel=1e-3, abs=1e-5)


def test_one_process_with_twice_the_batch_resumes_what_two_ranks_began(tmp_path):
    pairs = run(tmp_path / "two", norm="plain")
    shutil.rmtree(tmp_path / "two" / "checkpoint-8")
    resumed = run_one_with_large_batch(tmp_path / "two", resume=tmp_path / "two" / "checkpoint-4")
    assert len(resumed["noise"]) == 4  # the second half
    assert resumed["state"] == {group: pytest.approx(values, rel=1e-4) for group, values in pairs[0]["state"].items()}
    for left, right in zip(pairs[0]["values"], resumed["values"], strict=True):
        assert left == pytest.approx(right, rel=1e-3, abs=1e-5)


def run_one_with_large_batch(output, resume="-"):
    os.environ["BATCH"] = "8"
    try:
        return run(output, processes=1, norm="plain", resume=resume)[0]
    finally:
        del os.environ["BATCH"]
