"""IAD: a student that trusts its teacher in part, and itself for the rest."""

from __future__ import annotations

from collections.abc import Mapping

import torch
import torch.nn.functional as F
from torch import Tensor

from bmtard_hooks.functional import kl_to_teacher, soften
from bmtard_hooks.methods.ard import ARD
from bmtard_hooks.methods.base import Batch, Classifier, LossOutput, register
from bmtard_hooks.methods.introspection import has_begun, introspection, trust
from bmtard_hooks.state import DistillationState


@register("iad")
class IAD(ARD):
    """Introspective adversarial distillation, with ARD's attack and learning rate.

    Formula, variant 1: ``L = a * T^2 * KL(T_robust(x; T), S(x_adv; T)) + a * mean((1 - t) * KL(S(x), S(x_adv))) +
    (1 - a) * CE(S(x), y)`` with the trust ``t = T_robust(x_adv)[y] ** iad_trust_power``. Variant 2: ``L = (1 - a - b) *
    CE(S(x_adv), y) + a * T^2 * [mean(t * KL(T_robust(x_adv; T), S(x_adv; T))) + mean((1 - t) * KL(S(x), S(x_adv)))] + b * T^2 *
    KL(T_clean(x_adv; T), S(x_adv; T))``. KLs are summed over classes, means are over the batch, and the student's own term
    enters after ``iad_begin`` of the run; before that ``t = 1``. The teacher term of variant 1 is never trusted less.

    Reference: Zhu et al., Reliable Adversarial Distillation with Unreliable Teachers, ICLR 2022.
    """

    scale = 1.0
    unbalanced = ("introspection",)

    @property
    def teachers(self) -> tuple[str, ...]:
        """The robust one, and for variant 2 the clean one."""
        return ("robust",) if self.config.iad_variant == 1 else ("robust", "clean")

    @property
    def part_weights(self) -> dict[str, float]:
        """Those of the formula."""
        alpha, clean_alpha = self.config.iad_alpha, self.config.iad_clean_alpha
        if self.config.iad_variant == 1:
            alpha = 1.0 if alpha is None else alpha
            return {"robust": alpha, "introspection": alpha, "clean": 1 - alpha}
        alpha = 0.5 if alpha is None else alpha
        return {"robust": alpha, "introspection": alpha, "clean": clean_alpha, "label": 1 - alpha - clean_alpha}

    def loss_parts(
        self, student: Classifier, teachers: Mapping[str, Classifier], batch: Batch, state: DistillationState
    ) -> LossOutput:
        """Forward as often and in the order of the authors' code, which BatchNorm's statistics see."""
        begin = self.config.iad_begin
        if begin is None:
            begin = 60 / 200 if self.config.iad_variant == 1 else 40 / 200
        variant = self._first if self.config.iad_variant == 1 else self._second
        return LossOutput(variant(student, teachers, batch, has_begun(state, begin)))

    def _first(
        self, student: Classifier, teachers: Mapping[str, Classifier], batch: Batch, begun: bool
    ) -> dict[str, Tensor]:
        images, adversarial, labels = batch["pixel_values"], batch["adv_pixel_values"], batch["labels"]
        adv_logits = student(adversarial)
        with torch.no_grad():
            student(adversarial)  # the authors' code forwards twice and does not use the second
        cross_entropy = F.cross_entropy(student(images), labels)
        kl = self._kl(adv_logits, teachers["robust"](images)).mean()
        own = torch.zeros_like(kl)
        if begun:
            trusted = trust(soften(teachers["robust"](adversarial)), labels, self.config.iad_trust_power)
            own = self.loss_scale * introspection(adv_logits, student(images), trusted)
        return {"robust": kl, "introspection": own, "clean": cross_entropy}

    def _second(
        self, student: Classifier, teachers: Mapping[str, Classifier], batch: Batch, begun: bool
    ) -> dict[str, Tensor]:
        images, adversarial, labels = batch["pixel_values"], batch["adv_pixel_values"], batch["labels"]
        temperature = self.config.iad_temperature
        adv_logits, robust_logits = student(adversarial), teachers["robust"](adversarial)
        trusted, own = torch.ones_like(adv_logits[:, 0]), torch.zeros_like(adv_logits[0, 0])
        if begun:
            trusted = trust(soften(robust_logits), labels, self.config.iad_trust_power)
            pulled = introspection(adv_logits / temperature, student(images) / temperature, trusted)
            own = temperature**2 * self.loss_scale * pulled
        return {
            "robust": (trusted * self._kl(adv_logits, robust_logits)).mean(),
            "introspection": own,
            "clean": self._kl(adv_logits, teachers["clean"](adversarial)).mean(),
            "label": F.cross_entropy(adv_logits, labels),
        }

    def _kl(self, student_logits: Tensor, teacher_logits: Tensor) -> Tensor:
        temperature = self.config.iad_temperature
        kl = kl_to_teacher(student_logits / temperature, soften(teacher_logits, temperature), log_eps=0.0)
        return temperature**2 * self.loss_scale * kl
