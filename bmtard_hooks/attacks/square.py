"""The square attack: a random search that only needs the model's scores."""

from __future__ import annotations

from bisect import bisect_left
from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from bmtard_hooks.attacks.base import Attack, Draws, Found, Target, check_count
from bmtard_hooks.attacks.losses import margin
from bmtard_hooks.attacks.square_moves import L2Moves, LinfMoves, Moves

HALVINGS = (10, 50, 200, 500, 1000, 2000, 4000, 6000, 8000)
SCHEDULE_LENGTH = 10_000
BLOCK = 500
"""Tries whose random numbers are drawn at once: it bounds the memory they take."""


@dataclass(frozen=True, kw_only=True)
class Square(Attack):
    """Random search that changes one square at a time and keeps a change only if the true class' lead shrinks.

    Formula: accept ``x'`` if ``m(x') < m(x)`` with ``m = z_y - max_{j != y} z_j``; an image is done when ``m <= 0``. The
    squares cover the share ``p`` of the pixels; ``p`` halves after the tries 10, 50, 200, 500, 1000, 2000, 4000, 6000
    and 8000.

    ``queries`` counts every forward pass of an image: one for the start and ``queries - 1`` tries. The reference's
    number does not count the start, so the same number there means one try more, and two forwards more for the
    prediction before and after. The random numbers belong to the image; the reference gives all images of a batch the
    same squares. The corners' distribution is the reference's, which never lets a square smaller than the image touch
    the last row and column.

    Args:
        eps: see ``Attack``.
        norm: see ``Attack``.
        images: see ``Attack``.
        queries: forward passes per image at most.
        p_init: share of the pixels in the first squares, in (0, 1].
        rescale_schedule: stretch the schedule of ``p``, made for 10000 queries, to ``queries``. False takes it literally,
            as AutoAttack does. The paper's 100 queries do not say which.

    Raises:
        ValueError: if a setting is outside its range; the message names it and the fix.

    Reference:
        Andriushchenko et al., "Square Attack: a query-efficient black-box adversarial attack via random search", 2020.
    """

    queries: int = 5000
    p_init: float = 0.8
    rescale_schedule: bool = False

    norms: ClassVar[tuple[str, ...]] = ("linf", "l2")
    access: ClassVar[str] = "scores"

    def __post_init__(self) -> None:
        super().__post_init__()
        check_count("queries", self.queries)
        if not 0 < self.p_init <= 1:
            raise ValueError(
                f"p_init={self.p_init} is outside (0, 1]: pass a share of the pixels, AutoAttack's is 0.8"
            )

    def __call__(self, target: Target, images: Tensor, labels: Tensor, draws: Draws) -> Found:
        """See ``Attack``."""
        moves = (LinfMoves if self.norm == "linf" else L2Moves)(self.eps, *images.shape[1:])
        numbers = draws(lambda generator: torch.rand(moves.start_numbers, generator=generator), "start")
        search = _Search.begin(target, images, labels, moves.start(images.flatten(2), numbers.to(images)))
        for first in range(0, self.queries - 1, BLOCK):
            if not len(search.positions):
                break
            self._block(target, search, moves, first, draws)
        return search.found(self.queries)

    def passes(self, num_classes: int) -> int:
        """See ``Attack``."""
        return self.queries

    def share(self, attempt: int) -> float:
        """Look up which share of the pixels a try changes.

        Args:
            attempt: number of the try, from 0.

        Returns:
            ``p_init`` divided by a power of 2.
        """
        if self.rescale_schedule:
            attempt = int(attempt / self.queries * SCHEDULE_LENGTH)
        return self.p_init / 2 ** bisect_left(HALVINGS, attempt)

    def _block(self, target: Target, search: _Search, moves: Moves, first: int, draws: Draws) -> None:
        """Make the tries ``first``, ``first + 1``, … of one table of random numbers."""
        count = min(BLOCK, self.queries - 1 - first)
        table = draws.subset(search.positions)(
            lambda generator: torch.rand(count, moves.try_numbers, generator=generator), "search", first
        ).to(search.images)
        for row in range(count):
            side = moves.side(self.share(first + row))
            candidates = moves.change(search.images, search.best, side, table[:, row])
            left = search.consider(target, candidates, spent=first + row + 2)
            if left is not None:
                table = table.index_select(0, left)
            if not len(table):
                break


@dataclass
class _Search:
    """The images that are not broken yet, flattened to ``(B, C, H * W)``, and the answers for all."""

    answers: Tensor
    queries: Tensor
    positions: Tensor
    images: Tensor
    labels: Tensor
    best: Tensor
    leads: Tensor

    @classmethod
    def begin(cls, target: Target, images: Tensor, labels: Tensor, start: Tensor) -> _Search:
        """Spend the first query on the start."""
        count, pixels = len(images), images.flatten(2)
        queries = torch.zeros(count, dtype=torch.int64, device=images.device)
        unknown = images.new_full((count,), torch.inf)
        positions = torch.arange(count, device=images.device)
        search = cls(images.clone(), queries, positions, pixels, labels, start, unknown)
        search.consider(target, start, spent=1)
        return search

    def consider(self, target: Target, candidates: Tensor, spent: int) -> Tensor | None:
        """Accept the candidates that lower the true class' lead, and drop the images that are broken.

        Args:
            target: the model.
            candidates: ``(B, C, H * W)``.
            spent: queries per image after this one.

        Returns:
            Positions of the images that stay, None if all do.
        """
        leads = -margin(self.labels)(target.scores(candidates.unflatten(2, self.answers.shape[2:])))
        better = leads < self.leads
        self.best = torch.where(better[:, None, None], candidates, self.best)
        self.leads = torch.where(better, leads, self.leads)
        broken = self.leads <= 0
        if not broken.any():
            return None
        self._write(broken.nonzero().flatten(), spent)
        left = (~broken).nonzero().flatten()
        for name in ("positions", "images", "labels", "best", "leads"):
            setattr(self, name, getattr(self, name).index_select(0, left))
        return left

    def found(self, spent: int) -> Found:
        """Collect the answers; images that are left have spent the whole budget."""
        self._write(torch.arange(len(self.positions), device=self.positions.device), spent)
        return Found(self.answers, queries=self.queries)

    def _write(self, chosen: Tensor, spent: int) -> None:
        where = self.positions[chosen]
        self.answers[where] = self.best[chosen].unflatten(2, self.answers.shape[2:])
        self.queries[where] = spent


SQUARE_5000 = Square()
"""AutoAttack's fourth attack: 5000 queries."""

SQUARE_100 = Square(queries=100, rescale_schedule=True)
"""The paper's 100 queries with the schedule stretched to them, the default of the attack on its own."""

SQUARE_100_LITERAL = Square(queries=100)
"""The paper's 100 queries with AutoAttack's literal schedule."""
