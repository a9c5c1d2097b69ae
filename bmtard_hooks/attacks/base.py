"""What every evaluation attack is: settings, one call, and random numbers that belong to the image."""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence
from dataclasses import dataclass, fields, replace
from typing import Any, ClassVar

import torch
from torch import Tensor

from bmtard_hooks.attacks.losses import Objective, pixel_gradient
from bmtard_hooks.randomness import keyed_generator


class NonFiniteLogits(ValueError):
    """The attacked model answered NaN or infinity, so neither "robust" nor "broken" would be true."""


class Target:
    """The attacked model as an attack sees it: pixels in, logits out, every pass counted.

    Args:
        forward: maps pixels ``(B, C, H, W)`` in [0, 1] to logits ``(B, K)``. Its mode is the caller's business, see
            ``attack_mode``.
        on_pass: called after every forward pass with the number of image passes it stands for (twice the images where a
            backward pass follows), for a progress bar.

    Attributes:
        forwards: images passed forward so far.
        backwards: images passed backward so far.
        on_pass: as given.
    """

    def __init__(self, forward: Callable[[Tensor], Tensor], on_pass: Callable[[int], None] | None = None) -> None:
        self._forward = forward
        self.on_pass = on_pass
        self._finite: Tensor | None = None
        self.forwards = 0
        self.backwards = 0

    def __call__(self, images: Tensor) -> Tensor:
        """Classify, with gradients if the caller enabled them and ``images`` asks for them."""
        logits = self._forward(images)
        if images.requires_grad and torch.is_grad_enabled() and not logits.requires_grad:
            # A model that cuts its gradient has the gradient zero, which the attacks must survive and the checks report.
            logits = logits + (0 * images).flatten(1).sum(dim=1, keepdim=True)
        self.forwards += len(images)
        if logits.requires_grad:
            self.backwards += len(images)
        finite = torch.isfinite(logits.detach()).all()
        self._finite = finite if self._finite is None else self._finite & finite
        if self.on_pass is not None:
            self.on_pass(len(images) * (2 if logits.requires_grad else 1))
        return logits

    def scores(self, images: Tensor) -> Tensor:
        """Classify without gradients; returns logits ``(B, K)``."""
        with torch.no_grad():
            return self(images)

    def gradient(self, images: Tensor, objective: Objective) -> tuple[Tensor, Tensor, Tensor]:
        """Differentiate an objective with respect to the pixels.

        Args:
            images: ``(B, C, H, W)``; not changed.
            objective: maps logits to ``(B,)``.

        Returns:
            Detached logits ``(B, K)``, objective ``(B,)`` and gradient ``(B, C, H, W)`` of the objective's sum.
        """
        with torch.enable_grad():
            pixels = images.detach().requires_grad_(True)
            logits = self(pixels)
            values = objective(logits)
            gradient = pixel_gradient(values.sum(), pixels)
        return logits.detach(), values.detach(), gradient

    def require_finite(self) -> None:
        """Raise ``NonFiniteLogits`` if any answer so far was NaN or infinite; waits for the device."""
        if self._finite is not None and not bool(self._finite):
            raise NonFiniteLogits(
                "the model gave logits that are NaN or infinite under attack; counting them as broken would overstate the "
                "attack: evaluate in float32, and check weights and normalisation"
            )


class Draws:
    """Random numbers for a batch, each image's from a generator of its own.

    So batch size, order and process count cannot change what an image gets.

    Args:
        indices: position of each image in its data set, ``B`` of them.
        *key: what the numbers are for, for example ``(seed, "square")``.
    """

    def __init__(self, indices: Sequence[int], *key: int | str) -> None:
        self.indices = [int(index) for index in indices]
        self.key = key

    def __len__(self) -> int:
        return len(self.indices)

    def __call__(self, sample: Callable[[torch.Generator], Tensor], *purpose: int | str) -> Tensor:
        """Draw for every image.

        Args:
            sample: draws one image's numbers from the generator given to it, always the same shape.
            *purpose: tells several draws of one attack apart, for example ``("start", restart)``.

        Returns:
            ``(B, …)`` on the CPU, the samples stacked.
        """
        return torch.stack([sample(keyed_generator(*self.key, *purpose, index)) for index in self.indices])

    def subset(self, chosen: Tensor) -> Draws:
        """Keep some of the images: ``chosen`` is a mask ``(B,)`` or positions."""
        positions = chosen.nonzero().flatten() if chosen.dtype == torch.bool else chosen
        return Draws([self.indices[position] for position in positions.tolist()], *self.key)


