"""Teachers: loaded, frozen, and checked against the student before training starts."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from torch import Tensor, nn

from bmtard_hooks.attacks.guard import attack_mode
from bmtard_hooks.models.architectures import check_architecture, is_saved, pretrained_settings
from bmtard_hooks.models.create import as_classifier, create_model, weights_not_found
from bmtard_hooks.models.image_sizes import explain_network, first_line
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
        ValueError: if no weights were named, if some of them are missing, or as ``create_model`` does.
        FileNotFoundError: if the checkpoint does not exist.
    """
    has_weights = checkpoint is not None or kwargs.get("pretrained") or is_saved(name)
    if not has_weights:
        check_architecture(name)
        raise ValueError(
            f"teacher {name!r} would have random weights: pass checkpoint=FILE, pretrained=True, or a saved directory"
        )
    if kwargs.get("pretrained") and checkpoint is None:
        trained = _pretrained_classes(name)
        if num_classes is not None and num_classes != trained:
            raise ValueError(
                f"teacher {name!r} is pretrained on {trained} classes; with num_classes={num_classes} its last layer would "
                "be random: fine-tune it first, and pass the saved directory"
            )
        num_classes = trained
    teacher = create_model(name, num_classes, checkpoint=checkpoint, **kwargs).freeze()
    missing = weights_not_found(teacher) if checkpoint is None else []
    if missing:
        raise ValueError(
            f"teacher {name!r} lacks {len(missing)} of its weights ({', '.join(missing[:3])}{' …' * (len(missing) > 3)}), which would be "
            "random: fine-tune it first and pass the saved directory, or pass checkpoint=FILE"
        )
    return teacher


def _pretrained_classes(architecture: str) -> int:
    check_architecture(architecture)
    return int(pretrained_settings(architecture, "a saved directory").num_classes)


def as_teacher(teacher: str | nn.Module) -> PixelClassifier:
    """Turn what a user passed as a teacher into a frozen classifier.

    Args:
        teacher: a module, a timm name with pretrained weights, a local directory or a hub id.
    """
    if isinstance(teacher, nn.Module):
        return as_classifier(teacher).freeze()
    return load_teacher(teacher, pretrained=not is_saved(teacher))


@contextmanager
def naming_what_cannot_load(role: str, name: Any) -> Iterator[None]:
    """Say which network it was when transformers, the hub or safetensors cannot load one.

    Args:
        role: what it is called in messages: ``student``, ``clean teacher`` …
        name: what was passed.

    Raises:
        ValueError: instead of their errors, which do not name it.
    """
    try:
        yield
    except (OSError, SafetensorError, ValueError) as error:
        foreign = not isinstance(error, ValueError) or "model_type" in str(error)
        if isinstance(error, FileNotFoundError) or not isinstance(name, str) or not foreign:
            raise
        raise ValueError(
            f"the {role} {name!r} cannot be loaded: {first_line(error)}. Pass a directory "
            "that save_model wrote, or unset HF_HUB_OFFLINE to download"
        ) from error


def try_classifier(role: str, model: PixelClassifier, pixels: Tensor) -> tuple[int, ...]:
    """Classify a few images before training starts; the model's modes are restored.

    Args:
        role: what it is called in messages, for example ``clean teacher``.
        model: the classifier, on the images' device.
        pixels: ``(B, C, H, W)``, one or two images of the training set.

    Returns:
        The shape of the logits.

    Raises:
        ValueError: if it cannot take the images or its logits are not finite.
    """
    try:
        with attack_mode(model), torch.no_grad():
            logits = model(pixels)
    except Exception as error:  # every layer has its own way to refuse a size
        advice = ""
        if pixels.ndim == 4:
            advice = explain_network(model, pixels.shape[1], (pixels.shape[2], pixels.shape[3]))
        reason = str(error).rstrip(".\n") or type(error).__name__
        raise ValueError(
            f"the {role} cannot take images of shape {tuple(pixels.shape[1:])}: {reason}{advice}"
        ) from error
    if not torch.isfinite(logits).all():
        raise ValueError(f"the {role} gives logits that are not finite on the first images: check its weights")
    return tuple(logits.shape)
