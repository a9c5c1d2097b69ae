"""Teachers: loaded, frozen, and checked against the student before training starts."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from bmtard_hooks.models.create import as_classifier, create_model, is_hub_id
from bmtard_hooks.models.pixels import PixelClassifier


def load_teacher(
    name: str, checkpoint: str | Path | None = None, *, num_classes: int | None = None, **kwargs: Any
) -> PixelClassifier:
    """Load a trained model and freeze it.

    Args:
        name: a timm architecture (then with ``checkpoint`` or ``pretrained=True``), a saved directory or a hub id.
        checkpoint: ``.safetensors``, ``.pt`` or ``.pth`` file with the weights.
        num_classes: number of logits.
        **kwargs: see ``create_model``.

    Returns:
        A frozen ``PixelClassifier`` in eval mode.

    Raises:
        ValueError: if no weights were named, or as ``create_model`` does.
        FileNotFoundError: if the checkpoint does not exist.
    """
    has_weights = checkpoint is not None or kwargs.get("pretrained") or Path(name).is_dir() or is_hub_id(name)
    if not has_weights:
        raise ValueError(
            f"teacher {name!r} would have random weights: pass checkpoint=FILE, pretrained=True, or a saved directory"
        )
    return create_model(name, num_classes, checkpoint=checkpoint, **kwargs).freeze()


def as_teacher(teacher: str | nn.Module, num_classes: int | None = None) -> PixelClassifier:
    """Turn what a user passed as a teacher into a frozen classifier.

    Args:
        teacher: a module, a timm name with pretrained weights, a local directory or a hub id.
        num_classes: number of logits it must have.
    """
    if isinstance(teacher, nn.Module):
        return as_classifier(teacher).freeze()
    pretrained = not (Path(teacher).is_dir() or is_hub_id(teacher))
    return load_teacher(teacher, num_classes=num_classes, pretrained=pretrained)


def check_teacher(role: str, teacher: PixelClassifier, student: PixelClassifier, pixels: Tensor) -> None:
    """Try a teacher on a few images before training starts.

    Args:
        role: what it is called in messages, for example ``clean``.
        teacher: the frozen teacher, on the training device.
        student: the student, on the same device.
        pixels: ``(B, C, H, W)``, one or two images of the training set.

    Raises:
        ValueError: if it cannot take the images, its class count differs from the student's, or its logits are not
            finite.
    """
    with torch.no_grad():
        try:
            logits = teacher(pixels)
        except (RuntimeError, AssertionError, ValueError) as error:
            raise ValueError(
                f"the {role} teacher cannot take images of shape {tuple(pixels.shape[1:])}: {error}"
            ) from error
        was_training = [module for module in student.modules() if module.training]
        expected = student.eval()(pixels).shape
        for module in was_training:
            module.training = True
    if logits.shape != expected:
        raise ValueError(
            f"the {role} teacher gives logits of shape {tuple(logits.shape)}, the student {tuple(expected)}: both must "
            "be (batch, classes) with the same class count"
        )
    if not torch.isfinite(logits).all():
        raise ValueError(f"the {role} teacher gives logits that are not finite on the first images: check its weights")
