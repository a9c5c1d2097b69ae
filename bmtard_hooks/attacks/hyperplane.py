"""The smallest step from a pixel vector onto a hyperplane without leaving [0, 1], in L-infinity or L2."""

from __future__ import annotations

import torch
from torch import Tensor

NORMS = ("linf", "l2")

NEGLIGIBLE = 1e-8
"""In L2 a pixel moves in proportion to its weight; below this one it counts as immovable, as in the FAB authors' code."""


def step_onto_plane(points: Tensor, normal: Tensor, height: Tensor, norm: str) -> Tensor:
    """Find the shortest step onto a hyperplane inside the box.

    Formula: ``argmin ||d||`` subject to ``<w, x + d> = b`` and ``0 <= x + d <= 1``. A plane that the box does not reach
    is answered with the step to the corner nearest to it.

    The plane is given by the height ``h = <w, x> - b`` because a caller that linearised a function knows ``h`` exactly,
    while the difference of two large sums would lose it.

    Args:
        points: ``x``, ``(B, D)`` in [0, 1].
        normal: ``w``, ``(B, D)``; a pixel of weight 0 does not move.
        height: ``h``, ``(B,)``.
        norm: ``linf`` or ``l2``.

    Returns:
        ``d``, ``(B, D)``.

    Raises:
        ValueError: if the norm is unknown.

    Reference:
        Croce and Hein 2020, "Minimally distorted Adversarial Examples with a Fast Adaptive Boundary Attack".
    """
    if norm not in NORMS:
        raise ValueError(f"norm={norm!r} is unknown: choose one of {', '.join(NORMS)}")
    downhill = -normal * torch.where(height < 0, -1.0, 1.0).to(normal.dtype)[:, None]
    room = torch.where(downhill > 0, 1 - points, points)
    weight = normal.abs()
    if norm == "linf":
        limit = room.masked_fill_(weight == 0, 0)
        return _travel(weight, limit, height.abs()) * downhill.sign()
    limit = (room / weight).masked_fill_(weight <= NEGLIGIBLE, 0)
    return _travel(weight.square(), limit, height.abs()) * downhill


def _travel(weight: Tensor, limit: Tensor, gap: Tensor) -> Tensor:
    """Share a descent among pixels that all travel equally far until each meets its limit.

    Formula: ``min(t, limit)`` for the ``t`` that solves ``f(t) = sum_i weight_i * min(t, limit_i) = gap``; infinity if
    none does. ``f`` is concave and piecewise linear, so Newton's method from 0 never overshoots, only ever takes pixels
    out of the moving set, and once that set stays the same it has solved the right linear piece exactly. It takes a
    handful of passes over the pixels where a search over the sorted limits has to sort them first.

    Args:
        weight: ``(B, D)`` descent per unit of travel, not negative.
        limit: ``(B, D)`` where a pixel stops, not negative.
        gap: ``(B,)`` descent wanted, not negative.
    """
    descent = weight * limit
    time = gap.new_zeros(len(gap), 1)
    # Both are reused: fresh memory costs more than the sums.
    stopped, scratch = torch.empty_like(limit), torch.empty_like(limit)
    while True:
        torch.le(limit, time, out=stopped)  # 0 or 1 as a number: products are several times faster than torch.where
        missing = gap[:, None] - torch.mul(descent, stopped, out=scratch).sum(dim=1, keepdim=True)
        rate = torch.addcmul(weight, weight, stopped, value=-1, out=scratch).sum(dim=1, keepdim=True)
        later = torch.where(rate > 0, missing / rate, torch.inf).maximum(time)
        if not bool((later > time).any()):
            return torch.minimum(time, limit)
        time = later
