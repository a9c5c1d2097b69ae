"""The benchmark of the input pipeline: one short run of it."""

import importlib.util
import json
import sys
from pathlib import Path

import datasets
import pytest
from conftest import tiny_data
from PIL import Image

SCRIPT = Path(__file__).parents[2] / "benchmarks" / "input_pipeline.py"


@pytest.fixture
def pipeline():
    spec = importlib.util.spec_from_file_location("input_pipeline_benchmark", SCRIPT)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def test_short_run_measures_every_pipeline_and_finds_the_same_pixels(pipeline, tmp_path, monkeypatch):
    data = tiny_data(16, size=32)
    rows = {
        "img": [Image.fromarray(image.permute(1, 2, 0).numpy()) for image in data.images],
        "label": data.labels.tolist(),
    }
    features = datasets.Features({"img": datasets.Image(), "label": datasets.ClassLabel(names=list("abcd"))})
    table = tmp_path / "set" / "train-00000-of-00001.parquet"
    datasets.Dataset.from_dict(rows, features=features).to_parquet(table)
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", tmp_path / "cache")
    words = ["--dataset", str(table.parent), "--output", str(tmp_path / "out.json")]
    words += ["--batch_size", "4", "--batches", "2", "--rounds", "1", "--device", "cpu"]
    monkeypatch.setattr(sys, "argv", ["input_pipeline.py", *words])
    pipeline.main()
    kept = json.loads((tmp_path / "out.json").read_text())
    assert kept["same_pixels"] is True and kept["times_as_fast_as_reference"][kept["reference"]] == 1
    assert len(kept["images_per_second"]) == 4 and len(kept["images_per_second_of_parts"]) == 3
    assert min([*kept["images_per_second"].values(), *kept["images_per_second_of_parts"].values()]) > 0
    assert set(kept["seconds_to_start"]) == {"decoding", "reading what was kept"}


def test_pixels_that_differ_are_noticed(pipeline):
    class Ways:
        def _one_by_one(self):
            return iter([tiny_data(2).images] * 3)

        def _together(self):
            return iter([tiny_data(2).images, tiny_data(2).images + 1, tiny_data(2).images])

    assert not pipeline.same_pixels(Ways())
