"""Checks of the gradients that white-box attacks rely on: they must exist and point uphill."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import torch
from torch import Tensor

from bmtard_hooks.attacks.gradient import PGD
from bmtard_hooks.attacks.losses import Objective, cross_entropy, margin
from bmtard_hooks.attacks.pgd import PGDSettings, draw_noise_by_image, pgd
from bmtard_hooks.evaluation.attacking import attack_batch
from bmtard_hooks.evaluation.checks.context import Context, Finding, percent

VANISHED = 1e-10
MOST_VANISHED = 0.01
ASCENT_STEPS = 10
LEAST_RISING = 0.99
LOSSES: dict[str, Callable[[Tensor], Objective]] = {"cross-entropy": cross_entropy, "margin": margin}


def gradients_exist(context: Context) -> Finding:
    """Check that the gradient of both losses is alive at clean images and at random points of their balls.

    Counts images whose largest entry of the gradient is below 1e-10 in size. Large logits kill that of the
    cross-entropy, which float32 rounds to zero, and leave the margin's alone; rounding the input kills both.

    Reference:
        Athalye et al. 2018, Obfuscated Gradients Give a False Sense of Security (shattered and vanishing gradients);
        Carlini et al. 2019, On Evaluating Adversarial Robustness.
    """
    start = PGDSettings(context.eps, context.eps, 0, context.norm, "uniform", clip_start=True)
    vanished: dict[str, list[Tensor]] = {}
    with context.asking() as target:
        for indices in context.batches():
            images, labels = context.batch(indices)
            key = (context.runner.seed, "check:gradients")
            noise = draw_noise_by_image(indices.tolist(), images.shape[1:], start, *key)
            points = {"": images, " at a random start": pgd(target, images, margin(labels), start, noise=noise)}
            for loss, make in LOSSES.items():
                for place, where in points.items():
                    _, _, gradient = target.gradient(where, make(labels))
                    dead = ~(gradient.flatten(1).abs().amax(dim=1) >= VANISHED)
                    vanished.setdefault(loss + place, []).append(dead)
    shares = {name: float(torch.cat(parts).float().mean()) for name, parts in vanished.items()}
    numbers = ", ".join(f"{name} {percent(share)}" for name, share in shares.items())
    evidence = f"share of {len(context.chosen)} images without a gradient: {numbers}"
    return Finding(max(shares.values()) <= MOST_VANISHED, evidence)


def loss_rises(context: Context) -> Finding:
    """Check that ten steps of PGD end at a higher loss than they started from, for both losses.

    Reference:
        Pintor et al. 2022, Indicators of Attack Failure.
    """
    rising = {}
    for name, loss in {"cross-entropy": "ce", "margin": "margin"}.items():
        attack = PGD(eps=context.eps, norm=context.norm, step_size=context.eps / 4, steps=ASCENT_STEPS, loss=loss)
        rising[name] = np.concatenate([_rises(context, attack, name, indices) for indices in context.batches()])
    numbers = ", ".join(f"the {name} of {percent(bits)}" for name, bits in rising.items())
    evidence = f"{ASCENT_STEPS} steps raise {numbers} of {len(context.chosen)} images"
    return Finding(min(float(bits.mean()) for bits in rising.values()) >= LEAST_RISING, evidence)


def _rises(context: Context, attack: PGD, name: str, indices: np.ndarray) -> np.ndarray:
    runner = context.runner
    images, labels = context.batch(indices)
    seen: list[Tensor] = []

    def forward(pixels: Tensor) -> Tensor:
        logits = runner.model(pixels)
        if not seen:
            seen.append(logits.detach())  # the first pass of the search is at its start
        return logits

    key = (runner.seed, f"check:ascent {name}")
    found = attack_batch(attack, runner.model, images, labels, indices.tolist(), *key, forward=forward)
    objective = LOSSES[name](labels)
    with context.asking() as target:
        ends = target.scores(found.images)
    return (objective(ends) > objective(seen[0])).cpu().numpy()
