"""Auto-PGD: projected gradient descent that chooses its step size by itself, with three losses."""

from __future__ import annotations

import logging
from dataclasses import dataclass, fields
from functools import cache
from typing import ClassVar

import torch
from torch import Tensor

from bmtard_hooks.attacks.base import Attack, Draws, Found, Target, check_count
from bmtard_hooks.attacks.losses import Objective, cross_entropy, dlr, dlr_targeted, margin, margin_targeted

LOSSES = ("ce", "dlr", "dlr_targeted")
FEWEST_CLASSES = {"dlr": 3, "dlr_targeted": 4}
FIRST_STEP = 2.0
MOMENTUM = 0.75
TINY = 1e-12

logger = logging.getLogger(__name__)


@dataclass(frozen=True, kw_only=True)
class APGD(Attack):
    """PGD with momentum that halves an image's step and returns to its best point when progress stalls.

    Formula: ``u = project(x_k + size * direction(grad))``, then
    ``x_{k+1} = project(x_k + 0.75 * (u - x_k) + 0.25 * (x_k - x_{k-1}))``; the size starts at ``2 * eps``. The direction is
    the gradient's sign (L-infinity) or the unit gradient (L2). At the checkpoints, see ``checkpoints``, an image's size
    is halved if its loss rose in at most ``rho`` of the steps since the last one, or if its best loss did not improve
    since then and the size was not halved there.

    Images are independent of each other, so one that is misclassified leaves the batch at once; its answer is that
    point. An image that survives is answered with the point of the highest loss of its last run. torchattacks'
    targeted L2 attack steps every image by the size of the first; this one does not.

    Args:
        eps: see ``Attack``.
        norm: see ``Attack``.
        images: see ``Attack``.
        loss: ``ce``, ``dlr``, or ``dlr_targeted``: one run for each of the most likely wrong classes.
        steps: steps of a run.
        restarts: independent runs (of every target class).
        target_classes: how many wrong classes ``dlr_targeted`` tries at most, in the order of the clean logits.
        rho: see above, in (0, 1].

    Raises:
        ValueError: if a setting is outside its range; the message names it and the fix.

    Reference:
        Croce and Hein, "Reliable evaluation of adversarial robustness with an ensemble of diverse parameter-free
        attacks", 2020.
    """

    loss: str = "ce"
    steps: int = 100
    restarts: int = 1
    target_classes: int = 9
    rho: float = 0.75

    norms: ClassVar[tuple[str, ...]] = ("linf", "l2")

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.loss not in LOSSES:
            raise ValueError(f"loss={self.loss!r} is unknown: choose one of {', '.join(LOSSES)}")
        check_count("steps", self.steps)
        check_count("restarts", self.restarts)
        check_count("target_classes", self.target_classes)
        if not 0 < self.rho <= 1:
            raise ValueError(f"rho={self.rho} is outside (0, 1]: pass the share of rising steps, AutoAttack's is 0.75")

    def __call__(self, target: Target, images: Tensor, labels: Tensor, draws: Draws) -> Found:
        """See ``Attack``."""
        answers = images.clone()
        left = torch.arange(len(images), device=images.device)
        for run, rivals in enumerate(self._rivals(target, images, labels)):
            if not len(left):
                break
            noise = draws.subset(left)(lambda generator: self._noise(images.shape[1:], generator), "start", run)
            found, broken = self._run(target, images[left], labels[left], rivals[left], noise.to(images))
            answers[left] = found
            left = left[~broken]
        return Found(answers)

    def passes(self, num_classes: int) -> int:
        """See ``Attack``."""
        runs, ranking = self.restarts, 0
        if self.loss == "dlr_targeted":
            runs, ranking = runs * min(self.target_classes, num_classes - 1), 1
        return ranking + runs * (2 * self.steps + 1)

    def fallback(self, num_classes: int) -> str | None:
        """Say which loss replaces one that needs more classes; None if nothing is replaced."""
        fewest = FEWEST_CLASSES.get(self.loss, 0)
        if num_classes >= fewest:
            return None
        used = "the targeted margin" if self.loss == "dlr_targeted" else "the margin"
        return f"the loss {self.loss} needs {fewest} classes, the model has {num_classes}: {used} was used instead"

    def notes(self, num_classes: int) -> list[str]:
        """See ``Attack``."""
        note = self.fallback(num_classes)
        return [] if note is None else [note]

    def _rivals(self, target: Target, images: Tensor, labels: Tensor) -> list[Tensor]:
        """List the wrong class ``(B,)`` of every run; untargeted runs do not look at it."""
        if self.loss != "dlr_targeted":
            return [labels] * self.restarts
        logits = target.scores(images).scatter(1, labels[:, None], torch.inf)
        ranking = logits.argsort(dim=1, descending=True)[:, 1 : self.target_classes + 1]
        return [rivals for rivals in ranking.unbind(dim=1) for _ in range(self.restarts)]

    def _noise(self, shape: torch.Size, generator: torch.Generator) -> Tensor:
        draw = torch.rand if self.norm == "linf" else torch.randn
        return draw(shape, generator=generator)

    def _run(
        self, target: Target, images: Tensor, labels: Tensor, rivals: Tensor, noise: Tensor
    ) -> tuple[Tensor, Tensor]:
        """Search once from one start; returns the answers ``(B, C, H, W)`` and which of them are broken ``(B,)``."""
        windows = checkpoints(self.steps)
        answers, broken = torch.empty_like(images), torch.zeros_like(labels, dtype=torch.bool)
        search = _Search.begin(images, labels, rivals, self._start(images, noise), FIRST_STEP * self.eps)
        for step in range(self.steps + 1):
            if step:
                self._move(search, MOMENTUM if step > 1 else 1.0)
            logits = self._look(target, search, last=step == self.steps)
            wrong = logits.argmax(dim=1) != search.labels
            if wrong.any():
                hit = search.positions[wrong]
                answers[hit], broken[hit] = search.points[wrong], True
                search.keep((~wrong).nonzero().flatten())
                if not len(search.positions):
                    break
            search.remember(first=step == 0)
            if step in windows:
                search.check(self.rho * windows[step])
        answers[search.positions] = search.best_points
        return answers, broken

    def _look(self, target: Target, search: _Search, last: bool) -> Tensor:
        """Evaluate the current points; the last ones need no gradient."""
        objective = self._objective(search.labels, search.rivals)
        if last:
            logits = target.scores(search.points)
            search.losses = objective(logits)
        else:
            logits, search.losses, search.gradients = target.gradient(search.points, objective)
        return logits

    def _objective(self, labels: Tensor, rivals: Tensor) -> Objective:
        if self.loss == "ce":
            return cross_entropy(labels)
        if self.loss == "dlr":
            wanted, simple = dlr(labels), margin(labels)
        else:
            wanted, simple = dlr_targeted(labels, rivals), margin_targeted(labels, rivals)

        def objective(logits: Tensor) -> Tensor:
            note = self.fallback(logits.shape[1])
            if note is None:
                return wanted(logits)
            _warn_once(note)
            return simple(logits)

        return objective

    def _start(self, images: Tensor, noise: Tensor) -> Tensor:
        """Start on the ball's surface: the noise is stretched until its norm is ``eps``."""
        if self.norm == "linf":
            noise = 2 * noise - 1
            largest = noise.flatten(1).abs().amax(dim=1).view(-1, 1, 1, 1)
            return (images + self.eps * (noise / (largest + TINY))).clamp(0, 1)
        return (images + self.eps * _unit(noise)).clamp(0, 1)

    def _move(self, search: _Search, momentum: float) -> None:
        points, sizes = search.points, search.step_sizes.view(-1, 1, 1, 1)
        direction = search.gradients.sign() if self.norm == "linf" else _unit(search.gradients)
        stepped = self._project(points + sizes * direction, search.images)
        moved = points + (stepped - points) * momentum + (points - search.previous) * (1 - momentum)
        search.previous, search.points = points, self._project(moved, search.images)

    def _project(self, points: Tensor, images: Tensor) -> Tensor:
        if self.norm == "linf":
            return torch.minimum(torch.maximum(points, images - self.eps), images + self.eps).clamp(0, 1)
        moved = points - images
        return (images + _unit(moved) * _length(moved).clamp_max(self.eps)).clamp(0, 1)


