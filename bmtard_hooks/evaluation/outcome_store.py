"""Outcomes on disk while an evaluation runs, so that a kill at any moment costs at most one batch."""

from __future__ import annotations

import hashlib
import json
import logging
import os
import zipfile
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from bmtard_hooks.models.pixels import PixelClassifier

COLUMNS = ("index", "broken", "broken_on_the_way", "queries")
TOTALS = ("forwards", "backwards", "seconds")
UNKNOWN = -1
"""Stands for an outcome that the attack does not tell."""

LONGEST_NAME = 60
PROBED, COARSE = 8, 100

logger = logging.getLogger(__name__)


@dataclass
class Records:
    """Outcomes of some images in the order they came: four integers per image, and what they cost together."""

    rows: list[np.ndarray] = field(default_factory=list)
    totals: dict[str, float] = field(default_factory=lambda: dict.fromkeys(TOTALS, 0.0))

    def add(self, columns: Mapping[str, np.ndarray], totals: Mapping[str, float]) -> None:
        """Append a batch; ``columns`` has ``COLUMNS``, each ``(B,)``, ``totals`` has ``TOTALS``."""
        self.rows.append(np.stack([np.asarray(columns[name], dtype=np.int64) for name in COLUMNS]))
        self.totals = {name: self.totals[name] + float(totals[name]) for name in TOTALS}

    def table(self) -> np.ndarray:
        """Return ``(4, n)`` int64, one line per name in ``COLUMNS``."""
        return np.concatenate(self.rows, axis=1) if self.rows else np.zeros((len(COLUMNS), 0), dtype=np.int64)


class OutcomeStore:
    """Keeps the records of this process, one file per attack and process, each replaced in one go.

    Args:
        directory: where to keep them; None keeps nothing.
        key: everything besides the attack that the outcomes depend on (weights, images, seed …) as plain JSON values.
            Records of another key are never read.
        rank: number of this process.
    """

    def __init__(self, directory: str | Path | None, key: Mapping[str, Any], rank: int = 0) -> None:
        self.directory = Path(directory) if directory is not None else None
        self.key = dict(key)
        self.rank = rank
        if self.directory is not None:
            self.directory.mkdir(parents=True, exist_ok=True)

    def load(self, name: str, identity: Mapping[str, Any] | None, own: bool = False) -> Records:
        """Read what all processes have kept of an attack, or with ``own`` only this one; damaged files are skipped."""
        records = Records()
        if self.directory is None or identity is None:
            return records
        pattern = f"{self._stem(name, identity)}-{self.rank if own else '*'}.npz"
        for path in sorted(self.directory.glob(pattern)):
            try:
                with path.open("rb") as stream, np.load(stream) as content:  # numpy leaves a damaged file open
                    columns = dict(zip(COLUMNS, content["rows"], strict=True))
                    totals = {total: float(content[total]) for total in TOTALS}
                records.add(columns, totals)
            except (OSError, EOFError, ValueError, KeyError, zipfile.BadZipFile) as error:
                logger.warning("%s is damaged (%s): its outcomes are measured again", path, error)
        return records

    def save(self, name: str, identity: Mapping[str, Any] | None, own: Records) -> None:
        """Replace this process's file for an attack."""
        if self.directory is None or identity is None:
            return
        path = self.directory / f"{self._stem(name, identity)}-{self.rank}.npz"
        partial = path.with_suffix(".partial")
        with partial.open("wb") as stream:
            arrays: dict[str, Any] = {"rows": own.table(), **own.totals}
            np.savez_compressed(stream, **arrays)
            stream.flush()
            os.fsync(stream.fileno())
        partial.replace(path)

    def _stem(self, name: str, identity: Mapping[str, Any]) -> str:
        safe = "".join(letter if letter.isalnum() or letter in "_." else "_" for letter in name[:LONGEST_NAME])
        return f"{safe}-{fingerprint([name, identity, self.key])}"


def fingerprint(value: Any) -> str:
    """Hash plain JSON values to sixteen characters."""
    return hashlib.sha256(json.dumps(value, sort_keys=True, default=str).encode()).hexdigest()[:16]


def fingerprint_tensors(tensors: Iterable[Tensor]) -> str:
    """Hash the bytes of tensors, for example of a model's weights or a data set's images."""
    digest = hashlib.sha256()
    for tensor in tensors:
        array = tensor.detach().cpu().contiguous()
        digest.update(f"{array.dtype}{tuple(array.shape)}".encode())
        digest.update(array.flatten().view(torch.uint8).numpy().tobytes() if array.numel() else b"")
    return digest.hexdigest()[:16]


def _tensors_in(value: Any) -> list[Tensor]:
    """Find the tensors of a state dict's entry; quantised layers keep theirs in a tuple, beside a type."""
    if isinstance(value, Tensor):
        return [value.dequantize() if value.is_quantized else value]
    return [tensor for part in value for tensor in _tensors_in(part)] if isinstance(value, (tuple, list)) else []


def fingerprint_model(model: PixelClassifier, logits: np.ndarray) -> dict[str, str]:
    """Hash what a model is: its weights, its normalisation, its structure, and what it answers.

    The answers tell apart models that compute differently with the same weights. They enter as predictions and as the
    first logits, rounded so coarsely that another device or thread count seldom changes them.

    Args:
        model: the classifier.
        logits: ``(N, C)`` its answers to the images.
    """
    buffers = [values for values in (model.mean, model.std) if values is not None]
    scale = np.abs(logits[:PROBED]).max() or 1.0
    answers = [torch.from_numpy(logits.argmax(axis=1)), torch.from_numpy(np.rint(logits[:PROBED] / scale * COARSE))]
    return {
        "weights": fingerprint_tensors([*_tensors_in(list(model.state_dict().values())), *buffers]),
        "structure": fingerprint(repr(model)),
        "answers": fingerprint_tensors(answers),
    }
