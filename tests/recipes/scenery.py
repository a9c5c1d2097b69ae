"""What the recipes' tests share: data sets of the right layout with generated images, saved teachers, the table of files."""

import re
from pathlib import Path
from typing import NamedTuple

import cifar10
import cifar100
import datasets
import numpy as np
import tiny_imagenet
import torch
import train_teacher
from PIL import Image

from bmtard_hooks import BMTARDConfig, create_model
from bmtard_hooks.arguments import DataArguments, parse
from bmtard_hooks.distil import ModelArguments

RECIPES = Path(__file__).parents[2] / "recipes"
CONFIGS = RECIPES / "configs"
MODULES = {module.__name__ + ".py": module for module in (cifar10, cifar100, tiny_imagenet, train_teacher)}
ROLES = ("clean", "robust", "robust_l2")


class Layout(NamedTuple):
    """How a data set looks."""

    classes: int
    side: int
    image: str
    labels: tuple[str, ...]
    splits: tuple[str, ...]


LAYOUTS = {
    "cifar10": Layout(10, 32, "img", ("label",), ("train", "test")),
    "cifar100": Layout(100, 32, "img", ("fine_label", "coarse_label"), ("train", "test")),
    "zh-plus/tiny-imagenet": Layout(200, 64, "image", ("label",), ("train", "valid")),
}


def write_dataset(directory, layout, images):
    """Write generated images as the parquet files of a data set; coarse labels would give too few classes."""
    generator = np.random.default_rng(0)
    names = {label: layout.classes // (5 if "coarse" in label else 1) for label in layout.labels}
    kinds = {label: datasets.ClassLabel(names=[f"c{i}" for i in range(count)]) for label, count in names.items()}
    features = datasets.Features({layout.image: datasets.Image(), **kinds})
    for split in layout.splits:
        pixels = generator.integers(0, 256, (images, layout.side, layout.side, 3), dtype=np.uint8)
        rows = {layout.image: [Image.fromarray(image) for image in pixels]}
        rows |= {label: [i % count for i in range(images)] for label, count in names.items()}
        datasets.Dataset.from_dict(rows, features=features).to_parquet(directory / f"{split}-00000-of-00001.parquet")
    return str(directory)


def save_teachers(directory, classes):
    """Save a small random network for every role; role to directory."""
    for number, role in enumerate(ROLES):
        torch.manual_seed(number)
        create_model("resnet8_cifar", classes).backbone.save_pretrained(directory / role)
    return {role: str(directory / role) for role in ROLES}


class Row(NamedTuple):
    """A complete YAML file as ``configs/README.md`` lists it."""

    path: str
    recipe: str
    teachers: tuple[str, ...]


def listed_rows():
    """Read the tables of ``configs/README.md``."""
    pattern = r"^\| \[(\S+)\]\((\S+)\) \| `(\w+\.py)` \| [^|]+ \| ([^|]+) \|"
    found = re.findall(pattern, (CONFIGS / "README.md").read_text(), re.M)
    assert all(shown == target for shown, target, *_ in found)
    return [
        Row(path, recipe, tuple(role for role in teachers.split(", ") if role in ROLES))
        for path, _, recipe, teachers in found
    ]


def types_of(row):
    """The dataclasses that a row's recipe fills."""
    models = train_teacher.TeacherArguments if row.recipe == "train_teacher.py" else ModelArguments
    return [models, DataArguments, BMTARDConfig]


def options_of(row, output_dir, argv=()):
    """Parse a row as its recipe does: models, data, config."""
    words = ["--config", str(CONFIGS / row.path), "--output_dir", str(output_dir), *argv]
    return parse(types_of(row), words, defaults=getattr(MODULES[row.recipe], "DEFAULTS", None))
