"""What several commands ask for: images, and models by name."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import nn

from bmtard_hooks.arguments import PictureArguments, naming_data_set, option, splits_of
from bmtard_hooks.image_tensors import ImageTensors, load_images
from bmtard_hooks.models import load_teacher
from bmtard_hooks.models.architectures import has_no_weights


@dataclass
class ImageArguments(PictureArguments):
    """Which images."""

    dataset: str = option("cifar10", "Hub id or local directory of an image classification data set.")
    split: str = option("test", "Split to use.")
    limit: int | None = option(None, "Use only the first so many images.")

    def load(self) -> ImageTensors:
        """Read the images.

        Raises:
            FileNotFoundError: if there is no such data set.
            ValueError: for a split that it lacks, and as ``load_images`` does.
        """
        reading = self.reading()
        with naming_data_set(self.dataset):
            try:
                return load_images(self.dataset, self.split, limit=self.limit, **reading)
            except ValueError as error:
                existing = splits_of(self.dataset) if "split" in str(error) else [self.split]
                if self.split in existing:
                    raise
                raise ValueError(
                    f"{self.dataset} has no split {self.split!r}: pass --split with one of {', '.join(existing)}"
                ) from error


def model_of(name: str, checkpoint: str | None, num_classes: int) -> str | nn.Module:
    """Load a timm architecture with its checkpoint; what needs no checkpoint stays a name."""
    return name if checkpoint is None else load_teacher(name, checkpoint, num_classes=num_classes)


def require_weights(option: str, name: str, checkpoint: str | None) -> None:
    """Raise ``ValueError`` for an architecture without weights, before the data set is read.

    Args:
        option: that named the model, for example ``--model``.
        name: its value.
        checkpoint: file with the weights, if one was named.
    """
    if checkpoint is None and not Path(name).is_dir() and has_no_weights(name):
        file = "--checkpoint" if option == "--model" else f"{option}_checkpoint"
        raise ValueError(
            f"{option} {name} is an architecture without weights: pass {file} FILE, or a saved directory in its place"
        )


def name_of(path: str) -> str:
    """Name a model or a data set after its directory; hub ids and architectures stay as they are."""
    return Path(path).resolve().name if Path(path).is_dir() else path


def require(options: Any, *names: str) -> None:
    """Raise ``ValueError`` naming the options that were left empty."""
    missing = [f"--{name}" for name in names if not getattr(options, name)]
    if missing:
        raise ValueError(f"missing {', '.join(missing)}: pass a value for each, --help says what")


def require_device(name: str | None) -> None:
    """Raise ``ValueError`` for a device that this machine does not have; None passes."""
    try:
        torch.empty(0, device=name)
    except (RuntimeError, AssertionError) as error:
        reason = str(error).splitlines()[0]
        raise ValueError(f"--device {name} cannot be used here ({reason}): pass cpu, cuda or cuda:0") from error
