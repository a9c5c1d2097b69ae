"""Checks that attack: more radius, more steps or another loss must not change the picture, and noise must not suffice."""

from __future__ import annotations

import math
from dataclasses import dataclass, replace
from itertools import pairwise
from typing import ClassVar

import numpy as np
import torch
from torch import Tensor

from bmtard_hooks.attacks.apgd import APGD
from bmtard_hooks.attacks.base import Attack, Draws, Found, Target, check_count, distance
from bmtard_hooks.attacks.gradient import PGD
from bmtard_hooks.attacks.losses import bounded_margin, cross_entropy
from bmtard_hooks.attacks.pgd import draw_noise, pgd, project_l2
from bmtard_hooks.evaluation.attacking import InvalidExamples, attack_batch, require_valid
from bmtard_hooks.evaluation.checks.context import (
    Context,
    Finding,
    NotRun,
    aligned,
    not_above,
    percent,
    tolerance,
)

LARGE_RADII = (64 / 255, 128 / 255)
LADDER = (0.25, 0.5, 1.0, 2.0)
LONG = 100
RESTARTS = 5
CONVERGED = 0.01
LOSS_GAP = 0.10
NOISES = 10
HANDFUL = 16
STEP_MARKS = (1, 5, 10, 20, 50, 100)


@dataclass(frozen=True, kw_only=True)
class TimedPGD(PGD):
    """PGD that also tells when: ``queries`` are the forwards until an iterate was misclassified first, or all of them.

    Args:
        eps: see ``PGD``; so are the other settings. One start only.
    """

    def __call__(self, target: Target, images: Tensor, labels: Tensor, draws: Draws) -> Found:
        """See ``Attack``."""
        settings = self.search()
        noise = draws(lambda generator: draw_noise((1, *images.shape[1:]), settings, generator)[0], "start", 0)
        queries = torch.zeros(len(images), dtype=torch.int64, device=images.device)
        broken = torch.zeros_like(queries, dtype=torch.bool)

        def note(logits: Tensor) -> None:
            queries.add_(~broken)
            broken.logical_or_(logits.argmax(dim=1) != labels)

        objective = cross_entropy(labels) if self.loss == "ce" else bounded_margin(labels, self.kappa)
        return Found(pgd(target, images, objective, settings, noise=noise, observe=note), broken, queries)


@dataclass(frozen=True, kw_only=True)
class Noise(Attack):
    """Random points of the ball's surface, corners for L-infinity; the answer is the first that is misclassified.

    Args:
        eps: see ``Attack``.
        norm: see ``Attack``.
        images: see ``Attack``.
        tries: points per image.
    """

    tries: int = NOISES

    norms: ClassVar[tuple[str, ...]] = ("linf", "l2")
    access: ClassVar[str] = "labels"

    def __post_init__(self) -> None:
        super().__post_init__()
        check_count("tries", self.tries)

    def __call__(self, target: Target, images: Tensor, labels: Tensor, draws: Draws) -> Found:
        """See ``Attack``."""
        answers = images.clone()
        left = torch.arange(len(images), device=images.device)
        for attempt in range(self.tries):
            if not len(left):
                break
            normal = draws.subset(left)(lambda g: torch.randn(images.shape[1:], generator=g), attempt).to(images)
            if self.norm == "linf":
                points = (images[left] + self.eps * normal.sign()).clamp(0, 1)
            else:
                length = distance(normal, torch.zeros_like(normal), "l2").view(-1, 1, 1, 1)
                points = project_l2(images[left] + self.eps * normal / length, images[left], self.eps)
            answers[left] = points
            left = left[target.scores(points).argmax(dim=1) == labels[left]]
        return Found(answers)

    def passes(self, num_classes: int) -> int:
        """See ``Attack``."""
        return self.tries


def large_radii(eps: float, norm: str, pixels: int) -> tuple[float, ...]:
    """Choose radii at which no classifier can be right: at the last, every pixel can be made grey.

    Args:
        eps: the evaluation's radius in pixel scale.
        norm: for ``linf`` 64/255 (if that is twice ``eps`` or more) and 128/255; for ``l2`` these times the root of the
            number of pixels.
        pixels: numbers in an image.
    """
    factor = math.sqrt(pixels) if norm == "l2" else 1.0
    radii = tuple(radius * factor for radius in LARGE_RADII)
    return radii if radii[0] >= 2 * eps else radii[1:]


