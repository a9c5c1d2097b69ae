"""FGSM, PGD and CW with an L-infinity bound as evaluation attacks: presets of the one PGD engine."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import ClassVar

import torch
from torch import Tensor

from bmtard_hooks.attacks.base import Attack, Draws, Found, Target, check_count
from bmtard_hooks.attacks.losses import bounded_margin, cross_entropy
from bmtard_hooks.attacks.pgd import PGDSettings, draw_noise, pgd

LOSSES = ("ce", "margin")


@dataclass(frozen=True, kw_only=True)
class PGD(Attack):
    """Projected gradient descent that answers with its last iterate, as the paper's tables do.

    The engine is our own because torchattacks' PGD, bit-identical on the same noise, gives image k of every batch the
    same noise, and its only L-infinity margin loss (``UPGD``) dies when the logits are shifted.

    Args:
        eps: see ``Attack``.
        norm: see ``Attack``.
        images: see ``Attack``.
        step_size: length of a step in pixel scale; None is ``eps``.
        steps: number of steps.
        start: ``uniform`` from the ball, ``normal`` (0.001 * N(0, 1)), or ``zero``.
        loss: ``ce``, or ``margin``: the best wrong logit minus the true one, ascended until it exceeds ``kappa``.
        kappa: see ``loss``; 50 never stops at any usual scale of logits.
        restarts: independent starts; an image is answered with the first that breaks it.
    """

    step_size: float | None = 2 / 255
    steps: int = 20
    start: str = "uniform"
    loss: str = "ce"
    kappa: float = 50.0
    restarts: int = 1

    norms: ClassVar[tuple[str, ...]] = ("linf", "l2")

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.loss not in LOSSES:
            raise ValueError(f"loss={self.loss!r} is unknown: choose one of {', '.join(LOSSES)}")
        check_count("restarts", self.restarts)
        self.search()

    def search(self) -> PGDSettings:
        """Describe one run of the engine."""
        step_size = self.eps if self.step_size is None else self.step_size
        return PGDSettings(self.eps, step_size, self.steps, self.norm, self.start, clip_start=True)

    def __call__(self, target: Target, images: Tensor, labels: Tensor, draws: Draws) -> Found:
        """See ``Attack``."""
        found = self._once(target, images, labels, draws, 0)
        for restart in range(1, self.restarts):
            left = (target.scores(found.images).argmax(dim=1) == labels).nonzero().flatten()
            if not len(left):
                break
            again = self._once(target, images[left], labels[left], draws.subset(left), restart)
            found.images[left] = again.images
            if found.broken_on_the_way is not None and again.broken_on_the_way is not None:
                found.broken_on_the_way[left] |= again.broken_on_the_way
        return found

    def _once(self, target: Target, images: Tensor, labels: Tensor, draws: Draws, restart: int) -> Found:
        settings = self.search()
        noise = draws(lambda generator: draw_noise((1, *images.shape[1:]), settings, generator)[0], "start", restart)
        broken = torch.zeros(len(images), dtype=torch.bool, device=images.device)

        def note(logits: Tensor) -> None:
            broken.logical_or_(logits.argmax(dim=1) != labels)

        objective = cross_entropy(labels) if self.loss == "ce" else bounded_margin(labels, self.kappa)
        return Found(pgd(target, images, objective, settings, noise=noise, observe=note), broken)

    def passes(self, num_classes: int) -> int:
        """See ``Attack``."""
        return self.restarts * (2 * self.steps + 1)


FGSM = PGD(step_size=None, steps=1, start="zero")
"""One step of the radius' size from the image itself (Goodfellow et al. 2015)."""

FGSM_RANDOM_START = replace(FGSM, start="uniform")
"""FGSM from a random point of the ball, as the script the authors point to runs it; weaker by many points."""

PGD_SAT = PGD()
"""20 steps of 2/255 from a random start: the evaluation of Madry et al. with the paper's numbers."""

PGD_TRADES = PGD(step_size=0.003)
"""20 steps of 0.003: a pixel cannot cross the ball, so this is a weaker attack, not the KL attack of TRADES."""

CW_INF = PGD(steps=30, loss="margin")
"""30 steps of 2/255 on the margin loss with kappa 50; torchattacks' ``CW`` is the L2 attack."""
