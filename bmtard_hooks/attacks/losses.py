"""What an attack makes larger: one number per image, from the attacked model's logits."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

from bmtard_hooks.functional import kl_to_teacher

Objective = Callable[[Tensor], Tensor]
"""Maps logits ``(B, C)`` to ``(B,)`` (or their sum, a 0-dim tensor)."""


@dataclass(frozen=True)
class MovingTarget:
    """An objective whose target depends on where the search is, and whose gradient flows through the target too.

    Args:
        loss: maps logits ``(B, C)`` and the images ``(B, C, H, W)`` they belong to to ``(B,)`` or their sum.
    """

    loss: Callable[[Tensor, Tensor], Tensor]


LOSSES = ("ce", "kl", "margin")


def cross_entropy(labels: Tensor) -> Objective:
    """Make the objective of Madry's PGD and of B-MTARD's inner loop (Eq. 4): the cross-entropy with the true label.

    Args:
        labels: ``(B,)`` class indices.
    """
    return lambda logits: F.cross_entropy(logits, labels, reduction="none")


def divergence(target_probs: Tensor) -> Objective:
    """Make the objective of TRADES and RSLAD: the KL divergence from a fixed prediction, summed over classes.

    Args:
        target_probs: ``(B, C)`` rows sum to 1: the model's own clean prediction (TRADES) or a teacher's (RSLAD).
    """
    return lambda logits: kl_to_teacher(logits, target_probs, log_eps=0.0)


def margin(labels: Tensor) -> Objective:
    """Make the Carlini-Wagner objective: the best wrong logit minus the true one. Positive means misclassified.

    The true class is excluded with minus infinity; a mask by multiplication would fail for shifted logits.

    Args:
        labels: ``(B,)`` class indices.
    """

    def objective(logits: Tensor) -> Tensor:
        true = logits.gather(1, labels[:, None]).squeeze(1)
        others = logits.scatter(1, labels[:, None], -torch.inf)
        return others.amax(dim=1) - true

    return objective


def bounded_margin(labels: Tensor, kappa: float) -> Objective:
    """Make the Carlini-Wagner objective that stops to grow once a wrong class leads by ``kappa``.

    Formula: ``-max(z_y - max_{j != y} z_j + kappa, 0)``.

    Args:
        labels: ``(B,)`` class indices.
        kappa: non-negative lead.
    """
    lead = margin(labels)
    return lambda logits: -(kappa - lead(logits)).clamp_min(0)


def margin_targeted(labels: Tensor, targets: Tensor) -> Objective:
    """Make the objective that pulls one wrong class over the true one.

    Formula: ``z_t - z_y``.

    Args:
        labels: ``(B,)`` class indices.
        targets: ``(B,)`` wrong class indices.
    """
    return lambda logits: _logit_of(logits, targets) - _logit_of(logits, labels)


def dlr(labels: Tensor) -> Objective:
    """Make the difference of logits ratio: the margin, divided so that scaling the logits cannot hide the gradient.

    Formula: ``(max_{j != y} z_j - z_y) / (z_(1) - z_(3) + 1e-12)``, ``z_(k)`` the k-th largest logit.

    Args:
        labels: ``(B,)`` class indices.

    Raises:
        ValueError: from the objective, if there are fewer than 3 classes.

    Reference:
        Croce and Hein, "Reliable evaluation of adversarial robustness with an ensemble of diverse parameter-free
        attacks", 2020, Eq. 6.
    """

    def objective(logits: Tensor) -> Tensor:
        first, _, third = _largest(logits, 3).unbind(dim=1)
        others = logits.scatter(1, labels[:, None], -torch.inf)
        return (others.max(dim=1).values - _logit_of(logits, labels)) / (first - third + 1e-12)

    return objective


def dlr_targeted(labels: Tensor, targets: Tensor) -> Objective:
    """Make the targeted difference of logits ratio.

    Formula: ``(z_t - z_y) / (z_(1) - (z_(3) + z_(4)) / 2 + 1e-12)``, ``z_(k)`` the k-th largest logit.

    Args:
        labels: ``(B,)`` class indices.
        targets: ``(B,)`` wrong class indices.

    Raises:
        ValueError: from the objective, if there are fewer than 4 classes.

    Reference:
        Croce and Hein, "Reliable evaluation of adversarial robustness with an ensemble of diverse parameter-free
        attacks", 2020, Eq. 7.
    """
    lead = margin_targeted(labels, targets)

    def objective(logits: Tensor) -> Tensor:
        first, _, third, fourth = _largest(logits, 4).unbind(dim=1)
        return lead(logits) / (first - 0.5 * (third + fourth) + 1e-12)

    return objective


def _logit_of(logits: Tensor, classes: Tensor) -> Tensor:
    return logits.gather(1, classes[:, None]).squeeze(1)


def _largest(logits: Tensor, count: int) -> Tensor:
    if logits.shape[1] < count:
        raise ValueError(
            f"the loss compares the {count} largest logits, the model has {logits.shape[1]} classes: use the margin instead"
        )
    return logits.topk(count, dim=1).values


def pixel_gradient(value: Tensor, pixels: Tensor) -> Tensor:
    """Differentiate a number with respect to pixels.

    Args:
        value: 0-dim, with a gradient.
        pixels: ``(B, C, H, W)`` that need one.

    Returns:
        ``(B, C, H, W)``, zeros where the number does not depend on the pixels by differentiable operations, as with
        quantised layers.
    """
    (gradient,) = torch.autograd.grad(value, pixels, allow_unused=True, materialize_grads=True)
    return gradient
