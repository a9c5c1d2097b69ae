"""Command lines and YAML files to dataclasses, the same way in every recipe."""

from __future__ import annotations

import difflib
import json
import sys
from collections.abc import Sequence
from dataclasses import dataclass, field, fields
from pathlib import Path
from typing import Any

import yaml
from transformers import HfArgumentParser

from bmtard_hooks.image_tensors import ImageTensors, load_images


def option(default: Any, help: str) -> Any:
    """Declare a field of a dataclass of options, with its line for ``--help``."""
    return field(default=default, metadata={"help": help})


@dataclass
class DataArguments:
    """Where the images come from."""

    dataset: str = option("cifar10", "Hub id or local directory of an image classification data set.")
    train_split: str = option("train", "Split to train on.")
    test_split: str = option("test", "Split of the final table; never used to choose a checkpoint.")
    validation_images: int = option(2000, "Training images held out to choose the best checkpoint.")
    image_column: str | None = option(None, "Image column (usual names are found).")
    label_column: str | None = option(None, "Label column (usual names are found).")
    train_limit: int | None = option(None, "Use only the first training images, for a quick look.")
    test_limit: int | None = option(None, "Use only the first test images.")

    def load(self) -> tuple[ImageTensors, ImageTensors, ImageTensors]:
        """Read training, validation and test images."""
        rows = self._read(self.train_split, self.train_limit)
        test = self._read(self.test_split, self.test_limit)
        train, validation = rows.split(self.validation_images)
        return train, validation, test

    def _read(self, split: str, limit: int | None) -> ImageTensors:
        return load_images(
            self.dataset, split, image_column=self.image_column, label_column=self.label_column, limit=limit
        )


def parse(
    types: Sequence[type],
    argv: Sequence[str] | None = None,
    description: str | None = None,
    program: str | None = None,
) -> tuple[Any, ...]:
    """Fill dataclasses from ``--config file.yaml`` and from options, which win over the file.

    Values of the file go through the same conversion as options, so ``1e-3`` is a number although YAML reads a string.

    Args:
        types: dataclasses with distinct field names.
        argv: the command line without the program's name; ``sys.argv[1:]`` by default.
        description: for ``--help``.
        program: name of the program for ``--help``; that of the running script by default.

    Returns:
        One instance per dataclass.

    Raises:
        ValueError: for a key in the file that no dataclass has, with the nearest ones.
        FileNotFoundError: if the file does not exist.
    """
    argv = list(sys.argv[1:] if argv is None else argv)
    parser = HfArgumentParser(list(types), description=description, prog=program)  # type: ignore[arg-type]
    parser.add_argument("--config", help="YAML file with options; the command line wins over it.")
    path = _config_path(argv)
    known = {entry.name for kind in types for entry in fields(kind) if entry.init}
    from_file = _file_options(path, known) if path is not None else []
    *parsed, _ = parser.parse_args_into_dataclasses([*from_file, *argv], look_for_args_file=False)
    return tuple(parsed)


def _config_path(argv: Sequence[str]) -> Path | None:
    for position, word in enumerate(argv):
        if word == "--config" and position + 1 < len(argv):
            return Path(argv[position + 1])
        if word.startswith("--config="):
            return Path(word.removeprefix("--config="))
    return None


def _file_options(path: Path, known: set[str]) -> list[str]:
    if not path.is_file():
        raise FileNotFoundError(f"--config {path} does not exist")
    content = yaml.safe_load(path.read_text()) or {}
    if not isinstance(content, dict):
        raise ValueError(f"{path} must hold `option: value` lines, it holds a {type(content).__name__}")
    words: list[str] = []
    for key, value in content.items():
        if key not in known:
            near = difflib.get_close_matches(str(key), known, n=3)
            raise ValueError(
                f"{path}: unknown option {key!r}" + (f": did you mean {', '.join(near)}?" if near else "")
            )
        if value is None:
            continue
        if isinstance(value, list):
            words += [f"--{key}", *map(str, value)]
        else:
            words += [f"--{key}", json.dumps(value) if isinstance(value, dict) else str(value)]
    return words
