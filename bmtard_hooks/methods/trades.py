"""TRADES: accuracy plus a penalty on predictions that change under attack."""

from __future__ import annotations

from collections.abc import Mapping

import torch
import torch.nn.functional as F

from bmtard_hooks.attacks.losses import Objective, divergence
from bmtard_hooks.functional import kl_between, soften
from bmtard_hooks.methods.base import Batch, Classifier, LossOutput, Method, register
from bmtard_hooks.state import DistillationState


@register("trades")
class TRADES(Method):
    """Cross-entropy on clean images plus beta times the KL between the clean and the adversarial prediction.

    Formula: ``L = CE(S(x), y) + beta * KL(S(x), S(x_adv))``, the KL summed over classes, both averaged over the batch. The
    gradient flows into both predictions. The attack maximises the same KL with a step of 0.007.

    Reference: Zhang et al., Theoretically Principled Trade-off between Robustness and Accuracy, ICML 2019.
    """

    attack = {"step_size": 0.007}
    milestones = (74 / 76,)

    @property
    def part_weights(self) -> dict[str, float]:
        """The clean part counts once, the robust part ``trades_beta`` times."""
        return {"clean": 1.0, "robust": self.config.trades_beta}

    def attack_objective(
        self, student: Classifier, teachers: Mapping[str, Classifier], batch: Batch, state: DistillationState
    ) -> Objective:
        """Move the prediction away from the clean one."""
        with torch.no_grad():
            return divergence(soften(student(batch["pixel_values"])))

    def loss_parts(
        self, student: Classifier, teachers: Mapping[str, Classifier], batch: Batch, state: DistillationState
    ) -> LossOutput:
        """Forward in the authors' order, which BatchNorm's running statistics see: clean, adversarial, clean."""
        cross_entropy = F.cross_entropy(student(batch["pixel_values"]), batch["labels"])
        adv_logits = student(batch["adv_pixel_values"])
        clean_logits = student(batch["pixel_values"])
        return LossOutput({"clean": cross_entropy, "robust": kl_between(adv_logits, clean_logits).mean()})
