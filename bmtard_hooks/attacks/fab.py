"""FAB-T, the Fast Adaptive Boundary attack on chosen classes: the third attack of AutoAttack."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from bmtard_hooks.attacks.base import Attack, Draws, Found, Target, check_count, distance
from bmtard_hooks.attacks.hyperplane import NORMS, step_onto_plane
from bmtard_hooks.attacks.losses import Objective

SHORTEST = 1e-8
"""Floor of a step's length where two lengths are compared, as in the authors' code."""


@dataclass(frozen=True, kw_only=True)
class FAB(Attack):
    """Walk along the boundary between the true class and each of the likeliest wrong ones, close to the clean image.

    Each step projects the iterate and the clean image onto the linearised boundary, mixes the two results, and pulls
    the mixture back towards the clean image if it is misclassified. An image is broken once a misclassified point lies
    within ``eps``; the search for it ends there. Deterministic; an image that is not broken is answered unchanged.

    The implementation is our own because torchattacks' ``FAB``, which walks through the same points, adds to the
    parameters' gradients, cannot take channels_last images, repeats forward passes that it has made already, sorts all
    pixels of every image in every step, and goes on with images that are broken.

    Args:
        eps: see ``Attack``.
        norm: see ``Attack``.
        images: see ``Attack``.
        steps: steps per target class.
        target_classes: number of target classes, the likeliest wrong ones of the clean image; at most all wrong ones.
        alpha_max: largest share of the clean image's projection in the mixture, in [0, 1].
        eta: factor on the projections' length, 1 or more; above 1 oversteps the boundary.
        beta: what is left of a misclassified point's distance after the pull, in (0, 1).

    Reference:
        Croce and Hein 2020, "Minimally distorted Adversarial Examples with a Fast Adaptive Boundary Attack".
    """

    steps: int = 100
    target_classes: int = 9
    alpha_max: float = 0.1
    eta: float = 1.05
    beta: float = 0.9

    norms: ClassVar[tuple[str, ...]] = NORMS

    def __post_init__(self) -> None:
        super().__post_init__()
        check_count("steps", self.steps)
        check_count("target_classes", self.target_classes)
        if not 0 <= self.alpha_max <= 1:
            raise ValueError(f"alpha_max={self.alpha_max} is outside [0, 1]: it is a share, the paper's is 0.1")
        if not (math.isfinite(self.eta) and self.eta >= 1):
            raise ValueError(f"eta={self.eta} would stop short of the boundary: pass 1 or more, the paper's is 1.05")
        if not 0 < self.beta < 1:
            raise ValueError(f"beta={self.beta} is outside (0, 1): it shortens a distance, the paper's is 0.9")

    def __call__(self, target: Target, images: Tensor, labels: Tensor, draws: Draws) -> Found:
        """See ``Attack``."""
        images = images.detach()
        answers = images.clone()
        logits = target.scores(images)
        rivals = self._rivals(logits, labels)
        left = (logits.argmax(dim=1) == labels).nonzero().flatten()
        for rank in range(rivals.shape[1]):
            if not len(left):
                break
            found, broken = self._walk(target, images[left], labels[left], rivals[left, rank])
            answers[left[broken]] = found[broken]
            left = left[~broken]
        return Found(answers)

    def _rivals(self, logits: Tensor, labels: Tensor) -> Tensor:
        """Rank the wrong classes, likeliest first, ``(B, targets)``."""
        count = min(self.target_classes, logits.shape[1] - 1)
        return logits.scatter(1, labels[:, None], -torch.inf).topk(count, dim=1).indices

    def _walk(self, target: Target, images: Tensor, labels: Tensor, rivals: Tensor) -> tuple[Tensor, Tensor]:
        """Search towards one class per image; returns points ``(B, ...)`` and the mask ``(B,)`` of broken images.

        A step costs three passes. Reading off the gradient's pass whether the point is misclassified, and repeating it
        at the pulled point, saves one for the others but costs one more for these, which are nine in ten: a loss.
        """
        answers = images.clone()
        broken = torch.zeros(len(images), dtype=torch.bool, device=images.device)
        rows = torch.arange(len(images), device=images.device)
        clean = points = images.flatten(1)
        for _ in range(self.steps):
            _, lead, slope = target.gradient(points.reshape(-1, *images.shape[1:]), _lead(labels, rivals))
            points = self._step(points, clean, lead, slope.flatten(1))
            pixels = points.reshape(-1, *images.shape[1:])
            wrong = target.scores(pixels).argmax(dim=1) != labels
            done = wrong & (distance(points, clean, self.norm) <= self.eps)
            if bool(done.any()):
                answers[rows[done]] = pixels[done]
                broken[rows[done]] = True
                points, clean, labels, rivals, rows, wrong = (
                    value[~done] for value in (points, clean, labels, rivals, rows, wrong)
                )
                if not len(rows):
                    break
            points = torch.where(wrong[:, None], clean + (points - clean) * self.beta, points)
        return answers, broken

    def _step(self, points: Tensor, clean: Tensor, lead: Tensor, slope: Tensor) -> Tensor:
        """Mix the overstepped projections of the points and of the clean images onto the linearised boundary."""
        clean_lead = lead + (slope * (clean - points)).sum(dim=1)
        near = step_onto_plane(points, slope, lead, self.norm)
        far = step_onto_plane(clean, slope, clean_lead, self.norm)
        near_length, far_length = (
            distance(step, torch.zeros_like(step), self.norm).clamp_min(SHORTEST) for step in (near, far)
        )
        share = (near_length / (near_length + far_length)).clamp_max(self.alpha_max)[:, None]
        return ((points + self.eta * near) * (1 - share) + (clean + self.eta * far) * share).clamp(0, 1)

    def passes(self, num_classes: int) -> int:
        """See ``Attack``."""
        return 1 + min(self.target_classes, num_classes - 1) * 3 * self.steps


def _lead(labels: Tensor, rivals: Tensor) -> Objective:
    """Make the linearised function: the rival's logit minus the true one."""
    return lambda logits: (logits.gather(1, rivals[:, None]) - logits.gather(1, labels[:, None])).squeeze(1)


FAB_T = FAB()
"""100 steps for each of the nine likeliest wrong classes: the third attack of AutoAttack standard."""
