"""Gradient estimation from scores: SPSA, and the NES estimate of the k-WTA attack."""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from bmtard_hooks.attacks.base import Attack, Draws, Found, Target, check_count
from bmtard_hooks.attacks.losses import margin

ESTIMATORS = ("spsa", "nes")
QUERIES_AT_ONCE = 512  # bounds memory only
PAIRS_PER_DRAW = 32  # part of the random key: another value gives other directions
BETAS = (0.9, 0.999)
ADAM_EPS = 1e-8


@dataclass(frozen=True, kw_only=True)
class SPSA(Attack):
    """Descend the margin along gradients estimated from pairs of queries, without any gradient of the model.

    Formula: with ``J = z_y - max_{j != y} z_j``, the gradient is the mean over random directions ``v`` of
    ``(J(x + c v) - J(x - c v)) / (2 c) * v``. ``spsa`` has directions of independent +-1 and steps with Adam; ``nes``
    has Gaussian directions and steps with the sign. Steps start at the image and are clipped to the ball and to
    [0, 1]; queries are not clipped. An image is left alone once ``J < 0``, which costs one more query per step.

    Args:
        eps: see ``Attack``.
        norm: see ``Attack``.
        images: see ``Attack``.
        estimator: ``spsa`` or ``nes``.
        steps: number of steps.
        pairs: directions per step, two queries each.
        probe: length ``c`` of a query along a direction, in pixel scale per entry.
        learning_rate: of Adam, or the length of the sign step, in pixel scale.

    Reference:
        Uesato et al. 2018, Adversarial Risk and the Dangers of Evaluating Against Weak Attacks; Tramer et al. 2020, On
        Adaptive Attacks to Adversarial Example Defenses.
    """

    estimator: str = "spsa"
    steps: int = 100
    pairs: int = 128
    probe: float = 0.01
    learning_rate: float = 0.01

    access: ClassVar[str] = "scores"

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.estimator not in ESTIMATORS:
            raise ValueError(f"estimator={self.estimator!r} is unknown: choose one of {', '.join(ESTIMATORS)}")
        check_count("steps", self.steps)
        check_count("pairs", self.pairs)
        for name in ("probe", "learning_rate"):
            value = getattr(self, name)
            if not math.isfinite(value) or value <= 0:
                raise ValueError(f"{name}={value} must be a positive number in pixel scale, for example 0.01")

    def __call__(self, target: Target, images: Tensor, labels: Tensor, draws: Draws) -> Found:
        """See ``Attack``; ``queries`` of the answer counts until the image was broken."""
        adversarial = images.detach().clone()
        moments = torch.zeros_like(adversarial), torch.zeros_like(adversarial)
        queries = torch.zeros(len(images), dtype=torch.int64, device=images.device)
        active = torch.arange(len(images), device=images.device)
        for step in range(self.steps):
            if not len(active):
                break
            clean, here, true = images[active], adversarial[active], labels[active]
            gradient = self._estimate(target, here, true, draws.subset(active), step)
            direction = gradient.sign() if self.estimator == "nes" else _adam(moments, active, gradient, step + 1)
            delta = (here - clean - self.learning_rate * direction).clamp(-self.eps, self.eps)
            adversarial[active] = moved = (clean + delta).clamp(0, 1)
            queries[active] += 2 * self.pairs + 1
            active = active[_values(target, moved, true) >= 0]
        return Found(adversarial, queries=queries)

    def _estimate(self, target: Target, points: Tensor, labels: Tensor, draws: Draws, step: int) -> Tensor:
        """Estimate the gradient of ``J`` at ``points`` ``(A, C, H, W)``; returns the same shape."""
        gradient = torch.zeros_like(points)
        for rows, first, count in self._portions(len(points)):
            here = points[rows]
            own = draws.subset(torch.arange(rows.start, rows.stop))
            directions = self._directions(own, (count, *points.shape[1:]), here, "directions", step, first)
            probes = torch.stack([directions, -directions], dim=2).mul_(self.probe).add_(here[:, None, None])
            values = _values(target, probes.flatten(0, 2), labels[rows].repeat_interleave(2 * count))
            positive, negative = values.to(points.dtype).view(-1, count, 2).unbind(dim=2)
            slopes = (positive - negative) / (2 * self.probe)
            gradient[rows] += (slopes.view(-1, count, 1, 1, 1) * directions).sum(dim=1)
        return gradient / self.pairs

    def _directions(self, draws: Draws, shape: tuple[int, ...], like: Tensor, *purpose: int | str) -> Tensor:
        """Draw directions of ``shape`` for every image; returns ``(A, *shape)`` on the device of ``like``."""
        if self.estimator == "nes":
            return draws(lambda generator: torch.randn(shape, generator=generator), *purpose).to(like)
        # Eight signs per number drawn, because drawing on the CPU would hold up a GPU.
        count = -(-math.prod(shape) // 8)
        packed = draws(
            lambda generator: torch.randint(0, 256, (count,), generator=generator, dtype=torch.uint8), *purpose
        )
        return _signs(packed.to(like.device), shape).to(like.dtype)

    def _portions(self, count: int) -> Iterator[tuple[slice, int, int]]:
        """Cut a step into forwards: rows of images, the first of their directions, how many directions."""
        together = max(1, QUERIES_AT_ONCE // (2 * min(self.pairs, PAIRS_PER_DRAW)))
        for row in range(0, count, together):
            for first in range(0, self.pairs, PAIRS_PER_DRAW):
                yield slice(row, min(row + together, count)), first, min(PAIRS_PER_DRAW, self.pairs - first)

    def images_at_once(self, batch_size: int) -> int:
        """See ``Attack``."""
        return max(1, batch_size // (2 * min(self.pairs, PAIRS_PER_DRAW)))

    def passes(self, num_classes: int) -> int:
        """See ``Attack``."""
        return self.steps * (2 * self.pairs + 1)


SPSA_PAPER = SPSA(images=1000)
"""100 steps of 128 pairs on the first 1000 images; the sample size is ours, the paper's is not known."""

NES_KWTA = SPSA(estimator="nes", probe=8 / 255, images=1000)
"""The estimate of the k-WTA attack (Tramer et al. 2020): Gaussian directions of 8/255, 100 sign steps of 0.01.

Their notebook grows from 100 to 20 000 queries per step and has radius 0.031; 128 pairs throughout and 8/255 are ours.
The parameters that the B-MTARD paper used for its gradient estimation are not known, so neither preset can claim them.
"""


def _values(target: Target, points: Tensor, labels: Tensor) -> Tensor:
    return -margin(labels)(target.scores(points))


def _adam(moments: tuple[Tensor, Tensor], active: Tensor, gradient: Tensor, step: int) -> Tensor:
    # By hand, because an optimizer cannot leave out the images that are already broken.
    first = BETAS[0] * moments[0][active] + (1 - BETAS[0]) * gradient
    second = BETAS[1] * moments[1][active] + (1 - BETAS[1]) * gradient.square()
    moments[0][active], moments[1][active] = first, second
    return first / (1 - BETAS[0] ** step) / ((second / (1 - BETAS[1] ** step)).sqrt() + ADAM_EPS)


def _signs(packed: Tensor, shape: tuple[int, ...]) -> Tensor:
    """Turn the bits of ``(B, N)`` uint8 into -1 and +1 of ``(B, *shape)``."""
    powers = torch.arange(8, dtype=torch.uint8, device=packed.device)
    bits = (packed[:, :, None] >> powers) & 1
    signs = bits.to(torch.int8).mul_(2).sub_(1)
    return signs.flatten(1)[:, : math.prod(shape)].reshape(-1, *shape)
