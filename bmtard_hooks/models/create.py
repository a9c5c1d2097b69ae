"""Models by name: a timm architecture, a saved directory or a hub id, always as a pixel-space classifier."""

from __future__ import annotations

import difflib
import json
import logging
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import timm
import torch
from torch import nn
from transformers import (
    AutoImageProcessor,
    AutoModelForImageClassification,
    PreTrainedModel,
    TimmWrapperConfig,
    TimmWrapperForImageClassification,
)

from bmtard_hooks.attacks.guard import attack_mode
from bmtard_hooks.models.checkpoints import load_weights
from bmtard_hooks.models.pixels import PixelClassifier, find_normalisation

logger = logging.getLogger(__name__)


def create_model(
    name: str,
    num_classes: int | None = None,
    *,
    checkpoint: str | Path | None = None,
    pretrained: bool = False,
    image_size: int | None = None,
    mean: Sequence[float] | None = None,
    std: Sequence[float] | None = None,
    trust_remote_code: bool = False,
    **model_args: Any,
) -> PixelClassifier:
    """Build a classifier that takes pixels in [0, 1].

    Args:
        name: a timm architecture (``resnet18_cifar``, ``convnext_atto`` …), a directory written by ``save_model`` or
            ``save_pretrained``, or a hub id (``owner/model``).
        num_classes: number of logits; needed for an architecture, checked against a directory or hub id.
        checkpoint: file with weights for the architecture, see ``read_state_dict``.
        pretrained: download timm's weights for the architecture.
        image_size: side of the square input, for architectures that must know it (ViT, Swin …); others ignore it.
        mean: normalisation per channel; by default the model's own (image processor, saved config, timm's config).
        std: the same.
        trust_remote_code: allow a hub id to run code from its repository.
        **model_args: passed to ``timm.create_model`` (``drop_path_rate=0.1``, ``in_chans=1``, ``patch_size=4`` …).

    Returns:
        A ``PixelClassifier`` around a transformers image classifier, so saving and the hub work as usual.

    Raises:
        ValueError: for an unknown name (with the nearest ones), a class count that differs, or weights that do not fit.
        FileNotFoundError: if the checkpoint does not exist.
    """
    if Path(name).is_dir() or is_hub_id(name):
        backbone = AutoModelForImageClassification.from_pretrained(name, trust_remote_code=trust_remote_code)
        if checkpoint is not None:
            load_weights(getattr(backbone, "timm_model", backbone), checkpoint)
        processor = None  # our own directories record the normalisation in config.json
        if getattr(backbone.config, "pixel_mean", None) is None:
            processor = _image_processor(name, trust_remote_code)
        model = as_classifier(backbone, processor, mean, std)
    else:
        if image_size is not None:
            model_args = {**_size_argument(name, image_size), **model_args}
        backbone = _from_timm(name, num_classes, checkpoint, pretrained, model_args)
        model = as_classifier(backbone, None, mean, std, int(model_args.get("in_chans", 3)))
    if num_classes is not None and model.num_classes != num_classes:
        raise ValueError(f"{name} has {model.num_classes} classes, but num_classes={num_classes} was asked for")
    return model


def _from_timm(
    name: str, num_classes: int | None, checkpoint: str | Path | None, pretrained: bool, model_args: dict[str, Any]
) -> PreTrainedModel:
    check_architecture(name)
    if num_classes is None:
        raise ValueError(f"num_classes is missing: say how many classes {name} should tell apart")
    _check_recordable(name, model_args)
    network = timm.create_model(name, pretrained=pretrained, num_classes=num_classes, **model_args)
    if checkpoint is not None:
        load_weights(network, checkpoint)
    return wrap_timm(network, name, num_classes, model_args)


def as_classifier(
    model: nn.Module,
    processor: Any = None,
    mean: Sequence[float] | None = None,
    std: Sequence[float] | None = None,
    in_chans: int | None = None,
    record: bool = True,
) -> PixelClassifier:
    """Put a model into pixel space; one that already is comes back as it is.

    Args:
        model: a ``PixelClassifier``, a transformers image classifier, a timm model, or any module from pixels to logits.
        processor: an image processor whose mean and std the model was trained with.
        mean: explicit normalisation, wins over everything else.
        std: the same.
        in_chans: number of channels, where it may differ from what the found normalisation was made for; by default
            that of the model's first convolution.
        record: see ``PixelClassifier``.
    """
    if isinstance(model, PixelClassifier):
        return model
    if mean is None and std is None:
        found = find_normalisation(model, processor)
        mean, std = found if found is not None else (None, None)
        in_chans = channels_of(model) if in_chans is None else in_chans
        if mean is not None and std is not None and in_chans is not None and len(mean) != in_chans:
            mean, std = [sum(mean) / len(mean)] * in_chans, [sum(std) / len(std)] * in_chans
        if found is None and isinstance(model, PreTrainedModel):
            logger.warning(
                "%s came without an image processor, so pixels in [0, 1] go in as they are: if it was trained on normalised "
                "images, pass processing_class=, or build it with create_model(…)",
                type(model).__name__,
            )
    classifier = PixelClassifier(model, mean, std, record)
    shown = "none" if classifier.mean is None else f"mean {list(mean or ())}, std {list(std or ())}"
    logger.info("%s takes pixels in [0, 1]; normalisation inside: %s", type(model).__name__, shown)
    return classifier


