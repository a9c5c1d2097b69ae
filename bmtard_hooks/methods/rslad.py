"""RSLAD: a robust teacher's soft labels replace the hard ones everywhere."""

from __future__ import annotations

from collections.abc import Mapping

from torch import Tensor

from bmtard_hooks.attacks.losses import Objective, divergence
from bmtard_hooks.functional import kl_to_teacher, soften
from bmtard_hooks.methods.base import Batch, Classifier, LossOutput, Method, register
from bmtard_hooks.state import DistillationState


@register("rslad")
class RSLAD(Method):
    """Robust soft label adversarial distillation.

    Formula: ``L = 5/6 * KL(T_robust(x), S(x_adv)) + 1/6 * KL(T_robust(x), S(x))``, each KL summed over classes, averaged
    over the batch and multiplied by ``loss_scale``. The attack maximises ``KL(T_robust(x), S(x'))``; no labels are used.

    Reference: Zi et al., Revisiting Adversarial Robustness Distillation, ICCV 2021.
    """

    @property
    def teachers(self) -> tuple[str, ...]:
        """The robust one."""
        return ("robust",)

    @property
    def part_weights(self) -> dict[str, float]:
        """Five to one for adversarial images."""
        return {"robust": 5 / 6, "clean": 1 / 6}

    def attack_objective(
        self, student: Classifier, teachers: Mapping[str, Classifier], batch: Batch, state: DistillationState
    ) -> Objective:
        """Move the prediction away from the target of the adversarial images."""
        return divergence(self.targets(teachers["robust"](batch["pixel_values"]), batch, state)[0])

    def targets(self, teacher_logits: Tensor, batch: Batch, state: DistillationState) -> tuple[Tensor, Tensor]:
        """Soften the teacher's answer ``(B, C)`` into the targets of adversarial and of clean images."""
        target = soften(teacher_logits)
        return target, target

    def loss_parts(
        self, student: Classifier, teachers: Mapping[str, Classifier], batch: Batch, state: DistillationState
    ) -> LossOutput:
        """Forward in the authors' order: adversarial, clean."""
        adv_logits, clean_logits = student(batch["adv_pixel_values"]), student(batch["pixel_values"])
        adv_target, clean_target = self.targets(teachers["robust"](batch["pixel_values"]), batch, state)
        robust = kl_to_teacher(adv_logits, adv_target, self.config.log_eps).mean()
        clean = kl_to_teacher(clean_logits, clean_target, self.config.log_eps).mean()
        output = LossOutput({"robust": self.loss_scale * robust, "clean": self.loss_scale * clean})
        output.class_sums.update(self.class_sums(adv_logits, clean_logits, batch, state))
        return output

    def class_sums(
        self, adv_logits: Tensor, clean_logits: Tensor, batch: Batch, state: DistillationState
    ) -> dict[str, Tensor]:
        """Return what a balance of classes needs to see; nothing here."""
        return {}
