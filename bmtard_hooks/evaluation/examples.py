"""A few adversarial images for the report's figure."""

from __future__ import annotations

import numpy as np
from torch import Tensor

from bmtard_hooks.attacks.choosing import AttackPlan
from bmtard_hooks.evaluation.attacking import attack_batch
from bmtard_hooks.evaluation.report import Example, RobustnessReport
from bmtard_hooks.evaluation.runner import AttackRunner

CHEAP = 300
"""Passes per image up to which an attack is worth repeating for a figure."""


def make_examples(runner: AttackRunner, plan: AttackPlan, report: RobustnessReport, count: int) -> list[Example]:
    """Repeat the strongest cheap attack on the first images that it broke, or on the first correct ones if it broke none.

    Repeating is exact, because an attack's random numbers belong to the image, and needs nothing kept while running.

    Args:
        runner: of the evaluation.
        plan: its attacks.
        report: with the outcomes.
        count: number of images.

    Returns:
        At most ``count`` examples; none if no attack of the plan is cheap.
    """
    cheap = [
        name
        for name, outcome in report.outcomes.items()
        if name in plan.attacks and plan.attacks[name].passes(runner.num_classes) <= CHEAP and outcome.attacked.any()
    ]
    if not cheap or count == 0:
        return []
    costs = {attack: plan.attacks[attack].passes(runner.num_classes) for attack in cheap}
    name = max(cheap, key=lambda attack: (report.outcomes[attack].broken.sum(), costs[attack]))
    outcome = report.outcomes[name]
    candidates = outcome.broken if outcome.broken.any() else outcome.attacked
    indices = np.flatnonzero(candidates)[:count]
    images = runner.pixels(indices)
    batch = attack_batch(
        plan.attacks[name],
        runner.model,
        images,
        runner.labels_of(indices),
        indices.tolist(),
        runner.seed,
        name,
        forward=runner.forward,
    )
    return [
        Example(
            index=int(index),
            attack=name,
            label=int(runner.labels[index]),
            prediction=int(batch.predictions[position]),
            clean=_bytes(images[position]),
            adversarial=_bytes(batch.images[position]),
        )
        for position, index in enumerate(indices)
    ]


def _bytes(image: Tensor) -> np.ndarray:
    return (image * 255).round().byte().cpu().contiguous().numpy()
