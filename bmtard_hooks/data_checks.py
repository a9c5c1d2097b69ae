"""What can be seen of a data set without reading it (its kind, columns, labels, first row), and of a collated batch."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor
from torch.utils.data import IterableDataset

from bmtard_hooks.collator import PGDCollator
from bmtard_hooks.data import is_map_style, label_range
from bmtard_hooks.decoding import IMAGE_COLUMNS, LABEL_COLUMNS, as_pixels, find_column

HOW = "a datasets.Dataset, ImageTensors, or a torch Dataset of {image, label} rows or (image, label) pairs"


def check_datasets(train: Any, evaluation: Any, collator: Any, classes: int | None) -> None:
    """Check the training set and the evaluation set or sets.

    Args:
        train: rows, a stream, or None.
        evaluation: the same, or a dictionary of them.
        collator: the collator that will be used; a foreign one may read any rows.
        classes: of the student, if known.

    Raises:
        TypeError: for what is no data set.
        ValueError: for an empty one, a column that is missing or a label outside the classes.
    """
    if isinstance(train, dict):  # a DatasetDict is one
        raise TypeError(
            f"train_dataset is a dictionary of {', '.join(map(repr, train))}: pass one of them, rows['train']"
        )
    check_dataset("train_dataset", train, collator, classes)
    if isinstance(evaluation, dict) and not evaluation:
        raise ValueError(
            "eval_dataset is an empty dictionary, expected one or more data sets by name: pass None for none"
        )
    several = evaluation if isinstance(evaluation, dict) else {}
    for name, rows in several.items():
        check_dataset(f"eval_dataset[{name!r}]", rows, collator, classes)
    if not several:
        check_dataset("eval_dataset", evaluation, collator, classes)


def check_dataset(name: str, rows: Any, collator: Any, classes: int | None) -> None:
    """Check one data set; see ``check_datasets``."""
    if rows is None:
        return
    is_rows = is_map_style(rows) and not isinstance(rows, (str, bytes))
    if not is_rows and not isinstance(rows, IterableDataset) and not hasattr(rows, "__iter__"):
        raise TypeError(f"{name} is {rows!r:.60}, a {type(rows).__name__}: pass {HOW}")
    if isinstance(rows, (str, bytes)):
        raise TypeError(f"{name} is the text {rows!r:.60}: pass {HOW}, for example load_images({rows!r:.60}, 'train')")
    if is_rows and len(rows) == 0:
        raise ValueError(
            f"{name}: a data set is empty, expected 1 row or more: pass None to leave it out, or check its filter"
        )
    if is_rows and isinstance(collator, PGDCollator):
        _check_columns(name, rows, collator, classes)


def _check_columns(name: str, rows: Any, collator: PGDCollator, classes: int | None) -> None:
    first = rows[0]  # not column_names: a transform may give other columns than it reads
    if not isinstance(first, Mapping):
        if not isinstance(first, (tuple, list, Tensor)) or len(first) < 2:
            raise TypeError(f"row 0 of {name} is {first!r:.40}, a {type(first).__name__}: pass {HOW}")
        return
    find_column(list(first), collator.image_column, IMAGE_COLUMNS, "image")
    label = find_column(list(first), collator.label_column, LABEL_COLUMNS, "label")
    extent = label_range(rows, label)
    if extent and classes is not None and not 0 <= extent[0] <= extent[1] < classes:
        raise ValueError(
            f"labels go from {extent[0]} to {extent[1]}, but the student has {classes} classes (0 to {classes - 1}): "
            "check label_column and the student's class count"
        )


def check_batch(batch: Any, classes: int | None) -> None:
    """Check a collated batch: pixels in [0, 1] and labels that the student has.

    Args:
        batch: what the collator gave.
        classes: of the student, if it says.

    Raises:
        ValueError: if ``pixel_values`` or ``labels`` are missing, pixels are normalised or labels are none of its classes.
    """
    missing = [key for key in ("pixel_values", "labels") if key not in batch]
    if missing:
        raise ValueError(f"the collator gave {sorted(batch)} without {' and '.join(missing)}: use PGDCollator")
    pixels, labels = as_pixels(batch["pixel_values"]), batch["labels"]
    low, high = pixels.aminmax()
    if not (low >= 0 and high <= 1):
        raise ValueError(
            f"the collator gave pixel_values from {low:.4g} to {high:.4g}: they must be in [0, 1]. Leave mean/std "
            "normalisation out of the transforms; the model carries its own"
        )
    if classes is not None and not 0 <= int(labels.min()) <= int(labels.max()) < classes:
        raise ValueError(
            f"labels from {int(labels.min())} to {int(labels.max())} do not fit the student's {classes} classes"
        )
    if torch.is_floating_point(labels):
        raise ValueError(f"labels have dtype {labels.dtype}: pass class indices")
