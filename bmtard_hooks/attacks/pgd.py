"""Projected gradient descent: one engine for training and evaluation, L-infinity and L2, any loss."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor

from bmtard_hooks.attacks.losses import MovingTarget, Objective, pixel_gradient
from bmtard_hooks.randomness import keyed_generator

NORMS = ("linf", "l2")
STARTS = ("normal", "uniform", "zero")
NORMAL_START_STD = 0.001


@dataclass(frozen=True)
class PGDSettings:
    """How PGD searches. The defaults are B-MTARD's inner loop.

    Args:
        eps: radius of the ball in pixel scale, ``(0, 1]`` for L-infinity and positive for L2.
        step_size: length of one step in the same unit, positive.
        steps: number of steps, 0 or more. With 0 only the random start is left.
        norm: ``linf`` or ``l2``.
        start: ``normal`` adds 0.001 * N(0, 1) to every pixel, ``uniform`` draws evenly from the ball, ``zero`` starts
            at the image.
        clip_start: clip the start to [0, 1] before the first forward. The paper's training attacks do not, its
            evaluation attacks do.
        train_mode: attack the model in the mode it is in (ARD) instead of eval mode.

    Raises:
        ValueError: if a value is outside its range; the message names it and the fix.
    """

    eps: float = 8 / 255
    step_size: float = 2 / 255
    steps: int = 10
    norm: str = "linf"
    start: str = "normal"
    clip_start: bool = False
    train_mode: bool = False

    def __post_init__(self) -> None:
        if self.norm not in NORMS:
            raise ValueError(f"norm={self.norm!r} is unknown: choose one of {', '.join(NORMS)}")
        if self.start not in STARTS:
            raise ValueError(f"start={self.start!r} is unknown: choose one of {', '.join(STARTS)}")
        _check_length("eps", self.eps, self.norm)
        _check_length("step_size", self.step_size, self.norm)
        if self.steps != int(self.steps) or self.steps < 0:
            raise ValueError(f"steps={self.steps} is not a number of steps: pass 0 (random start only), 1, 2, …")

    @property
    def falls_short(self) -> bool:
        """Whether all steps together are shorter than the radius, so that the ball's edge is out of reach of the image."""
        return self.steps > 0 and self.steps * self.step_size < self.eps * (1 - 1e-6)

    @property
    def ample_step(self) -> float:
        """A step with which all steps together are two and a half radii, as Madry et al. 2018 have it."""
        return 2.5 * self.eps / self.steps

    def replace(self, **changes: Any) -> PGDSettings:
        """Copy the settings with some of them changed; None leaves a value as it is."""
        return replace(self, **{name: value for name, value in changes.items() if value is not None})


def default_step(step: float, settings: PGDSettings) -> float:
    """Fit a step that was chosen for a radius of 8/255 in L-infinity to another norm.

    Args:
        step: the step.
        settings: ``norm`` and ``eps`` are read.

    Returns:
        In L-infinity the step itself, whatever the radius; in L2, where radii are larger, as large a share of the radius.
    """
    return step if settings.norm == "linf" else step * settings.eps / PGDSettings.eps


def _check_length(name: str, value: float, norm: str) -> None:
    if not math.isfinite(value) or value <= 0:
        raise ValueError(f"{name}={value} must be a positive number: pixels are in [0, 1], the paper's eps is 8/255")
    if norm == "linf" and value > 1:
        raise ValueError(f"{name}={value} is outside (0, 1]: pixels are in [0, 1], pass {value:g}/255")


