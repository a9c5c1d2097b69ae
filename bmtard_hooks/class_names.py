"""Names of classes: a student keeps those of its data, and a network whose classes are in another order is refused."""

from __future__ import annotations

import logging
import re
from collections import Counter
from collections.abc import Mapping, Sequence
from typing import Any

from bmtard_hooks.decoding import label_feature
from bmtard_hooks.image_tensors import ImageTensors
from bmtard_hooks.models.pixels import PixelClassifier

logger = logging.getLogger(__name__)

UNNAMED = re.compile(r"LABEL_\d+")
"""What transformers calls a class that nobody named."""


def names_of_data(rows: Any, label_column: str | None = None) -> list[str] | None:
    """Read the names of a data set's classes.

    Args:
        rows: ``ImageTensors``, a ``datasets.Dataset`` with a ``ClassLabel`` column, or anything else.
        label_column: of a ``datasets.Dataset``; the usual names are tried without it.

    Returns:
        One name per class; None if the data set does not name them.
    """
    if isinstance(rows, ImageTensors):
        return rows.label_names
    names = getattr(label_feature(rows, label_column), "names", None)
    return [str(name) for name in names] if names else None


def names_of_model(model: PixelClassifier) -> list[str] | None:
    """Read the names of a network's classes from its config.

    Args:
        model: any classifier.

    Returns:
        One name per logit; None if it has no config or nobody named its classes.
    """
    named = getattr(getattr(model.backbone, "config", None), "id2label", None)
    if not isinstance(named, Mapping) or sorted(named) != list(range(len(named))):
        return None
    names = [str(named[index]) for index in range(len(named))]
    return None if all(UNNAMED.fullmatch(name) for name in names) else names


def record_names(model: PixelClassifier, names: Sequence[str] | None) -> None:
    """Note the names of the classes in a network's config, which is saved with it; names that it has stay, with a warning.

    Args:
        model: the student.
        names: one per class, or None.
    """
    config, own = getattr(model.backbone, "config", None), names_of_model(model)
    if not names or config is None or not hasattr(config, "id2label") or len(names) != model.num_classes:
        return
    if own is None:
        config.id2label = dict(enumerate(names))
        config.label2id = {name: index for index, name in enumerate(names)}
        if hasattr(config, "label_names"):  # a loaded timm wrapper's, which it would save in place of the new ones
            config.label_names = list(names)
    elif differing := [pair for pair in zip(own, names, strict=True) if _written(pair[0]) != _written(pair[1])]:
        logger.warning(
            "the student's config calls %d of %d classes otherwise than the data set (%r, there %r): the student's names are kept and "
            "saved. If they are those of earlier data, set id2label and label2id of model.config",
            *(len(differing), len(names), *differing[0]),
        )


def require_same_order(role: str, own: Sequence[str] | None, reference: str, names: Sequence[str] | None) -> None:
    """Refuse classes that have another number here than there; names that only one side knows are nobody's fault.

    Args:
        role: what has the names ``own``, for messages: ``clean teacher`` …
        own: one name per class, or None.
        reference: what has the names ``names``, for messages.
        names: one name per class, or None.

    Raises:
        ValueError: if a class with the same name has another number, with the first of them.
    """
    if not own or not names:
        return
    mine, theirs = _places(own), _places(names)
    shared = [name for name in mine if name in theirs]
    moved = [name for name in shared if mine[name] != theirs[name]]
    if moved:
        first = min(moved, key=mine.__getitem__)
        raise ValueError(
            f"the {role} has its classes in another order than {reference}: {own[mine[first]]!r} is class {mine[first]} there and "
            f"{theirs[first]} here, as are {len(moved)} of {len(shared)} classes with a common name. Renumber the labels "
            "(Dataset.align_labels_with_mapping), or set id2label of the network's config if its names are wrong"
        )


def _written(name: str) -> str:
    return re.sub(r"[\W_]+", " ", name.casefold()).strip()


def _places(names: Sequence[str]) -> dict[str, int]:
    """Give the number of every name, however it is written; names that occur twice are left out."""
    written = [_written(name) for name in names]
    count = Counter(written)
    return {name: index for index, name in enumerate(written) if count[name] == 1}
