"""ABSLD: RSLAD with a teacher temperature for every class."""

from __future__ import annotations

import torch.nn.functional as F
from torch import Tensor

from bmtard_hooks.callbacks.base import DistillationCallback
from bmtard_hooks.callbacks.class_balance import ClassTemperatureBalance
from bmtard_hooks.functional import soften, sum_by_class
from bmtard_hooks.methods.base import Batch, register
from bmtard_hooks.methods.rslad import RSLAD
from bmtard_hooks.state import DistillationState

PARTS = ("robust", "clean")


@register("absld")
class ABSLD(RSLAD):
    """Anti-bias soft label distillation: classes that the student finds hard get sharper targets.

    Formula: RSLAD's with targets ``softmax(z_T(x) / d)``, ``d`` the temperature of the image's class, one for adversarial
    and one for clean images; see ``ClassTemperatureBalance`` for how they move. In the authors' code both targets share
    their memory, so each is divided by both temperatures, in the attack too: ``absld_targets=aliased``.

    Reference: Zhao et al., Improving Adversarial Robust Fairness via Anti-Bias Soft Label Distillation, NeurIPS 2024.
    """

    def per_class(self) -> dict[str, float]:
        """All temperatures start at 1."""
        return {f"{part}_temperature": 1.0 for part in PARTS}

    def targets(self, teacher_logits: Tensor, batch: Batch, state: DistillationState) -> tuple[Tensor, Tensor]:
        """Soften the teacher's answer by the temperature of each image's class."""
        robust, clean = (
            state.per_class[f"{part}_temperature"][batch["labels"], None].to(teacher_logits.dtype) for part in PARTS
        )
        if self.config.absld_targets == "aliased":
            robust = clean = robust * clean
        return soften(teacher_logits, robust), soften(teacher_logits, clean)

    def class_sums(
        self, adv_logits: Tensor, clean_logits: Tensor, batch: Batch, state: DistillationState
    ) -> dict[str, Tensor]:
        """Sum the student's cross-entropies over the images of each class."""
        labels = batch["labels"]
        return {
            f"{part}_error": sum_by_class(
                F.cross_entropy(logits.detach(), labels, reduction="none"), labels, logits.shape[1]
            )
            for part, logits in zip(PARTS, (adv_logits, clean_logits), strict=True)
        }

    def callbacks(self) -> list[DistillationCallback]:
        """Move the class temperatures once per epoch."""
        config = self.config
        balance = ClassTemperatureBalance(
            PARTS,
            config.class_temperature_rate,
            config.min_class_temperature,
            config.max_class_temperature,
            config.balance_follows_lr,
        )
        return [*super().callbacks(), balance]
