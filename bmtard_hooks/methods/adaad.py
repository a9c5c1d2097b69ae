"""AdaAD and AdaIAD: the attack searches for where student and teacher differ most."""

from __future__ import annotations

from collections.abc import Mapping

import torch
import torch.nn.functional as F

from bmtard_hooks.attacks.losses import MovingTarget
from bmtard_hooks.functional import kl_between, kl_to_teacher, soften
from bmtard_hooks.methods.base import Batch, Classifier, LossOutput, Method, register
from bmtard_hooks.methods.introspection import has_begun, introspection, trust
from bmtard_hooks.state import DistillationState


@register("adaad")
class AdaAD(Method):
    """Adaptive adversarial distillation.

    Formula: ``L = alpha * KL(T_robust(x_adv), S(x_adv)) + (1 - alpha) * KL(T_robust(x), S(x))``, each KL summed over
    classes, averaged over the batch and multiplied by ``loss_scale`` (the authors': 0.1 on CIFAR-10, 1 on CIFAR-100). The
    attack maximises ``KL(T_robust(x'), S(x'))``: the teacher answers at every step where the search is, and the gradient
    flows through both networks.

    Reference: Huang et al., Boosting Accuracy and Robustness of Student Models via Adaptive Adversarial Distillation, CVPR
        2023.
    """

    milestones = (100 / 200, 150 / 200)

    @property
    def teachers(self) -> tuple[str, ...]:
        """The robust one."""
        return ("robust",)

    @property
    def part_weights(self) -> dict[str, float]:
        """Split by ``adaad_alpha``; without the clean part where that has no weight."""
        alpha = self.config.adaad_alpha
        return {"robust": alpha} if alpha == 1 else {"robust": alpha, "clean": 1 - alpha}

    def attack_objective(
        self, student: Classifier, teachers: Mapping[str, Classifier], batch: Batch, state: DistillationState
    ) -> MovingTarget:
        """Move to where student and teacher differ."""
        teacher = teachers["robust"]
        return MovingTarget(lambda logits, pixels: kl_between(logits, teacher(pixels)))

    def loss_parts(
        self, student: Classifier, teachers: Mapping[str, Classifier], batch: Batch, state: DistillationState
    ) -> LossOutput:
        """Forward in the authors' order: clean, adversarial."""
        output, parts = LossOutput({}), self.part_weights
        if "clean" not in parts and self.config.adaad_clean_forward:
            with torch.no_grad():
                student(batch["pixel_values"])  # for BatchNorm's statistics alone
        for part, view in (("clean", "pixel_values"), ("robust", "adv_pixel_values")):
            if part in parts:
                kl = kl_to_teacher(student(batch[view]), soften(teachers["robust"](batch[view])), log_eps=0.0)
                output.parts[part] = self.loss_scale * kl.mean()
        return output


@register("adaiad")
class AdaIAD(AdaAD):
    """AdaAD's attack with the loss of IAD, whose teacher sees the adversarial images.

    Formula: ``L = a * T^2 * KL(T_robust(x_adv; T), S(x_adv; T)) + a * mean((1 - t) * KL(S(x), S(x_adv))) + (1 - a) *
    CE(S(x), y)`` with the trust ``t = T_robust(x_adv)[y] ** iad_trust_power``; the second term enters after ``iad_begin``.

    Reference: as AdaAD.
    """

    scale = 1.0
    unbalanced = ("introspection",)

    @property
    def part_weights(self) -> dict[str, float]:
        """Those of the formula."""
        alpha = 1.0 if self.config.iad_alpha is None else self.config.iad_alpha
        return {"robust": alpha, "introspection": alpha, "clean": 1 - alpha}

    def loss_parts(
        self, student: Classifier, teachers: Mapping[str, Classifier], batch: Batch, state: DistillationState
    ) -> LossOutput:
        """Forward as often and in the order of the authors' code, which BatchNorm's statistics see."""
        images, adversarial, labels = batch["pixel_values"], batch["adv_pixel_values"], batch["labels"]
        config, temperature = self.config, self.config.adaiad_temperature
        with torch.no_grad():
            student(images)  # not used by the authors' code either
        adv_logits, clean_logits = student(adversarial), student(images)
        teacher_logits = teachers["robust"](adversarial)
        kl = kl_to_teacher(adv_logits / temperature, soften(teacher_logits, temperature), log_eps=0.0).mean()
        own = torch.zeros_like(kl)
        if has_begun(state, 60 / 200 if config.iad_begin is None else config.iad_begin):
            trusted = trust(soften(teacher_logits), labels, config.iad_trust_power)
            own = self.loss_scale * introspection(adv_logits, student(images), trusted)
        return LossOutput(
            {
                "robust": temperature**2 * self.loss_scale * kl,
                "introspection": own,
                "clean": F.cross_entropy(clean_logits, labels),
            }
        )
