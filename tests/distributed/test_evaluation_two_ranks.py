import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

pytestmark = pytest.mark.xdist_group("two ranks")  # one launch at a time
SCRIPT = Path(__file__).with_name("evaluate_two_ranks.py")


def run(output, processes, state):
    output.mkdir()
    launch = [sys.executable, "-m", "accelerate.commands.launch", "--num_machines", "1", "--mixed_precision", "no",
              "--dynamo_backend", "no", "--num_processes", str(processes)]  # fmt: skip
    # --cpu would silently start one process only
    launch += ["--multi_gpu", "--main_process_port", "0"] if processes > 1 else ["--cpu"]
    done = subprocess.run(
        [*launch, str(SCRIPT), str(output), str(state)],
        env={**os.environ, "OMP_NUM_THREADS": "1"}, capture_output=True, text=True, timeout=240,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr[-4000:]
    return [json.loads((output / f"rank{rank}.json").read_text()) for rank in range(processes)]


def test_two_processes_share_the_images_and_find_what_one_finds(tmp_path):
    (one,) = run(tmp_path / "one", 1, tmp_path / "state one")
    two = run(tmp_path / "two", 2, tmp_path / "state two")
    assert [rank["processes"] for rank in two] == [2, 2] and one["processes"] == 1
    for rank in two:
        assert (
            rank["broken"] == one["broken"] and rank["queries"] == one["queries"] and rank["checks"] == one["checks"]
        )
    assert sum(rank["attacked_here"] for rank in two) == one["attacked_here"] and two[0]["attacked_here"] > 0

    # what two processes left behind, one can take up
    (resumed,) = run(tmp_path / "resumed", 1, tmp_path / "state two")
    assert resumed["broken"] == one["broken"] and resumed["attacked_here"] == 0
