"""The numbers of the README are those of the committed results."""

import json
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
sys.path.insert(0, str(ROOT / "benchmarks"))

from step.results import markdown_table  # noqa: E402

README = (ROOT / "README.md").read_text()
RESULTS = ROOT / "benchmarks" / "results"


@pytest.mark.parametrize("name", ["train_step_cpu.json", "train_step_amx.json"])
def test_tables_of_the_step_are_made_from_the_results(name):
    runs = json.loads((RESULTS / name).read_text())["runs"]
    assert markdown_table(list(runs.values())) in README


def test_images_per_second_of_the_pipeline_are_the_results():
    measured = json.loads((RESULTS / "input_pipeline.json").read_text())["images_per_second"]
    for name in ("BMTARDTrainer", "torchvision transforms on arrays in memory"):
        assert f"{round(measured[name], -3):,}" in README
