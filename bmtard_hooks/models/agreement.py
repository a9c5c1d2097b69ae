"""Whether a faster forward gives what a classifier gives."""

from __future__ import annotations

from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import Tensor

from bmtard_hooks.attacks.guard import attack_mode
from bmtard_hooks.models.image_sizes import first_line
from bmtard_hooks.models.pixels import PixelClassifier
from bmtard_hooks.models.precision import exact_arithmetic, full_precision
from bmtard_hooks.randomness import untouched_randomness

LOGITS_TOLERANCE = 1e-4
"""Largest difference of logits, over the largest logit."""

GRADIENT_TOLERANCE = 5e-2
"""Length of the difference of input gradients, over the gradient's; rounding flips a few ReLUs of a large network (5e-3 in a WRN-34-10)."""


def disagreement(classifier: PixelClassifier, forward: Callable[[Tensor], Tensor], images: Tensor) -> str | None:
    """Compare logits and input gradients in eval mode and float32, leaving modes and random numbers as they are.

    Args:
        classifier: says what is right.
        forward: maps pixels to logits, in float32.
        images: ``(B, C, H, W)`` float32 in [0, 1], a few.

    Returns:
        None if they agree up to rounding, else how they differ.
    """
    device = images.device
    with (
        attack_mode(classifier),
        full_precision(classifier.backbone),
        exact_arithmetic(),
        torch.autocast(device.type, enabled=False),
        untouched_randomness(device),
    ):
        try:
            expected, expected_gradient = _answer(classifier, images)
            logits, gradient = _answer(forward, images)
        except Exception as error:  # no gradient for the pixels, or a trace that lost what the network's code did
            return f"it cannot be compared with its folded copy ({type(error).__name__}: {first_line(error)})"
    if logits.shape != expected.shape or logits.dtype != expected.dtype:
        return f"folded logits are {logits.dtype} {tuple(logits.shape)}, not {expected.dtype} {tuple(expected.shape)}"
    apart = float((logits - expected).abs().max() / expected.abs().max())
    if not apart <= LOGITS_TOLERANCE:  # also for NaN
        return f"folded logits differ by {apart:.1e} of the largest"
    apart = float((gradient - expected_gradient).norm() / expected_gradient.norm())
    if not apart <= GRADIENT_TOLERANCE:
        return f"input gradients of the folded copy differ by {apart:.1e} of their length"
    return None


def _answer(forward: Callable[[Tensor], Tensor], images: Tensor) -> tuple[Tensor, Tensor]:
    pixels = images.detach().clone().requires_grad_(True)
    logits = forward(pixels)
    # The least likely class: towards the predicted one a confident network has a gradient of nothing but rounding.
    loss = F.cross_entropy(logits, logits.detach().argmin(dim=1), reduction="sum")
    return logits.detach(), torch.autograd.grad(loss, pixels)[0]
