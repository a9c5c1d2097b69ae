"""Command lines and YAML files to dataclasses, the same way in every recipe."""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, fields
from itertools import pairwise
from pathlib import Path
from typing import Any, NoReturn

from transformers import HfArgumentParser

from bmtard_hooks.image_tensors import ImageTensors, load_images
from bmtard_hooks.option_names import near_options
from bmtard_hooks.options import option, read_number
from bmtard_hooks.yaml_files import read_yaml


@dataclass(kw_only=True)
class PictureArguments:
    """How pictures become images of one shape."""

    image_column: str | None = option(None, "Image column (usual names are found).")
    label_column: str | None = option(None, "Label column (usual names are found).")
    image_size: int | None = option(None, "Scale and crop images to squares of this side (None: they have one size).")
    image_mode: str = option("RGB", "RGB, or L for models of one channel.")

    def reading(self) -> dict[str, Any]:
        """Give the arguments of ``load_images``.

        Raises:
            ValueError: for a side below 1.
        """
        side = self.image_size
        if side is not None and side < 1:
            raise ValueError(f"--image_size {side} is no side of a square: pass pixels, 1 or more, or leave it out")
        columns = {"image_column": self.image_column, "label_column": self.label_column}
        return {**columns, "image_size": side, "mode": self.image_mode}


@dataclass
class DataArguments(PictureArguments):
    """Where the images come from."""

    dataset: str = option("cifar10", "Hub id or local directory of an image classification data set.")
    train_split: str = option("train", "Split to train on.")
    test_split: str = option(
        "test",
        "Split of the final table; never used to choose a checkpoint. Of several names, as in valid,validation, the first "
        "that the data set has.",
    )
    validation_images: int = option(2000, "Training images held out to choose the best checkpoint.")
    validation_split: str | None = option(None, "Split to choose the best checkpoint on, in place of images held out.")
    train_limit: int | None = option(None, "Use only the first training images, for a quick look.")
    test_limit: int | None = option(None, "Use only the first test images.")

    def load(self) -> tuple[ImageTensors, ImageTensors, ImageTensors]:
        """Read training, validation and test images.

        Raises:
            ValueError: if the data set lacks a split or a column (listing those it has), or is too small to hold out
                the validation images.
        """
        with naming_data_set(self.dataset):
            rows = self._read("train_split", self.train_limit)
            test = self._read("test_split", self.test_limit)
            if self.validation_split is not None:
                return rows, self._read("validation_split", None), test
        if not 0 < self.validation_images < len(rows):
            raise ValueError(
                f"--validation_images {self.validation_images} cannot be held out of {len(rows)} training images: pass a number "
                f"from 1 to {len(rows) - 1}"
            )
        train, validation = rows.split(self.validation_images)
        return train, validation, test

    def _read(self, which: str, limit: int | None) -> ImageTensors:
        split, *others = str(getattr(self, which)).split(",")
        reading = {"limit": limit, **self.reading()}
        try:
            return load_images(self.dataset, split, **reading)
        except ValueError as error:
            existing = splits_of(self.dataset)
            if split in existing:
                raise
            fitting = [name for name in others if name in existing]
            if not fitting:
                raise ValueError(
                    f"{self.dataset} has no split {' or '.join(map(repr, [split, *others]))}: pass --{which} with one of "
                    f"{', '.join(existing)}"
                ) from error
        return load_images(self.dataset, fitting[0], **reading)


@contextmanager
def naming_data_set(name: str) -> Iterator[None]:
    """Say which data set it was when ``datasets`` or the hub cannot read one.

    Raises:
        FileNotFoundError: instead of their errors.
    """
    try:
        yield
    except OSError as error:
        reason = (str(error).strip() or type(error).__name__).splitlines()[0].rstrip(".")
        raise FileNotFoundError(
            f"--dataset {name} cannot be read ({reason}): expected a local directory of images or parquet files, or a hub id. "
            "Pass another one, or unset HF_HUB_OFFLINE to download"
        ) from error


def splits_of(dataset: str) -> list[str]:
    """List the splits of a data set."""
    import datasets  # here, because it is slow to import

    return list(map(str, datasets.get_dataset_split_names(dataset)))


Defaults = Mapping[str, Any] | Callable[[Mapping[str, Any]], Mapping[str, Any]]


class _Parser(HfArgumentParser):
    """Reads fractions as numbers, and says what is wrong in one line, without the usage of two hundred options."""

    def add_argument(self, *names: Any, **settings: Any) -> argparse.Action:
        """Let every number be a fraction: ``--eps 8/255``."""
        if settings.get("type") is float:
            settings["type"] = _number
        return super().add_argument(*names, **settings)

    def given(self, words: Sequence[str], known: set[str]) -> dict[str, Any]:
        """Read the options that stand among words, without the defaults of the others."""
        absent = object()
        found, _ = self.parse_known_args(list(words), argparse.Namespace(**dict.fromkeys(known, absent)))
        return {name: value for name, value in vars(found).items() if name in known and value is not absent}

    def error(self, message: str) -> NoReturn:
        """Print the message and leave with status 2."""
        self.exit(2, f"{self.prog}: error: {message} (--help says what each option takes)\n")


