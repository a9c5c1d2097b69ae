"""Command lines and YAML files to dataclasses, the same way in every recipe."""

from __future__ import annotations

import difflib
import json
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, fields
from functools import partial
from pathlib import Path
from typing import Any

import yaml
from transformers import HfArgumentParser

from bmtard_hooks.image_tensors import ImageTensors, load_images
from bmtard_hooks.options import option


@dataclass
class DataArguments:
    """Where the images come from."""

    dataset: str = option("cifar10", "Hub id or local directory of an image classification data set.")
    train_split: str = option("train", "Split to train on.")
    test_split: str = option(
        "test",
        "Split of the final table; never used to choose a checkpoint. Of several names, as in valid,validation, the first "
        "that the data set has.",
    )
    validation_images: int = option(2000, "Training images held out to choose the best checkpoint.")
    image_column: str | None = option(None, "Image column (usual names are found).")
    label_column: str | None = option(None, "Label column (usual names are found).")
    train_limit: int | None = option(None, "Use only the first training images, for a quick look.")
    test_limit: int | None = option(None, "Use only the first test images.")

    def load(self) -> tuple[ImageTensors, ImageTensors, ImageTensors]:
        """Read training, validation and test images.

        Raises:
            ValueError: if the data set lacks a split or a column (listing those it has), or is too small to hold out
                the validation images.
        """
        rows = self._read("train_split", self.train_limit)
        test = self._read("test_split", self.test_limit)
        train, validation = rows.split(self.validation_images)
        return train, validation, test

    def _read(self, which: str, limit: int | None) -> ImageTensors:
        split, *others = str(getattr(self, which)).split(",")
        read = partial(
            load_images,
            self.dataset,
            image_column=self.image_column,
            label_column=self.label_column,
            limit=limit,
        )
        try:
            return read(split)
        except ValueError as error:
            existing = _splits(self.dataset)
            if split in existing:
                raise
            fitting = [name for name in others if name in existing]
            if not fitting:
                raise ValueError(
                    f"{self.dataset} has no split {' or '.join(map(repr, [split, *others]))}: pass --{which} with one of "
                    f"{', '.join(existing)}"
                ) from error
        return read(fitting[0])


def _splits(dataset: str) -> list[str]:
    import datasets  # here, because it is slow to import

    return list(map(str, datasets.get_dataset_split_names(dataset)))


def parse(
    types: Sequence[type],
    argv: Sequence[str] | None = None,
    description: str | None = None,
    program: str | None = None,
    defaults: Mapping[str, Any] | None = None,
) -> tuple[Any, ...]:
    """Fill dataclasses from ``--config file.yaml`` and from options, which win over the file.

    Values of the file go through the same conversion as options, so ``1e-3`` is a number although YAML reads a string.
    ``include: other.yaml`` (or a list of files, paths relative to the including one) brings in the options of other
    files: the including file wins over what it includes, a later file of the list over an earlier one, and ``null`` takes
    an included option back.

    Args:
        types: dataclasses with distinct field names.
        argv: the command line without the program's name; ``sys.argv[1:]`` by default.
        description: for ``--help``.
        program: name of the program for ``--help``; that of the running script by default.
        defaults: option to the program's own default, in place of the dataclass's; file and command line win over it.

    Returns:
        One instance per dataclass.

    Raises:
        ValueError: for a key in a file that no dataclass has, with the nearest ones, and for files that include each other
            in a circle.
        FileNotFoundError: if a file does not exist, with the files that led to it.
    """
    argv = list(sys.argv[1:] if argv is None else argv)
    parser = HfArgumentParser(list(types), description=description, prog=program)  # type: ignore[arg-type]
    parser.add_argument("--config", help="YAML file with options; the command line wins over it.")
    known = {entry.name for kind in types for entry in fields(kind) if entry.init}
    parser.set_defaults(**_known_only(dict(defaults or {}), known, "defaults"))
    path = _config_path(argv)
    from_file = _as_words(read_options(path, known)) if path is not None else []
    *parsed, _ = parser.parse_args_into_dataclasses([*from_file, *argv], look_for_args_file=False)
    return tuple(parsed)


def _config_path(argv: Sequence[str]) -> Path | None:
    for position, word in enumerate(argv):
        if word == "--config" and position + 1 < len(argv):
            return Path(argv[position + 1])
        if word.startswith("--config="):
            return Path(word.removeprefix("--config="))
    return None


def read_options(path: Path, known: set[str], including: tuple[Path, ...] = ()) -> dict[str, Any]:
    """Read the options of a YAML file and, before them, those of the files that it includes.

    Args:
        path: the file.
        known: names of the options that may stand in it.
        including: the files that led to this one.

    Returns:
        Option to the file's value; None takes back what a file included.

    Raises:
        FileNotFoundError, ValueError: as ``parse`` does.
    """
    chain = " → ".join(str(file) for file in (*including, path))
    if path.resolve() in [file.resolve() for file in including]:
        raise ValueError(f"YAML files include each other in a circle: {chain}")
    if not path.is_file():
        raise FileNotFoundError(f"--config {chain} does not exist" + (": an include leads to it" if including else ""))
    content = yaml.safe_load(path.read_text()) or {}
    if not isinstance(content, dict):
        raise ValueError(f"{path} must hold `option: value` lines, it holds a {type(content).__name__}")
    included = content.pop("include", [])
    included = [included] if isinstance(included, str) else included
    if not isinstance(included, list) or not all(isinstance(name, str) for name in included):
        raise ValueError(f"{path}: include is {included!r}, expected a path or a list of paths, relative to this file")
    options: dict[str, Any] = {}
    for name in included:
        options |= read_options(path.parent / name, known, (*including, path))
    return options | _known_only(content, known, str(path))


def _known_only(options: dict[str, Any], known: set[str], where: str) -> dict[str, Any]:
    for key in options:
        if key not in known:
            near = difflib.get_close_matches(str(key), known, n=3)
            raise ValueError(
                f"{where}: unknown option {key!r}" + (f": did you mean {', '.join(near)}?" if near else "")
            )
    return options


def _as_words(options: Mapping[str, Any]) -> list[str]:
    words: list[str] = []
    for key, value in options.items():
        if value is None:
            continue
        if isinstance(value, list):
            words += [f"--{key}", *map(str, value)]
        else:
            words += [f"--{key}", json.dumps(value) if isinstance(value, dict) else str(value)]
    return words
