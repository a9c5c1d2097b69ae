"""ARD: a robust teacher's answer on clean images is the target on adversarial ones."""

from __future__ import annotations

from collections.abc import Mapping

import torch.nn.functional as F
from torch import Tensor

from bmtard_hooks.functional import kl_to_teacher, soften
from bmtard_hooks.methods.base import Batch, Classifier, LossOutput, Method, register
from bmtard_hooks.state import DistillationState


@register("ard")
class ARD(Method):
    """Adversarially robust distillation.

    Formula: ``L = alpha * T^2 * KL(T_robust(x; T), S(x_adv; T)) + (1 - alpha) * CE(S(x), y)``; the KL is summed over
    classes, both are averaged over the batch, the KL is multiplied by ``loss_scale``. The attack is PGD on the student's
    cross-entropy from a uniform start, with the student in training mode, so BatchNorm statistics move with every step.

    The authors' learning rate falls once, at half of the run: their second drop repeats the first. ``ard_second_drop``
    makes it fall again at three quarters.

    Reference: Goldblum et al., Adversarially Robust Distillation, AAAI 2020.
    """

    attack = {"start": "uniform", "train_mode": True}
    milestones = (100 / 200,)

    @property
    def teachers(self) -> tuple[str, ...]:
        """The robust one."""
        return ("robust",)

    @property
    def part_weights(self) -> dict[str, float]:
        """Split between teacher and labels by ``ard_alpha``."""
        return {"robust": self.config.ard_alpha, "clean": 1 - self.config.ard_alpha}

    @property
    def lr_drops(self) -> tuple[float, ...]:
        """Once at half of the run, and at three quarters if asked for."""
        return (*self.milestones, 150 / 200) if self.config.ard_second_drop else self.milestones

    def loss_parts(
        self, student: Classifier, teachers: Mapping[str, Classifier], batch: Batch, state: DistillationState
    ) -> LossOutput:
        """Forward in the authors' order: adversarial, clean."""
        temperature = self.config.ard_temperature
        adv_logits, clean_logits = student(batch["adv_pixel_values"]), student(batch["pixel_values"])
        target = soften(teachers["robust"](batch["pixel_values"]), temperature)
        kl = temperature**2 * self.loss_scale * kl_to_teacher(adv_logits / temperature, target, log_eps=0.0)
        cross_entropy = F.cross_entropy(clean_logits, batch["labels"], reduction="none")
        weight = self.image_weights(batch, state)
        return LossOutput({"robust": (weight * kl).mean(), "clean": (weight * cross_entropy).mean()})

    def image_weights(self, batch: Batch, state: DistillationState) -> Tensor | float:
        """Return the weight of every image, ``(B,)`` or a number."""
        return 1.0
