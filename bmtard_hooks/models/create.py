"""Models by name: a timm architecture, a saved directory or a hub id, always as a pixel-space classifier."""

from __future__ import annotations

import logging
import pickle
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import nn
from transformers import AutoImageProcessor, AutoModelForImageClassification, PreTrainedModel

from bmtard_hooks.models.architectures import (
    build_architecture,
    check_architecture,
    is_saved,
    read_config,
    require_config,
    separate_shared_weights,
    wrap_as_built,
)
from bmtard_hooks.models.checkpoints import code_refusal, load_weights, names_code, why_not_finite
from bmtard_hooks.models.image_sizes import as_sides, explain_network, first_line, try_size
from bmtard_hooks.models.pixels import PixelClassifier, answer_once, find_normalisation
from bmtard_hooks.models.precision import require_float32
from bmtard_hooks.models.processors import normalisation_of
from bmtard_hooks.models.untrusted_files import check_saved_directory
from bmtard_hooks.state import averages_weights

logger = logging.getLogger(__name__)

NOT_FOUND = "_weights_not_found"
"""Attribute of a loaded network: names of the weights that its files lack."""

READS_FILES = ("checkpoint_path", "pretrained", "pretrained_cfg", "pretrained_cfg_overlay", "cache_dir")
"""Arguments of ``timm.create_model`` that name files or addresses, which some releases of timm read with all code in them."""