def pgd(
    forward: Callable[[Tensor], Tensor],
    images: Tensor,
    objective: Objective | MovingTarget,
    settings: PGDSettings = PGDSettings(),
    *,
    noise: Tensor | None = None,
    generator: torch.Generator | None = None,
    gradient_scale: float = 1.0,
    observe: Callable[[Tensor], None] | None = None,
    observe_gradient: Callable[[Tensor], None] | None = None,
) -> Tensor:
    """Find images inside the ball around ``images`` that make the objective large.

    Formula, for L-infinity: ``x <- clip(x + step_size * sign(grad), x0 - eps, x0 + eps)`` within [0, 1], ``steps``
    times; for L2 the step goes along the gradient divided by its norm and is projected to the sphere's inside.
    Objectives are summed over the batch, so batch size cannot weaken the attack. See ``attack_mode`` for the model's mode.

    Args:
        forward: maps pixels ``(B, C, H, W)`` to logits ``(B, K)``.
        images: ``(B, C, H, W)`` in [0, 1].
        objective: maps logits to ``(B,)`` or their sum; made by ``losses.py`` or a user. A ``MovingTarget`` sees the
            images too.
        settings: radius, step, count, norm and start.
        noise: start noise as ``draw_noise`` returns it, instead of drawing it here.
        generator: source of the start noise; the global one if None.
        gradient_scale: constant factor on the objective against underflow in fp16; cannot change a sign step.
        observe: called with the logits of every iterate before its step, for methods that count or log.
        observe_gradient: called with the last step's gradient ``(B, C, H, W)``, for alarms: a gradient of NaN or zero ends in an
            image that looks right and was hardly attacked.

    Returns:
        ``(B, C, H, W)``, detached, in [0, 1] and within ``eps`` of ``images``, never NaN: a pixel whose gradient is NaN does
        not move in that step, and one whose gradient is infinite moves as after any huge one.
    """
    images = images.detach()
    noise = draw_noise(images.shape, settings, generator) if noise is None else noise
    size = NORMAL_START_STD if settings.start == "normal" else settings.eps
    adversarial = images + size * noise.to(images)
    if settings.clip_start:
        adversarial = adversarial.clamp(0, 1)
    if settings.norm == "linf":
        lower, upper = (images - settings.eps).clamp_min(0), (images + settings.eps).clamp_max(1)
    for step in range(settings.steps):
        logits = forward(adversarial.requires_grad_(True))
        if observe is not None:
            observe(logits.detach())
        value = objective.loss(logits, adversarial) if isinstance(objective, MovingTarget) else objective(logits)
        gradient = pixel_gradient(value.sum() * gradient_scale, adversarial)
        if observe_gradient is not None and step == settings.steps - 1:
            observe_gradient(gradient)
        adversarial = adversarial.detach()
        if settings.norm == "linf":
            adversarial = adversarial.add_(gradient.sign(), alpha=settings.step_size)
            adversarial = torch.minimum(torch.maximum(adversarial, lower), upper)
        else:
            adversarial = project_l2(adversarial + settings.step_size * _unit(gradient), images, settings.eps)
    return adversarial.detach() if settings.steps else _inside(adversarial, images, settings)


def draw_noise(shape: Sequence[int], settings: PGDSettings, generator: torch.Generator | None = None) -> Tensor:
    """Draw the start of the search, in units of the start's size, on the generator's device.

    Args:
        shape: ``(B, C, H, W)``.
        settings: ``start`` and ``norm`` are read.
        generator: source of the numbers; the global CPU one if None.

    Returns:
        ``shape`` float32: standard normal numbers for a normal start; for a uniform one numbers in [-1, 1) (L-infinity)
        or a point of the unit ball for every image (L2).
    """
    device = generator.device if generator is not None else torch.device("cpu")
    if settings.start == "zero":
        return torch.zeros(tuple(shape), device=device)
    if settings.start == "uniform" and settings.norm == "linf":
        return 2 * torch.rand(tuple(shape), generator=generator, device=device) - 1
    normal = torch.randn(tuple(shape), generator=generator, device=device)
    if settings.start == "normal":
        return normal
    radius = torch.rand(shape[0], generator=generator, device=device) ** (1 / normal[0].numel())
    return _unit(normal) * radius.view(-1, 1, 1, 1)


def draw_noise_by_image(
    indices: Iterable[int], shape: Sequence[int], settings: PGDSettings, *key: int | str
) -> Tensor:
    """Draw the start of every image from a key of its own, so that batch size and process count cannot change it.

    Args:
        indices: position of each image in its data set, ``B`` of them.
        shape: of one image, ``(C, H, W)``.
        settings: see ``draw_noise``.
        *key: what the noise is for, for example ``(seed, "eval")``.

    Returns:
        ``(B, C, H, W)`` float32 on the CPU, see ``draw_noise``.
    """
    blocks = [draw_noise((1, *shape), settings, keyed_generator(*key, int(index))) for index in indices]
    return torch.cat(blocks)


def project_l2(adversarial: Tensor, images: Tensor, eps: float) -> Tensor:
    """Bring images back into the L2 ball and then into [0, 1] (which cannot leave the ball again).

    Args:
        adversarial: ``(B, C, H, W)``.
        images: ``(B, C, H, W)`` in [0, 1], the centres.
        eps: radius.
    """
    delta = adversarial - images
    norm = delta.flatten(1).norm(dim=1).clamp_min(torch.finfo(delta.dtype).tiny).view(-1, 1, 1, 1)
    return (images + delta * (eps / norm).clamp_max(1)).clamp(0, 1)


def _unit(vectors: Tensor) -> Tensor:
    limits = torch.finfo(vectors.dtype)
    vectors = vectors.nan_to_num(0.0, limits.max, limits.min)  # infinity has a direction, NaN has none
    # Divided by the largest entry first, because squares of huge or tiny ones would overflow or vanish.
    largest = vectors.flatten(1).abs().amax(dim=1).clamp_min(limits.tiny)
    scaled = vectors / largest.view(-1, 1, 1, 1)
    norm = scaled.flatten(1).norm(dim=1).clamp_min(limits.tiny)
    return scaled / norm.view(-1, 1, 1, 1)


def _inside(adversarial: Tensor, images: Tensor, settings: PGDSettings) -> Tensor:
    if settings.norm == "l2":
        return project_l2(adversarial, images, settings.eps)
    return torch.minimum(torch.maximum(adversarial, images - settings.eps), images + settings.eps).clamp(0, 1)
