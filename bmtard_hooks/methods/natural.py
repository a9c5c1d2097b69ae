"""Ordinary training on clean images."""

from __future__ import annotations

from collections.abc import Mapping

import torch.nn.functional as F

from bmtard_hooks.methods.base import Batch, Classifier, LossOutput, Method, register
from bmtard_hooks.state import DistillationState


@register("natural")
class Natural(Method):
    """Cross-entropy on clean images, averaged over the batch: how a clean teacher is made."""

    attack = None
    milestones = (75 / 100, 90 / 100)

    @property
    def part_weights(self) -> dict[str, float]:
        """One part."""
        return {"clean": 1.0}

    def loss_parts(
        self, student: Classifier, teachers: Mapping[str, Classifier], batch: Batch, state: DistillationState
    ) -> LossOutput:
        """Cross-entropy with the labels."""
        return LossOutput({"clean": F.cross_entropy(student(batch["pixel_values"]), batch["labels"])})
