"""Two processes for the methods that look at more than their own images, or train more than the student."""

import importlib
import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
from train_methods_two_ranks import ALIKE, LIKE_ONE, build, left_by, same_noise_for_every_image

pytestmark = pytest.mark.xdist_group("two ranks")  # one launch at a time
SCRIPT = Path(__file__).with_name("train_methods_two_ranks.py")


@pytest.fixture(scope="module")
def ranks(tmp_path_factory):
    output = tmp_path_factory.mktemp("methods")
    launch = [sys.executable, "-m", "accelerate.commands.launch", "--num_machines", "1", "--mixed_precision", "no",
              "--dynamo_backend", "no", "--num_processes", "2", "--multi_gpu", "--main_process_port", "0"]  # fmt: skip
    done = subprocess.run(
        [*launch, str(SCRIPT), str(output)], env={**os.environ, "OMP_NUM_THREADS": "1"}, capture_output=True, text=True,
        timeout=240,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr[-4000:]
    found = [json.loads((output / f"rank{rank}.json").read_text()) for rank in range(2)]
    assert [rank["world size"] for rank in found] == [2, 2]
    return found


@pytest.mark.parametrize("kind, name", [("alike", name) for name in ALIKE] + [("like one", name) for name in LIKE_ONE])
def test_both_ranks_end_with_the_same_networks_and_state(ranks, kind, name):
    one, other = (rank[kind][name] for rank in ranks)
    assert one == other


@pytest.mark.parametrize("name", ALIKE)
def test_resumed_run_of_two_ranks_is_bit_exact(ranks, name):
    for rank in ranks:
        assert rank["resumed"][name] == rank["alike"][name]


@pytest.mark.parametrize("name", LIKE_ONE)
def test_two_ranks_equal_one_process_with_twice_the_batch(ranks, name, tmp_path, monkeypatch):
    module = importlib.import_module("bmtard_hooks.attacks.pgd")
    monkeypatch.setattr(module, "draw_noise", module.draw_noise)  # puts it back
    same_noise_for_every_image()
    trainer = build(tmp_path, 8, False, **LIKE_ONE[name])
    trainer.train()
    one, two = left_by(trainer), ranks[0]["like one"][name]
    for kind in ("student", "teachers"):
        for left, right in zip(one[kind], two[kind], strict=True):
            assert left == pytest.approx(right, rel=1e-3, abs=3e-5), kind
    for group, values in one["state"].items():
        for part, value in values.items():
            assert two["state"][group][part] == pytest.approx(value, rel=1e-3), (group, part)
