"""The same models and images for every contender."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from bmtard_hooks import ImageTensors, create_model
from bmtard_hooks.models.pixels import PixelClassifier


@dataclass(frozen=True)
class Scene:
    """What is trained on what, and where.

    Args:
        student: timm name.
        clean_teacher: timm name; its weights are random, because only time matters.
        robust_teacher: the same.
        batch_size: images per step.
        images: size of the generated training set.
        side: height and width of an image.
        classes: number of classes.
        device: ``cpu`` or ``cuda``.
        threads: of a process on the CPU.
        seed: of weights, images and order.
        warm_up: steps of an eager contender before the first timed one.
        gives_back: a waiting contender returns free memory, and has to get it again in its next step.
    """

    student: str
    clean_teacher: str
    robust_teacher: str
    batch_size: int = 128
    images: int = 50_000
    side: int = 32
    classes: int = 10
    device: str = "cpu"
    threads: int = 1
    seed: int = 0
    warm_up: int = 1
    gives_back: bool = False


class Networks(NamedTuple):
    """The three models, on the CPU."""

    student: PixelClassifier
    clean_teacher: PixelClassifier
    robust_teacher: PixelClassifier


def make_data(scene: Scene) -> ImageTensors:
    """Generate byte images and labels."""
    generator = torch.Generator().manual_seed(scene.seed)
    shape = (scene.images, 3, scene.side, scene.side)
    images = torch.randint(0, 256, shape, generator=generator, dtype=torch.uint8)
    labels = torch.randint(0, scene.classes, (scene.images,), generator=generator)
    return ImageTensors(images, labels, [str(number) for number in range(scene.classes)])


def make_networks(scene: Scene, data: ImageTensors) -> Networks:
    """Build the models; equal scenes give equal weights."""
    names = (scene.student, scene.clean_teacher, scene.robust_teacher)
    return Networks(*(_make_network(name, scene, number, data) for number, name in enumerate(names)))


def _make_network(name: str, scene: Scene, number: int, data: ImageTensors) -> PixelClassifier:
    torch.manual_seed(scene.seed + number)
    classifier = create_model(name, num_classes=scene.classes)
    settle(classifier, data.pixels(slice(0, 8)))
    return classifier


def settle(classifier: nn.Module, pixels: Tensor) -> None:
    """Give the BatchNorm layers of a random network statistics that fit its weights.

    In eval mode, activations of an untrained deep network otherwise double from block to block, which no trained network
    does; losses would be those of teachers that are certain of everything.

    Args:
        classifier: maps pixels to logits; its mode stays.
        pixels: ``(B, C, H, W)``.
    """
    norms = [module for module in classifier.modules() if isinstance(module, nn.modules.batchnorm._BatchNorm)]
    with torch.no_grad(), _replaced_momentum(norms, 1.0), _in_train_mode(classifier):
        classifier(pixels)


def bare(classifier: PixelClassifier) -> nn.Module:
    """Take the timm network out of its wrappers, as a user's loop would have it; with its normalisation if it has one."""
    network = getattr(classifier.backbone, "timm_model", classifier.backbone)
    return network if classifier.mean is None else classifier


@contextmanager
def _replaced_momentum(norms: Sequence[Any], momentum: float) -> Iterator[None]:
    before = [norm.momentum for norm in norms]
    for norm in norms:
        norm.momentum = momentum
    try:
        yield
    finally:
        for norm, value in zip(norms, before, strict=True):
            norm.momentum = value


@contextmanager
def _in_train_mode(module: nn.Module) -> Iterator[None]:
    training = module.training
    module.train()
    try:
        yield
    finally:
        module.train(training)