def channels_of(model: nn.Module) -> int | None:
    """Read the number of image channels off a model's first convolution; None without one."""
    first = next((module for module in model.modules() if isinstance(module, nn.Conv2d)), None)
    return None if first is None else first.in_channels


def as_student(model: str | nn.Module, num_classes: int | None = None, processor: Any = None) -> PixelClassifier:
    """Turn what a user passed as a student into a classifier that can be trained and saved.

    A bare timm network is put into transformers' wrapper, so that ``save_model`` writes a directory that
    ``from_pretrained`` loads; if its arguments are unknown it is trained as it is and only its weights are saved.

    Args:
        model: a ``PixelClassifier``, a transformers image classifier, a timm network, any module from pixels to logits,
            or a name as ``create_model`` takes.
        num_classes: number of classes, for a name.
        processor: image processor with the model's normalisation.

    Raises:
        ValueError: if the student is a frozen teacher or has nothing to train.
    """
    if isinstance(model, str):
        return create_model(model, num_classes)
    architecture = (getattr(model, "pretrained_cfg", None) or {}).get("architecture")
    if architecture and not isinstance(model, PreTrainedModel):
        try:
            model = _wrap_as_built(model, architecture)
        except (ValueError, TypeError, RuntimeError) as error:
            logger.warning("%s; save_model will write its weights without a config", error)
    student = as_classifier(model, processor)
    if student.frozen or not any(parameter.requires_grad for parameter in student.parameters()):
        raise ValueError("the student has no parameter to train: it is frozen, or was it passed as a teacher?")
    return student


def wrap_timm(network: nn.Module, architecture: str, num_classes: int, model_args: dict[str, Any]) -> PreTrainedModel:
    """Put a timm network into transformers' wrapper, keeping its weights (the wrapper would initialise its own)."""
    config = TimmWrapperConfig(architecture=architecture, model_args=model_args or None)
    config.num_labels = num_classes
    with torch.device("meta"):
        wrapper = TimmWrapperForImageClassification(config)
    expected = {key: value.shape for key, value in wrapper.timm_model.state_dict().items()}
    if expected != {key: value.shape for key, value in network.state_dict().items()}:
        raise ValueError(
            f"this {architecture} was built with arguments that its own config does not record, so it could not be "
            f"loaded again: build it with create_model({architecture!r}, num_classes={num_classes}, <arguments>)"
        )
    wrapper.timm_model = network
    return wrapper


def _wrap_as_built(network: nn.Module, architecture: str) -> PreTrainedModel:
    classes = int(getattr(network, "num_classes", 0))
    wrapper = wrap_timm(network, architecture, classes, {})
    rebuilt = timm.create_model(architecture, num_classes=classes)
    rebuilt.load_state_dict(network.state_dict())
    size = (getattr(network, "pretrained_cfg", None) or {}).get("input_size", (3, 224, 224))
    images = torch.rand(1, *size, generator=torch.Generator().manual_seed(0))
    with attack_mode(network), torch.no_grad():
        same = torch.allclose(network(images), rebuilt.eval()(images), rtol=1e-3, atol=1e-4)
    if not same:
        raise ValueError(f"this {architecture} computes something else than its name alone says")
    return wrapper


def _check_recordable(architecture: str, model_args: dict[str, Any]) -> None:
    try:
        json.dumps(model_args)
    except TypeError as error:
        raise ValueError(
            f"the arguments {sorted(model_args)} of {architecture} cannot be written into a config ({error}), so the model "
            "could not be saved: pass names and numbers, for example act_layer='silu'"
        ) from error


def is_hub_id(name: str) -> bool:
    """Tell a hub id (``owner/model``) from an architecture."""
    return name.count("/") == 1 and not name.startswith((".", "/", "~"))


def check_architecture(name: str) -> None:
    """Raise ``ValueError`` with the nearest names if timm does not know an architecture."""
    if timm.is_model(name.split(".")[0]):
        return
    if "/" in name or name.startswith((".", "~")):
        raise ValueError(f"{name} is not a directory with a saved model (config.json and weights)")
    near = difflib.get_close_matches(name, timm.list_models(), n=3, cutoff=0.5)
    hint = f"did you mean {', '.join(near)}?" if near else "timm.list_models() lists every architecture"
    raise ValueError(f"unknown model {name!r}: {hint}")


def _size_argument(architecture: str, image_size: int) -> dict[str, Any]:
    check_architecture(architecture)
    settings = timm.models.get_pretrained_cfg(architecture)
    return {"img_size": image_size} if settings is not None and settings.fixed_input_size else {}


def _image_processor(name: str, trust_remote_code: bool) -> Any:
    try:
        return AutoImageProcessor.from_pretrained(name, trust_remote_code=trust_remote_code)
    except (OSError, ValueError, KeyError):
        return None
