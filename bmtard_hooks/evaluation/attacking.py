"""One attack on one batch, and the verdict on what it found."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from bmtard_hooks.attacks.base import Attack, Draws, Target, distance
from bmtard_hooks.attacks.guard import attack_mode
from bmtard_hooks.models.pixels import PixelClassifier
from bmtard_hooks.models.precision import exact_arithmetic, full_precision

ROUNDING = 1e-6
"""How far outside its ball or [0, 1] float32 arithmetic may put a pixel."""


class InvalidExamples(RuntimeError):
    """An attack returned images that are not finite, not pixels, or too far away."""


@dataclass
class BatchOutcome:
    """What an attack did to a batch.

    Args:
        images: ``(B, C, H, W)`` adversarial images.
        predictions: ``(B,)`` their classes in float32.
        broken: ``(B,)`` bool, misclassified.
        broken_on_the_way: ``(B,)`` bool or None, see ``Found``.
        queries: ``(B,)`` or None, see ``Found``.
        forwards: forward passes of the search, one per image.
        backwards: backward passes.
    """

    images: Tensor
    predictions: Tensor
    broken: Tensor
    broken_on_the_way: Tensor | None
    queries: Tensor | None
    forwards: int
    backwards: int


def attack_batch(
    attack: Attack,
    model: PixelClassifier,
    images: Tensor,
    labels: Tensor,
    indices: Sequence[int],
    *key: int | str,
    forward: Callable[[Tensor], Tensor] | None = None,
    on_pass: Callable[[int], None] | None = None,
) -> BatchOutcome:
    """Attack a batch of correctly classified images and judge the answer in float32.

    Args:
        attack: the attack.
        model: what is judged.
        images: ``(B, C, H, W)`` float32 in [0, 1].
        labels: ``(B,)``.
        indices: position of each image in its data set.
        *key: of the random numbers, for example ``(seed, "square")``.
        forward: computes the same logits faster, for the search; the verdict is always the model's own.
        on_pass: see ``Target``.

    Raises:
        NonFiniteLogits: if the model answered NaN or infinity.
        InvalidExamples: if the attack's answer is not valid.
    """
    target = Target(forward if forward is not None else model, on_pass)
    with attack_mode(model, foreign=attack.foreign), full_precision(model.backbone), exact_arithmetic():
        found = attack(target, images, labels, Draws(indices, *key))
        target.require_finite()
        require_valid(attack, found.images, images)
        predictions = judge(model, found.images).argmax(dim=1)
    broken = predictions != labels
    on_the_way = None if found.broken_on_the_way is None else found.broken_on_the_way | broken
    return BatchOutcome(
        found.images, predictions, broken, on_the_way, found.queries, target.forwards, target.backwards
    )


def judge(model: PixelClassifier, images: Tensor) -> Tensor:
    """Classify in float32, without gradients; returns finite logits ``(B, K)`` or raises ``NonFiniteLogits``."""
    target = Target(model)
    with full_precision(model.backbone), exact_arithmetic():
        logits = target.scores(images)
    target.require_finite()
    return logits


def require_valid(attack: Attack, adversarial: Tensor, images: Tensor) -> None:
    """Raise ``InvalidExamples`` unless the images are finite pixels within the attack's ball."""
    name = type(attack).__name__
    if adversarial.shape != images.shape or not bool(torch.isfinite(adversarial).all()):
        raise InvalidExamples(
            f"{name} returned images of shape {tuple(adversarial.shape)} or with NaN: expected finite ones"
        )
    low, high = (float(value) for value in adversarial.aminmax())
    if low < -ROUNDING or high > 1 + ROUNDING:
        raise InvalidExamples(f"{name} returned pixels from {low:.6f} to {high:.6f}: they must stay in [0, 1]")
    farthest = float(distance(adversarial, images, attack.norm).max())
    if farthest > attack.eps * (1 + 1e-5) + ROUNDING:
        raise InvalidExamples(
            f"{name} moved an image by {farthest:.6f} in {attack.norm}: more than eps={attack.eps:.6f}"
        )