def _number(text: str) -> float:
    try:
        return read_number(text)
    except ValueError as error:
        raise argparse.ArgumentTypeError(
            f"{text!r} is no number: pass one such as 0.031, or a fraction such as 8/255"
        ) from error


def parse(
    types: Sequence[type],
    argv: Sequence[str] | None = None,
    description: str | None = None,
    program: str | None = None,
    defaults: Defaults | None = None,
) -> tuple[Any, ...]:
    """Fill dataclasses from ``--config file.yaml`` and from options, which win over the file.

    Values of the file go through the same conversion as options, so ``1e-3`` and ``8/255`` are numbers although YAML reads
    strings.
    ``include: other.yaml`` (or a list of files, paths relative to the including one) brings in the options of other
    files: the including file wins over what it includes, a later file of the list over an earlier one, and ``null`` takes
    an included option back.

    Args:
        types: dataclasses with distinct field names.
        argv: the command line without the program's name; ``sys.argv[1:]`` by default.
        description: for ``--help``.
        program: name of the program for ``--help``; that of the running script by default.
        defaults: option to the program's own default, in place of the dataclass's; file and command line win over it. Where
            it depends on what they give, a function from the given options to such a mapping.

    Returns:
        One instance per dataclass.

    Raises:
        ValueError: for a key in a file that no dataclass has, with the nearest ones, and for files that include each other
            in a circle.
        FileNotFoundError: if a file does not exist, with the files that led to it.
    """
    argv = list(sys.argv[1:] if argv is None else argv)
    parser = _Parser(list(types), description=description, prog=program, allow_abbrev=False)  # type: ignore[arg-type]
    parser.add_argument("--config", help="YAML file with options; the command line wins over it.")
    known = {entry.name for kind in types for entry in fields(kind) if entry.init}
    own = defaults if callable(defaults) else lambda given: defaults or {}
    parser.set_defaults(**_known_only(dict(own({})), known, "defaults"))
    path = _config_path(argv)
    lists = {entry.name for kind in types for entry in fields(kind) if "list" in str(entry.type).lower()}
    given = read_options(path, known) if path is not None else {}
    parser.set_defaults(**{name: [] for name, value in given.items() if value == [] and name in lists})
    words = [*(_as_words(given, lists, path) if path is not None else []), *argv]
    parser.set_defaults(**_known_only(dict(own(parser.given(words, known))), known, "defaults"))
    *parsed, _, unknown = parser.parse_args_into_dataclasses(
        words, return_remaining_strings=True, look_for_args_file=False
    )
    if unknown:
        raise ValueError(f"unknown {_unknown_words(unknown, known)}: --help lists the options")
    return tuple(parsed)


def _unknown_words(words: Sequence[str], known: set[str]) -> str:
    options = [word for word in words if word.startswith("--")]
    if not options:
        return f"words {' '.join(words)}: a value without an option, or a second value of one that takes one"
    near = near_options(options[0].strip("-").split("=")[0].replace("-", "_"), known)
    hint = f": did you mean {', '.join(f'--{name}' for name in near)}?" if near else ""
    return f"option {' '.join(options)}{hint}"


def _config_path(argv: Sequence[str]) -> Path | None:
    found = [after for word, after in pairwise(argv) if word == "--config" and after[:2] != "--"]
    found += [word.removeprefix("--config=") for word in argv if word.startswith("--config=")]
    if len(found) > 1:
        raise ValueError(
            f"--config {' --config '.join(found)}: expected one file. Put `include: [{', '.join(found[:-1])}]` into the last"
        )
    return Path(found[0]) if found else None


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
        what = "is a directory, expected a YAML file" if path.is_dir() else "does not exist"
        where = ": an include leads to it" if including else f" (looked in {Path.cwd()}): pass the path of a YAML file"
        raise FileNotFoundError(f"--config {chain} {what}{where}")
    content = read_yaml(path)
    included = content.pop("include", None) or []
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
            near = near_options(str(key), known)
            raise ValueError(
                f"{where}: unknown option {key!r}" + (f": did you mean {', '.join(near)}?" if near else "")
            )
    return options


def _as_words(options: Mapping[str, Any], lists: set[str], path: Path) -> list[str]:
    words: list[str] = []
    for key, value in options.items():
        if value is None or (value == [] and key in lists):  # which no words can say
            continue
        if isinstance(value, list) and key not in lists and len(value) != 1:
            raise ValueError(f"{path}: {key} is the list {value}, expected one value: write `{key}: value`")
        if isinstance(value, list):
            words += [f"--{key}", *map(str, value)]
        else:  # with =, because a value may begin with a dash
            words += [f"--{key}={json.dumps(value) if isinstance(value, dict) else value}"]
    return words
