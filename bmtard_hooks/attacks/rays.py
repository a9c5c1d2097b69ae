"""RayS: an attack that sees nothing but the predicted label."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from bmtard_hooks.attacks.base import Attack, Draws, Found, Target, check_count, distance


@dataclass(frozen=True, kw_only=True)
class RayS(Attack):
    """Search the direction in {-1, +1}^D along which the decision boundary is nearest in L-infinity.

    A block of a direction's signs is flipped, first all, then halves, quarters and so on. The flip is kept if the
    image is still misclassified at the best radius so far; the new radius is then found by bisection. Nothing is
    random.

    The budget is strict: an image never costs more than ``queries`` forward passes inside the attack (the clean and
    the final pass are the evaluation's), and none after a point within ``eps`` was found. The answer is that point, or
    the clean image.

    Args:
        eps: see ``Attack``.
        norm: see ``Attack``.
        images: see ``Attack``.
        queries: forward passes per image.
        tolerance: bisection ends when the interval is this short; measured in L2 along the ray, that is the radius
            times ``sqrt(D)``.
        stop_at_eps: stop an image at the first point within ``eps``. False spends the whole budget on a nearer one.

    Reference:
        Chen and Gu 2020, RayS: A Ray Searching Method for Hard-label Adversarial Attack.
    """

    queries: int = 100
    tolerance: float = 1e-3
    stop_at_eps: bool = True

    access: ClassVar[str] = "labels"

    def __post_init__(self) -> None:
        super().__post_init__()
        check_count("queries", self.queries)
        if not math.isfinite(self.tolerance) or self.tolerance <= 0:
            raise ValueError(f"tolerance={self.tolerance} must be a positive number: the reference has 0.001")

    def __call__(self, target: Target, images: Tensor, labels: Tensor, draws: Draws) -> Found:
        """See ``Attack``."""
        stop = self.eps if self.stop_at_eps else None
        rays = nearest_on_rays(target, images, labels, self.queries, self.tolerance, stop)
        inside = (rays.distances <= self.eps).view(-1, 1, 1, 1)
        return Found(torch.where(inside, rays.images, images), queries=rays.queries)

    def passes(self, num_classes: int) -> int:
        """See ``Attack``."""
        return self.queries


RAYS_100 = RayS()
"""100 queries: a weak attacker, whose number must not be read as robustness."""


@dataclass
class Rays:
    """What the search found, whatever the distance.

    Args:
        images: ``(B, C, H, W)`` nearest misclassified points, the clean image where there is none.
        distances: ``(B,)`` L-infinity distance to them, infinite where there is none.
        queries: ``(B,)`` int64 forward passes spent.
    """

    images: Tensor
    distances: Tensor
    queries: Tensor


def nearest_on_rays(
    target: Target, images: Tensor, labels: Tensor, queries: int, tolerance: float = 1e-3, stop: float | None = None
) -> Rays:
    """Find the nearest misclassified point that the budget allows, every image at a stage of its own.

    Args:
        target: the model; only its argmax is used.
        images: ``(B, C, H, W)`` in [0, 1].
        labels: ``(B,)``.
        queries: forward passes per image.
        tolerance: see ``RayS``.
        stop: leave an image alone once its point is within this distance; None never does.
    """
    search = _Search(images, tolerance)
    spent = torch.zeros(len(images), dtype=torch.int64, device=images.device)
    for _ in range(queries):
        active = (search.distances > (-1 if stop is None else stop)).nonzero().flatten()
        if not len(active):
            break
        points, radii, rays = search.propose(active)
        fooled = target.scores(points).argmax(dim=1) != labels[active]
        spent[active] += 1
        search.learn(active, points, radii, rays, fooled)
    return Rays(search.found.view_as(images), search.distances, spent)


class _Search:
    """State of the search of a batch, one row per image.

    Args:
        images: ``(B, C, H, W)``.
        tolerance: see ``RayS``.
    """

    def __init__(self, images: Tensor, tolerance: float) -> None:
        self.shape = images.shape[1:]
        self.clean = images.flatten(1)
        count, self.dimension = self.clean.shape
        self.tolerance = tolerance / math.sqrt(self.dimension)
        self.position = torch.arange(self.dimension, device=images.device)
        self.signs = torch.ones_like(self.clean)
        self.radius = self.clean.new_full((count,), torch.inf)
        self.low, self.high = torch.zeros_like(self.radius), torch.ones_like(self.radius)
        self.start = torch.zeros(count, dtype=torch.int64, device=images.device)
        self.length = torch.full_like(self.start, self.dimension)
        self.bisecting = torch.zeros_like(self.start, dtype=torch.bool)
        self.found = self.clean.clone()
        self.distances = torch.full_like(self.radius, torch.inf)

    def propose(self, active: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Give every active image's next query.

        Args:
            active: ``(A,)`` rows.

        Returns:
            Points ``(A, C, H, W)``, their radii ``(A,)`` and rays ``(A, D)``.
        """
        start, end = self.start[active, None], (self.start + self.length)[active, None]
        signs = self.signs[active]
        rays = torch.where((self.position >= start) & (self.position < end), -signs, signs)
        # At radius 1 every pixel is 0 or 1, so there is nothing beyond it.
        first = self.radius[active].clamp_max(1)
        radii = torch.where(self.bisecting[active], (self.low[active] + self.high[active]) / 2, first)
        points = (self.clean[active] + radii[:, None] * rays).clamp(0, 1)
        return points.view(-1, *self.shape), radii, rays

    def learn(self, active: Tensor, points: Tensor, radii: Tensor, rays: Tensor, fooled: Tensor) -> None:
        """Use the answers to ``propose``.

        Args:
            active: ``(A,)`` rows.
            points: see ``propose``.
            radii: see ``propose``.
            rays: see ``propose``.
            fooled: ``(A,)`` whether the points were misclassified.
        """
        best, bisecting = self.radius[active], self.bisecting[active]
        low = torch.where(fooled, self.low[active], radii).where(bisecting, torch.zeros_like(radii))
        high = torch.where(fooled, radii, self.high[active])
        nearer = fooled & (radii < best)
        self._keep(active[nearer], points[nearer])

        ended = torch.where(bisecting, high - low <= self.tolerance, ~fooled)
        better = ended & bisecting & (high < best)
        self.radius[active] = torch.where(better, high, best)
        self.signs[active] = torch.where(better[:, None], rays, self.signs[active])
        self.low[active], self.high[active], self.bisecting[active] = low, high, ~ended
        self._next_block(active[ended])

    def _keep(self, rows: Tensor, points: Tensor) -> None:
        # Clipping can make the real distance smaller than the radius, and the real one counts.
        self.found[rows] = points.flatten(1)
        self.distances[rows] = distance(self.found[rows], self.clean[rows], "linf")

    def _next_block(self, rows: Tensor) -> None:
        start = self.start[rows] + self.length[rows]
        wrapped = start >= self.dimension
        self.start[rows] = torch.where(wrapped, 0, start)
        half = (self.length[rows] + 1) // 2  # halving with rounding up twice is rounding up once: ceil(D / 2^level)
        self.length[rows] = torch.where(wrapped, half, self.length[rows])
