"""What several commands ask for: images, and models by name."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

from torch import nn

from bmtard_hooks.arguments import option
from bmtard_hooks.image_tensors import ImageTensors, load_images
from bmtard_hooks.models import load_teacher


@dataclass
class ImageArguments:
    """Which images."""

    dataset: str = option("cifar10", "Hub id or local directory of an image classification data set.")
    split: str = option("test", "Split to use.")
    image_column: str | None = option(None, "Image column (usual names are found).")
    label_column: str | None = option(None, "Label column (usual names are found).")
    limit: int | None = option(None, "Use only the first so many images.")
    image_size: int | None = option(None, "Scale and crop images to squares of this side.")
    image_mode: str = option("RGB", "RGB, or L for models of one channel.")

    def load(self) -> ImageTensors:
        """Read the images."""
        return load_images(
            self.dataset,
            self.split,
            image_column=self.image_column,
            label_column=self.label_column,
            limit=self.limit,
            image_size=self.image_size,
            mode=self.image_mode,
        )


def model_of(name: str, checkpoint: str | None, num_classes: int) -> str | nn.Module:
    """Load a timm architecture with its checkpoint; what needs no checkpoint stays a name."""
    return name if checkpoint is None else load_teacher(name, checkpoint, num_classes=num_classes)


def name_of(path: str) -> str:
    """Name a model or a data set after its directory; hub ids and architectures stay as they are."""
    return Path(path).resolve().name if Path(path).is_dir() else path


def require(options: Any, *names: str) -> None:
    """Raise ``ValueError`` naming the options that were left empty."""
    missing = [f"--{name}" for name in names if not getattr(options, name)]
    if missing:
        raise ValueError(f"missing {', '.join(missing)}")
