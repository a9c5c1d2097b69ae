"""Standard adversarial training."""

from __future__ import annotations

from collections.abc import Mapping

import torch.nn.functional as F

from bmtard_hooks.methods.base import Batch, Classifier, LossOutput, Method, register
from bmtard_hooks.state import DistillationState


@register("sat")
class SAT(Method):
    """Cross-entropy on adversarial images alone, averaged over the batch.

    The attack maximises the same cross-entropy from a uniform start clipped to [0, 1]. The student is in eval mode during
    the attack unless ``attack_train_mode`` is set: the original TensorFlow code attacks in training mode.

    Reference: Madry et al., Towards Deep Learning Models Resistant to Adversarial Attacks, ICLR 2018.
    """

    attack = {"start": "uniform", "clip_start": True}
    milestones = (40 / 80, 60 / 80)

    @property
    def part_weights(self) -> dict[str, float]:
        """One part."""
        return {"robust": 1.0}

    def loss_parts(
        self, student: Classifier, teachers: Mapping[str, Classifier], batch: Batch, state: DistillationState
    ) -> LossOutput:
        """Cross-entropy with the labels."""
        return LossOutput({"robust": F.cross_entropy(student(batch["adv_pixel_values"]), batch["labels"])})