@dataclass
class _Search:
    """What is remembered of the images that are not broken yet; B of them, first in every tensor."""

    positions: Tensor
    images: Tensor
    labels: Tensor
    rivals: Tensor
    points: Tensor
    previous: Tensor
    losses: Tensor
    gradients: Tensor
    best_points: Tensor
    best_gradients: Tensor
    best_losses: Tensor
    last_losses: Tensor
    step_sizes: Tensor
    rises: Tensor
    checked_losses: Tensor
    halved: Tensor

    @classmethod
    def begin(cls, images: Tensor, labels: Tensor, rivals: Tensor, points: Tensor, step_size: float) -> _Search:
        """Start at ``points``, with nothing seen yet."""
        count = len(images)
        # the reference compares the first step's loss with zero, not with the start's; so this begins as zero
        losses = images.new_zeros(count)
        return cls(
            torch.arange(count, device=images.device),
            *(images, labels, rivals, points, points),
            *(losses, images, images, images, losses, losses),
            step_sizes=torch.full_like(losses, step_size),
            rises=torch.zeros_like(losses),
            checked_losses=losses,
            halved=torch.ones_like(losses, dtype=torch.bool),
        )

    def keep(self, chosen: Tensor) -> None:
        """Drop all but the images at the positions ``chosen``."""
        for entry in fields(self):
            setattr(self, entry.name, getattr(self, entry.name).index_select(0, chosen))

    def remember(self, first: bool) -> None:
        """Note the current points where they are the best so far."""
        if first:
            self.best_points, self.best_gradients = self.points, self.gradients
            self.best_losses = self.checked_losses = self.losses
            return
        self.rises = self.rises + (self.losses > self.last_losses)
        self.last_losses = self.losses
        better = self.losses > self.best_losses
        self.best_losses = torch.where(better, self.losses, self.best_losses)
        self._replace("best_points", "points", better)
        self._replace("best_gradients", "gradients", better)

    def check(self, enough: float) -> None:
        """Halve the step of images that rose in at most ``enough`` steps or got no better, back at their best point."""
        stuck = ~self.halved & (self.checked_losses >= self.best_losses)
        self.halved = stuck | (self.rises <= enough)
        self.checked_losses, self.rises = self.best_losses, torch.zeros_like(self.rises)
        self.step_sizes = torch.where(self.halved, self.step_sizes / 2, self.step_sizes)
        self._replace("points", "best_points", self.halved)
        self._replace("gradients", "best_gradients", self.halved)

    def _replace(self, old: str, new: str, where: Tensor) -> None:
        setattr(self, old, torch.where(where.view(-1, 1, 1, 1), getattr(self, new), getattr(self, old)))


def checkpoints(steps: int) -> dict[int, int]:
    """List after which steps the step size is judged, with the number of steps since the last time.

    The first window is 22 % of the steps, each next one 3 % of the steps shorter, down to 6 %.

    Args:
        steps: steps of a run.
    """
    window, shrink, shortest = (max(int(share * steps), 1) for share in (0.22, 0.03, 0.06))
    windows, step = {}, window
    while step < steps:
        windows[step] = window
        window = max(window - shrink, shortest)
        step += window
    return windows


def _length(vectors: Tensor) -> Tensor:
    return vectors.square().flatten(1).sum(dim=1).sqrt().view(-1, 1, 1, 1)


def _unit(vectors: Tensor) -> Tensor:
    return vectors / (_length(vectors) + TINY)


@cache
def _warn_once(note: str) -> None:
    logger.warning(note)


APGD_CE = APGD()
"""AutoAttack's first attack: 100 steps on the cross-entropy."""

APGD_DLR = APGD(loss="dlr")
"""100 steps on the difference of logits ratio, which large logits cannot blind."""

APGD_T = APGD(loss="dlr_targeted")
"""AutoAttack's second attack: 100 steps towards each of the 9 most likely wrong classes."""