@dataclass
class Found:
    """What an attack found.

    Args:
        images: ``(B, C, H, W)``, the attack's answer, within its ball and [0, 1].
        broken_on_the_way: ``(B,)`` True where some iterate was misclassified, for attacks that return the last one.
        queries: ``(B,)`` forward passes spent on each image until it was broken or the budget was spent.
    """

    images: Tensor
    broken_on_the_way: Tensor | None = None
    queries: Tensor | None = None


@dataclass(frozen=True, kw_only=True)
class Attack(ABC):
    """Settings of an evaluation attack; calling it searches for adversarial images.

    Args:
        eps: radius in pixel scale, ``(0, 1]`` for L-infinity, positive for L2.
        norm: ``linf`` or ``l2``.
        images: attack only the first so many images of the data set; None for all. For attacks that cost too much.

    Raises:
        ValueError: if a setting is outside its range; the message names it and the fix.
    """

    eps: float = 8 / 255
    norm: str = "linf"
    images: int | None = None

    norms: ClassVar[tuple[str, ...]] = ("linf",)
    access: ClassVar[str] = "gradients"
    """What it uses of the model: ``gradients``, ``scores``, ``labels`` or ``transfer`` (another model's gradients)."""

    foreign: ClassVar[bool] = False
    """It is somebody else's code, from which the model must be guarded more closely; see ``attack_mode``."""

    def __post_init__(self) -> None:
        if self.norm not in self.norms:
            raise ValueError(f"norm={self.norm!r}: {type(self).__name__} knows {', '.join(self.norms)}")
        if not math.isfinite(self.eps) or self.eps <= 0:
            raise ValueError(
                f"eps={self.eps} must be a positive number: pixels are in [0, 1], the paper's eps is 8/255"
            )
        if self.norm == "linf" and self.eps > 1:
            raise ValueError(f"eps={self.eps} is outside (0, 1]: pixels are in [0, 1], pass {self.eps:g}/255")
        if self.images is not None and (self.images != int(self.images) or self.images < 1):
            raise ValueError(f"images={self.images}: pass a positive number of images, or None for all")

    @abstractmethod
    def __call__(self, target: Target, images: Tensor, labels: Tensor, draws: Draws) -> Found:
        """Attack a batch of correctly classified images.

        Runs inside ``attack_mode``. Must not depend on which images share a batch.

        Args:
            target: the model.
            images: ``(B, C, H, W)`` float32 in [0, 1]; must not be changed.
            labels: ``(B,)`` true classes.
            draws: the images' random numbers.
        """

    @abstractmethod
    def passes(self, num_classes: int) -> int:
        """Count the forward plus backward passes that an image costs at most, for estimates and for ordering."""

    def images_at_once(self, batch_size: int) -> int:
        """Count the images of a batch whose forwards are to hold ``batch_size`` images; fewer if each has several."""
        return batch_size

    def notes(self, num_classes: int) -> list[str]:
        """Tell what a reader of the report must know, for example that a loss was replaced for want of classes."""
        return []

    def replace(self, **changes: Any) -> Attack:
        """Copy with some settings changed."""
        return replace(self, **changes)

    def identity(self) -> dict[str, Any] | None:
        """Say, as plain JSON values, what outcomes depend on besides the model; None if nobody can know.

        Outcomes kept on disk are used again only for the same identity.
        """
        return self.settings()

    def settings(self) -> dict[str, Any]:
        """Every setting as plain JSON values, with the attack's class."""
        values = {entry.name: getattr(self, entry.name) for entry in fields(self)}
        return {"class": type(self).__name__, **values}


def check_count(name: str, value: int, least: int = 1) -> None:
    """Raise ``ValueError`` unless ``value`` is a whole number of at least ``least``."""
    if value != int(value) or value < least:
        raise ValueError(f"{name}={value}: pass a whole number, {least} or more")


def distance(adversarial: Tensor, images: Tensor, norm: str) -> Tensor:
    """Measure how far images moved, ``(B,)``, in ``linf`` or ``l2``."""
    moved = (adversarial - images).flatten(1)
    return moved.abs().amax(dim=1) if norm == "linf" else moved.norm(dim=1)