def falls_to_large_radii(context: Context) -> Finding:
    """Check that an attack without a serious bound wins: at most chance is left, and nothing at the largest radius.

    The attack is Auto-PGD with the difference of logits ratio, 100 steps: it chooses its own step size, large logits
    cannot blind it (A3 and A7 ask whether they blind the cross-entropy), and broken images leave it at once. What fell
    in the smaller ball lies in the larger one too, so only the rest is attacked there.

    Reference:
        Athalye et al. 2018, Obfuscated Gradients Give a False Sense of Security; Carlini et al. 2019, On Evaluating
        Adversarial Robustness.
    """
    radii = large_radii(context.eps, context.norm, context.runner.pixel_count)
    left, parts, passed = context.clean, [], True
    for radius in radii:
        attack = APGD(eps=radius, norm=context.norm, loss="dlr", steps=LONG, images=context.count)
        remaining = np.flatnonzero(left) if radius > radii[0] else context.require_images()
        outcome = context.run(attack, f"apgd eps={context.shown(radius)}", remaining)
        left = left & context.left_by(outcome)
        bound = 0.0 if radius == radii[-1] else context.chance
        passed = passed and float(left.mean()) <= bound
        parts.append(f"eps={context.shown(radius)} leaves {percent(left)} (at most {percent(bound)})")
    return Finding(passed, f"{'; '.join(parts)} of {context.count} images")


def falls_with_radius(context: Context) -> Finding:
    """Check that the accuracy under PGD never rises with the radius, from a quarter of ``eps`` to twice it.

    Steps are a quarter of the radius throughout. Writes the sweep ``accuracy against eps``, in units of 1/255.
    """
    attack, known = context.baseline("ce")
    bits = {0.0: context.clean}
    for factor in LADDER:
        radius = min(1.0, factor * context.eps) if context.norm == "linf" else factor * context.eps
        other = attack.replace(eps=radius, step_size=radius / 4)
        outcome = known if factor == 1 else context.run(other, f"pgd eps={context.shown(radius)}")
        bits[radius] = context.left_by(outcome)
    curve = [(255 * radius, float(left.mean()), context.count) for radius, left in bits.items()]
    context.sweeps["accuracy against eps"] = curve
    rows = list(bits.values())
    passed = all(not_above(larger, smaller) for smaller, larger in pairwise(rows))
    numbers = ", ".join(f"{percent(left)} at {context.shown(radius)}" for radius, left in bits.items())
    return Finding(passed, f"PGD leaves {numbers} of {context.count} images")


def has_converged(context: Context) -> Finding:
    """Check that 100 steps, or five starts instead of one, change the accuracies by at most a point.

    The starts after the first only attack what the first left. Writes the sweep ``accuracy against steps``: an image counts
    as robust after k steps if none of the iterates so far was misclassified.
    """
    parts, passed = [], True
    for loss, name in (("ce", "PGD"), ("margin", "CW")):
        attack, known = context.baseline(loss)
        short = context.left_by(known)
        kind = TimedPGD if loss == "ce" else PGD
        settings = {key: value for key, value in attack.settings().items() if key != "class"}
        long = context.run(kind(**{**settings, "steps": LONG, "restarts": 1}), f"{name.lower()}-{LONG}")
        left = context.left_by(long)
        passed = passed and _within(short, left)
        parts.append(f"{name}-{LONG} leaves {percent(left)}, {name}-{attack.steps} {percent(short)}")
        if loss == "ce":
            context.sweeps["accuracy against steps"] = _steps_curve(context, long.broken_on_the_way, long.queries)
            again = replace(attack, restarts=RESTARTS - 1)
            more = context.run(again, f"pgd restarts={RESTARTS - 1}", np.flatnonzero(short))
            united = short & context.left_by(more)
            passed = passed and _within(short, united)
            parts.append(f"{RESTARTS} starts leave {percent(united)}")
    return Finding(passed, f"{'; '.join(parts)} of {context.count} images")


