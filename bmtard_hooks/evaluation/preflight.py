"""Before the attacks: load the model, and look at its clean answers for the mistakes that ruin an evaluation."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from bmtard_hooks.attacks.guard import attack_mode
from bmtard_hooks.evaluation.runner import AttackRunner
from bmtard_hooks.image_tensors import ImageTensors
from bmtard_hooks.models.create import as_classifier
from bmtard_hooks.models.pixels import PixelClassifier, logits_of
from bmtard_hooks.models.precision import exact_arithmetic, full_precision, not_float32
from bmtard_hooks.models.teachers import as_teacher, naming_what_cannot_load, try_classifier

LOOKED_AT = 512
"""Images for the search of a better normalisation."""

SUSPICIOUS_GAIN = 0.1
"""Clean accuracy that another normalisation must add before it is called the likely cause."""

STANDARD_ERRORS = 3
"""The same, in standard errors of the gain if both were equally good; needs nine images at least."""

WITHOUT = "none"
USUAL_NORMALISATIONS = {
    "mean and std of 0.5": ([0.5] * 3, [0.5] * 3),
    "ImageNet's mean and std": ([0.485, 0.456, 0.406], [0.229, 0.224, 0.225]),
    "CIFAR-10's mean and std": ([0.4914, 0.4822, 0.4465], [0.2471, 0.2435, 0.2616]),
}


class FunctionClassifier(nn.Module):
    """A function from pixels to logits as a module.

    Args:
        function: maps ``(B, C, H, W)`` in [0, 1] to logits ``(B, K)``.
    """

    def __init__(self, function: Callable[[Tensor], Tensor]) -> None:
        super().__init__()
        self.function = function

    def forward(self, pixels: Tensor) -> Tensor:
        """Call the function."""
        return self.function(pixels)


def load_classifier(role: str, model: Any) -> tuple[PixelClassifier, str, list[str]]:
    """Turn what a user passed as a model into a classifier.

    Args:
        role: what it is called in messages: ``model`` or ``surrogate``.
        model: a module, a name as ``create_model`` takes, or a function from pixels to logits.

    Returns:
        The classifier, its name, and warnings.

    Raises:
        ValueError: for a name under which no weights can be loaded, and for weights that are not float32.
        TypeError: if it is none of these.
    """
    if isinstance(model, (str, Path)):
        return _load(role, str(model)), _short(str(model)), []
    if not callable(model):
        raise TypeError(f"the {role} is {type(model).__name__}: expected a module, a name, or a function of pixels")
    has_modes = isinstance(model, nn.Module) and _has_modes(model)
    # the call of a module is a function, which is not looked into
    module = model if has_modes else FunctionClassifier(model.__call__ if isinstance(model, nn.Module) else model)
    classifier = as_classifier(module, record=False)
    others = not_float32(model) if isinstance(model, nn.Module) else ""
    if others:
        raise ValueError(f"the {role} has {others} weights: evaluate in float32, pass model.float()")
    network = classifier.backbone
    known = getattr(getattr(network, "config", None), "architecture", None)
    name = known or getattr(model, "__name__", None) or type(network if has_modes else model).__name__
    if network.training and any(True for _ in network.parameters()):
        return classifier, name, [f"the {role} was in training mode: it is evaluated in eval mode, and put back after"]
    return classifier, name, []


def _has_modes(module: nn.Module) -> bool:
    """Tell whether a module can be put into eval mode; those that ``torch.export`` makes refuse, being in one for good."""
    modes = [(part, part.training) for part in module.modules()]
    try:
        module.eval()
    except NotImplementedError:
        return False
    finally:
        for part, training in modes:
            part.training = training
    return True


def _load(role: str, name: str) -> PixelClassifier:
    with naming_what_cannot_load(role, name):
        return as_teacher(name)


def place_classifier(role: str, classifier: PixelClassifier, data: ImageTensors, device: torch.device) -> None:
    """Put a classifier on the device and try it on two images.

    Raises:
        ValueError: if the device cannot be used, it cannot take the images, or has fewer logits than the data has classes.
    """
    try:
        classifier.to(device)
        images = data.pixels(slice(0, 2)).to(device)
    except (RuntimeError, AssertionError) as error:
        raise ValueError(f"device {str(device)!r} cannot be used: {str(error).splitlines()[0]}") from error
    classes = try_classifier(role, classifier, images)[1]
    if classes < data.num_classes:
        raise ValueError(f"the {role} has {classes} classes, but the data set has {data.num_classes}")


def _short(name: str) -> str:
    return Path(name).name if Path(name).is_dir() else name


def inspect_answers(runner: AttackRunner) -> list[str]:
    """Look at the clean answers for probabilities in place of logits, a wrong normalisation, and chance accuracy.

    Returns:
        Warnings, each with what was seen and the likely cause.
    """
    warnings = []
    if gives_probabilities(runner.logits):
        warnings.append(
            "the model seems to return probabilities (rows in [0, 1] that sum to 1): return logits, because gradients "
            "through a saturated softmax vanish"
        )
    accuracy = float(runner.correct.mean())
    # what a saved network recorded is what it was trained with
    doubtful = accuracy < 0.9 and not runner.model.remembered
    better = _better_normalisation(runner) if doubtful else None
    if better is not None:
        warnings.append(better)
    elif accuracy <= 1.5 / runner.num_classes:
        warnings.append(
            f"clean accuracy is {accuracy:.1%}, about chance for {runner.num_classes} classes: check the weights, the order of "
            "the classes and the colour channels"
        )
    return warnings


def gives_probabilities(logits: np.ndarray) -> bool:
    """Tell whether the rows ``(N, C)`` are probabilities: within [0, 1] and summing to 1, to 1e-5."""
    within = logits.min() >= -1e-5 and logits.max() <= 1 + 1e-5
    return bool(within and np.abs(logits.sum(axis=1) - 1).max() <= 1e-4)


def _better_normalisation(runner: AttackRunner) -> str | None:
    """Try other normalisations on the first images; the answer is a warning if one of them is much better."""
    indices = np.arange(min(LOOKED_AT, len(runner.labels)))
    now = runner.correct[indices]
    channels = runner.data.images.shape[1]
    trials = {WITHOUT: ([0.0] * channels, [1.0] * channels)} if runner.model.mean is not None else {}
    if channels == 3:
        trials.update(USUAL_NORMALISATIONS)
    correct = {name: _correct(runner, indices, mean, std) for name, (mean, std) in trials.items()}
    best = max(correct, key=lambda name: int(correct[name].sum()), default=None)
    if best is None or not _is_better(correct[best], now):
        return None
    seen, then = (
        f"clean accuracy on the first {len(indices)} images is {now.mean():.1%} as given",
        correct[best].mean(),
    )
    if best == WITHOUT:
        return (
            f"{seen}, but {then:.1%} without the normalisation in front: the network seems to normalise by itself, so "
            "its input is normalised twice. Load it with mean=[0, 0, 0], std=[1, 1, 1]"
        )
    return (
        f"{seen}, but {then:.1%} with {best}: the network seems to expect normalised images. Pass mean= and std= to "
        "create_model, or wrap it: PixelClassifier(network, mean, std)"
    )


def _is_better(then: np.ndarray, now: np.ndarray) -> bool:
    """Tell whether outcomes ``(N,)`` are better than others on the same images, by more than chance gives."""
    gain, differing = int(then.sum()) - int(now.sum()), int((then != now).sum())
    return gain >= SUSPICIOUS_GAIN * len(now) and gain > 0 and gain >= STANDARD_ERRORS * math.sqrt(differing)


def _correct(runner: AttackRunner, indices: np.ndarray, mean: Sequence[float], std: Sequence[float]) -> np.ndarray:
    backbone, device = runner.model.backbone, runner.device
    shift, scale = (torch.tensor(values, device=device).view(1, -1, 1, 1) for values in (mean, std))
    correct = []
    with attack_mode(backbone), torch.no_grad(), full_precision(backbone), exact_arithmetic():
        for start in range(0, len(indices), runner.batch_size):
            chosen = indices[start : start + runner.batch_size]
            logits = logits_of(backbone((runner.pixels(chosen) - shift) / scale))
            correct.append((logits.argmax(dim=1) == runner.labels_of(chosen)).cpu().numpy())
    return np.concatenate(correct)