def create_model(
    name: str,
    num_classes: int | None = None,
    *,
    checkpoint: str | Path | None = None,
    pretrained: bool = False,
    image_size: int | Sequence[int] | None = None,
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
        image_size: side of the square input, or (height, width). Architectures that must know it (ViT, Swin …) are built
            for it, and every model is tried on one such image.
        mean: normalisation per channel; by default the model's own (image processor, saved config, timm's config).
        std: the same.
        trust_remote_code: allow a hub id to run code from its repository.
        **model_args: passed to ``timm.create_model`` (``drop_path_rate=0.1``, ``in_chans=1``, ``patch_size=4`` …).

    Returns:
        A ``PixelClassifier`` around a transformers image classifier, so saving and the hub work as usual. Its weights are
        float32, whatever the files have.

    Raises:
        ValueError: for an unknown name or argument (with the nearest ones), an image size that the model cannot take
            (with one that it can), a class count that differs, or weights that do not fit.
        FileNotFoundError: if the checkpoint does not exist.
    """
    sides = None if image_size is None else as_sides(image_size)
    if is_saved(name):
        model = _from_saved(name, checkpoint, mean, std, trust_remote_code)
        if sides is not None:
            _check_size(model, name, sides)
            model.record_image_size(channels_of(model) or 3, *sides)
    else:
        _refuse_files(model_args, "the arguments")
        weights: dict[str, Any] = {"checkpoint": checkpoint, "pretrained": pretrained}
        model = as_classifier(
            build_architecture(name, num_classes, model_args, sides=sides, **weights), None, mean, std
        )
        if sides is not None:
            model.record_image_size(channels_of(model) or 3, *sides)
    if num_classes is not None and model.num_classes != num_classes:
        raise ValueError(f"{name} has {model.num_classes} classes, but num_classes={num_classes} was asked for")
    return model


def _from_saved(
    name: str,
    checkpoint: str | Path | None,
    mean: Sequence[float] | None,
    std: Sequence[float] | None,
    trust_remote_code: bool,
) -> PixelClassifier:
    if Path(name).is_dir():
        check_saved_directory(Path(name))
        require_config(Path(name))
    backbone = _read_saved(name, bool(trust_remote_code))  # None would ask at the terminal
    if checkpoint is None and averages_weights(Path(name)):
        logger.warning(
            "%s is a checkpoint of a run that averages its weights: these are the ones that were trained, not the average that the "
            "run evaluates and, at its end, saves in the folder above",
            name,
        )
    if checkpoint is not None:
        load_weights(getattr(backbone, "timm_model", backbone), checkpoint)
    processor = None  # our own directories record the normalisation in config.json
    if getattr(backbone.config, "pixel_mean", None) is None:
        processor = _image_processor(name, trust_remote_code)
    return as_classifier(_realigned(backbone), processor, mean, std)


def _read_saved(name: str, trust_remote_code: bool) -> PreTrainedModel:
    config = read_config(name, trust_remote_code)
    if config.model_type == "timm_wrapper":
        _refuse_files(config.model_args or {}, f"model_args in the config.json of {name}")
        check_architecture(config.architecture)
    try:
        backbone, loaded = AutoModelForImageClassification.from_pretrained(
            name,
            config=config,
            dtype=torch.float32,  # else it is what the files have: all that is trained and judged here is float32
            trust_remote_code=trust_remote_code,
            output_loading_info=True,
        )
    except pickle.UnpicklingError as error:
        what = f"the pytorch_model.bin of {name}"
        raise ValueError(code_refusal(what) if names_code(error) else f"{what} is damaged: copy it again") from error
    trained = [*backbone.named_parameters(), *((n, b) for n, b in backbone.named_buffers() if "running_" in n)]
    broken = [reason for key, value in trained if (reason := why_not_finite(key, value.detach())) is not None]
    if broken:
        raise ValueError(
            f"{name} has weights that nothing can be computed with ({len(broken)} tensors, {broken[0]}): pass a model from "
            "before its training went wrong"
        )
    setattr(backbone, NOT_FOUND, sorted(key for key in loaded["missing_keys"] if "num_batches_tracked" not in key))
    return backbone


def weights_not_found(classifier: PixelClassifier) -> list[str]:
    """Name the weights that a saved model did not have, so that they are random; transformers only warns of them.

    Args:
        classifier: from ``create_model``.
    """
    return list(getattr(classifier.backbone, NOT_FOUND, []))


def _refuse_files(model_args: Mapping[str, Any], where: str) -> None:
    found = [key for key in READS_FILES if key in model_args]
    if found:
        raise ValueError(
            f"{where} set {', '.join(found)}, with which timm would read files or addresses by itself: leave it out, and pass "
            "weights as checkpoint=FILE, which is read without running code, or pretrained=True"
        )


def _check_size(model: PixelClassifier, name: str, sides: tuple[int, int]) -> None:
    channels = channels_of(model) or 3
    try:
        try_size(model, channels, sides)
    except Exception as error:  # every network has its own way to refuse a size
        advice = explain_network(model, channels, sides)
        raise ValueError(f"{name} cannot take {sides[0]}x{sides[1]} images: {first_line(error)}{advice}") from error


def _realigned(model: PreTrainedModel) -> PreTrainedModel:
    # Tensors in a safetensors file begin anywhere; sums over them then run in another order, and logits differ in their
    # last bits from those of the model that was saved.
    for tensor in (*model.parameters(), *model.buffers()):
        if tensor.device.type == "cpu" and tensor.data_ptr() % 64:
            tensor.data = tensor.data.clone()
    return model


def as_classifier(
    model: nn.Module,
    processor: Any = None,
    mean: Sequence[float] | None = None,
    std: Sequence[float] | None = None,
    record: bool = True,
) -> PixelClassifier:
    """Put a model into pixel space; one that already is comes back as it is.

    Args:
        model: a ``PixelClassifier``, a transformers image classifier, a timm model, or any module from pixels to logits.
        processor: an image processor whose mean and std the model was trained with.
        mean: explicit normalisation, wins over everything else.
        std: the same.
        record: see ``PixelClassifier``.
    """
    if isinstance(model, PixelClassifier):
        _require_same_normalisation(model, processor)
        return model
    if mean is None and std is None:
        found = find_normalisation(model, processor)
        mean, std = found if found is not None else (None, None)
        in_chans = channels_of(model)
        if mean is not None and std is not None and in_chans is not None and len(mean) != in_chans:
            mean, std = [sum(mean) / len(mean)] * in_chans, [sum(std) / len(std)] * in_chans
        if found is None and isinstance(model, PreTrainedModel):
            logger.warning(
                "%s came without an image processor, so pixels in [0, 1] go in as they are: if it was trained on normalised "
                "images, pass processing_class=, or build it with create_model(…)",
                type(model).__name__,
            )
    network = getattr(model, "timm_model", model)
    answer_once(network)
    if network is not model:
        network.register_state_dict_post_hook(separate_shared_weights)
    classifier = PixelClassifier(model, mean, std, record)
    shown = "none" if classifier.mean is None else f"mean {list(mean or ())}, std {list(std or ())}"
    logger.info("%s takes pixels in [0, 1]; normalisation inside: %s", type(model).__name__, shown)
    return classifier


def _require_same_normalisation(classifier: PixelClassifier, processor: Any) -> None:
    stated = normalisation_of(processor)
    if stated is None or getattr(getattr(classifier.backbone, "config", None), "model_type", None) == "timm_wrapper":
        return  # transformers reads a timm network's own numbers, whatever processor is saved beside it
    own = [0.0] * len(stated[0]), [1.0] * len(stated[1])
    if classifier.mean is not None and classifier.std is not None:
        own = classifier.mean.flatten().tolist(), classifier.std.flatten().tolist()
    if not np.allclose(own, stated, atol=1e-4):
        raise ValueError(
            f"the classifier normalises with mean {own[0]} and std {own[1]}, processing_class with {stated[0]} and {stated[1]}: both "
            "are saved, and the pipeline would take the processor's. Pass the bare network with the processor, or the classifier "
            "without"
        )


def channels_of(model: nn.Module) -> int | None:
    """Read the number of image channels off a timm model's arguments or a model's first convolution; None without."""
    model = model.backbone if isinstance(model, PixelClassifier) else model
    config: Any = getattr(model, "config", None)
    if getattr(config, "model_type", None) == "timm_wrapper":
        usual = (getattr(config, "pretrained_cfg", None) or {}).get("input_size", (3,))[0]
        return int((config.model_args or {}).get("in_chans", usual))
    if (getattr(model, "pretrained_cfg", None) or {}).get("first_conv", True) in ("", None, [], ()):
        return None  # CSATv2 works on cosine transforms: its first convolution does not see the image
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
        ValueError: if the student is a frozen teacher, has nothing to train, or weights that are not float32.
    """
    if isinstance(model, str):
        return create_model(model, num_classes)
    architecture = (getattr(model, "pretrained_cfg", None) or {}).get("architecture")
    if architecture and not isinstance(model, PreTrainedModel):
        try:
            model = wrap_as_built(model, architecture)
        except (ValueError, TypeError, RuntimeError, AssertionError) as error:
            logger.warning("%s; save_model will write its weights without a config", error)
    student = as_classifier(model, processor)
    if student.frozen or not any(parameter.requires_grad for parameter in student.parameters()):
        raise ValueError("the student has no parameter to train: it is frozen, or was it passed as a teacher?")
    require_float32("student", student)
    return student


def _image_processor(name: str, trust_remote_code: bool) -> Any:
    try:
        return AutoImageProcessor.from_pretrained(name, trust_remote_code=bool(trust_remote_code))
    except (OSError, ValueError, KeyError) as error:
        if "trust_remote_code" in str(error):
            raise  # without it, the model would get images that are normalised in another way
        return None