def losses_agree(context: Context) -> Finding:
    """Check that cross-entropy is not far weaker than the margin: over 10 points mean that large logits blind it.

    Reference:
        Carlini and Wagner 2017, Towards Evaluating the Robustness of Neural Networks.
    """
    entropy, lead = _columns_or_runs(context, "ce"), _columns_or_runs(context, "margin")
    entropy, lead = aligned(entropy, lead)
    gap = float(entropy.mean() - lead.mean())
    evidence = f"PGD leaves {percent(entropy)} and CW {percent(lead)} of {len(lead)} images"
    return Finding(gap <= LOSS_GAP, evidence)


def keeps_what_it_finds(context: Context) -> Finding:
    """Check that attacks do not pass through a misclassified point and answer with another.

    Reference:
        Pintor et al. 2022, Indicators of Attack Failure.
    """
    parts, passed = [], True
    for loss, name in (("ce", "PGD"), ("margin", "CW")):
        _, outcome = context.baseline(loss)
        last = context.left_by(outcome)
        if outcome.broken_on_the_way is None:
            raise NotRun(f"{name} did not tell which earlier iterates were misclassified")
        best = last & ~outcome.broken_on_the_way[: context.count]
        passed = passed and not_above(last, best)
        parts.append(f"{name}'s last iterates leave {percent(last)}, its best ones {percent(best)}")
    return Finding(passed, f"{'; '.join(parts)} of {context.count} images")


def noise_is_weaker(context: Context) -> Finding:
    """Check that the best of ten random corners of the ball breaks no more than PGD.

    Reference:
        Carlini et al. 2019, On Evaluating Adversarial Robustness.
    """
    _, known = context.baseline("ce")
    noise = Noise(eps=context.eps, norm=context.norm, images=context.count)
    guided, blind = context.left_by(known), context.left_by(context.run(noise, "noise"))
    evidence = f"{NOISES} random corners leave {percent(blind)}, PGD {percent(guided)} of {context.count} images"
    return Finding(not_above(guided, blind), evidence)


def examples_are_valid(context: Context) -> Finding:
    """Check that adversarial images are finite pixels within the ball, with one verdict alone and in a batch."""
    indices = context.require_images()[:HANDFUL]
    images, labels = context.batch(indices)
    attack = PGD(eps=context.eps, norm=context.norm, step_size=context.eps / 4)
    runner = context.runner
    try:
        found = attack_batch(attack, runner.model, images, labels, indices.tolist(), runner.seed, "check:valid")
        require_valid(attack, found.images, images)
    except InvalidExamples as error:
        return Finding(False, str(error))
    with context.asking() as target:
        alone = torch.cat([target.scores(image[None]).argmax(dim=1) for image in found.images])
        together = target.scores(found.images).argmax(dim=1)
    differing = int((alone != together).sum())
    farthest = float(distance(found.images, images, context.norm).max())
    evidence = (
        f"{len(indices)} images moved by at most {farthest:.6f} (eps={context.eps:.6f}); {differing} of them have another "
        "class alone than in a batch"
    )
    return Finding(not differing, evidence)


def _columns_or_runs(context: Context, loss: str) -> np.ndarray:
    name = "pgd_sat" if loss == "ce" else "cw_inf"
    if context.outcome(name) is not None:
        return context.report.robust(name)
    return context.left_by(context.baseline(loss)[1])


def _within(first: np.ndarray, second: np.ndarray) -> bool:
    return abs(float(first.mean() - second.mean())) <= tolerance(first, second, CONVERGED)


def _steps_curve(
    context: Context, broken: np.ndarray | None, queries: np.ndarray | None
) -> list[tuple[float, float, int]]:
    if broken is None or queries is None:
        return []
    curve = [(0.0, float(context.clean.mean()), context.count)]
    for steps in STEP_MARKS:
        early = broken & ((queries <= steps + 1) | (steps == LONG))
        curve.append((float(steps), float((context.clean & ~early[: context.count]).mean()), context.count))
    return curve
