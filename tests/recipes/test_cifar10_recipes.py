"""The CIFAR-10 recipes, run whole on a data set of the same layout with 60 generated images."""

from pathlib import Path

import cifar10
import datasets
import numpy as np
import pytest
import train_teacher
from PIL import Image

from bmtard_hooks import BMTARDConfig
from bmtard_hooks.arguments import DataArguments, parse

RECIPES = Path(__file__).parents[2] / "recipes"
FAST = [
    "--steps",
    "1",
    "--eval_attack_steps",
    "2",
    "--num_train_epochs",
    "1",
    "--per_device_train_batch_size",
    "16",
    "--disable_tqdm",
    "true",
]


@pytest.fixture(scope="module")
def dataset(tmp_path_factory):
    directory = tmp_path_factory.mktemp("cifar")
    datasets.config.HF_DATASETS_CACHE = directory / "cache"
    pixels = np.random.default_rng(0).integers(0, 256, (60, 16, 16, 3), dtype=np.uint8)
    features = datasets.Features({"img": datasets.Image(), "label": datasets.ClassLabel(names=list("abcdefghij"))})
    rows = {"img": [Image.fromarray(image) for image in pixels], "label": [i % 10 for i in range(60)]}
    for split in ("train", "test"):
        datasets.Dataset.from_dict(rows, features=features).to_parquet(directory / f"{split}-00000-of-00001.parquet")
    return str(directory)


def test_teachers_then_student_from_the_command_lines(dataset, tmp_path, capsys):
    data = ["--dataset", dataset, "--validation_images", "12", *FAST]
    for kind in ("clean", "robust"):
        config = RECIPES / "configs" / f"cifar10_{kind}_teacher.yaml"
        rows = train_teacher.main(
            ["--config", str(config), *data, "--model", "resnet8_cifar", "--output_dir", str(tmp_path / kind)]
        )
        assert len(rows) == 1 and (tmp_path / kind / "config.json").is_file()
    rows = cifar10.main(
        ["--config", str(RECIPES / "configs" / "cifar10_small.yaml"), *data, "--output_dir", str(tmp_path / "student"),
         "--clean_teacher", str(tmp_path / "clean"), "--robust_teacher", str(tmp_path / "robust")]
    )  # fmt: skip
    assert list(rows) == ["clean teacher", "robust teacher", "bmtard"]
    assert all(0 <= value <= 1 for row in rows.values() for value in row.values())
    assert "| bmtard " in capsys.readouterr().out
    assert "trained with bmtard" in (tmp_path / "student" / "README.md").read_text()


@pytest.mark.parametrize("path", sorted((RECIPES / "configs").glob("*.yaml")), ids=lambda path: path.stem)
def test_every_config_file_loads(path, tmp_path):
    models = train_teacher.TeacherArguments if "teacher" in path.stem else cifar10.ModelArguments
    *_, config = parse([models, DataArguments, BMTARDConfig], ["--config", str(path), "--output_dir", str(tmp_path)])
    assert config.learning_rate == 0.1 and config.num_train_epochs >= 2
