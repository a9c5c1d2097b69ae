"""SAAD: images on which the teacher is unsure under attack count more."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import torch
import torch.nn.functional as F
from torch import Tensor

from bmtard_hooks.attacks.losses import MovingTarget
from bmtard_hooks.distributed import extremes_over_ranks
from bmtard_hooks.functional import kl_between, kl_to_teacher, renyi_entropy, soften
from bmtard_hooks.methods.base import Batch, Classifier, LossOutput, Method, register
from bmtard_hooks.methods.igdm import Recalling, look_around, ramp
from bmtard_hooks.state import DistillationState


@register("saad")
class SAAD(Method):
    """Sample-wise adaptive adversarial distillation.

    Formula: ``L = mean_i [w_i * (KL(T(x_adv), S(x_adv)) + igdm_weight * e / E * IGDM) + b * (1 - v_i) * KL(T(x), S(x))]``, KLs summed
    over classes, with ``w_i = saad_entropy_scale * (H_i - min H)``, ``H`` the entropy of ``T_robust(x_adv)``, ``v`` the same
    scaled to [0, 1] and ``b = saad_clean_weight``. The least uncertain image of every batch has weight 0. Minimum and
    maximum are over the whole optimizer step: all micro-batches of all ranks.

    The attack maximises ``KL(q(x'), S(x'))`` where ``q`` is the teacher's prediction with the true logit continued linearly
    from ``x``: AdaAD's attack without asking the teacher in every step. Averaged weights (SWA) are part of the method.

    Reference: Lee et al., TMLR 2026.
    """

    scale = 1.0
    milestones = (100 / 200, 150 / 200)
    includes_igdm = True
    averaging = ("swa", 95 / 200)

    @property
    def teachers(self) -> tuple[str, ...]:
        """The robust one."""
        return ("robust",)

    @property
    def part_weights(self) -> dict[str, float]:
        """Those of the formula; without the clean part where that has no weight."""
        clean = self.config.saad_clean_weight
        return {"robust": 1.0, "igdm": 1.0, **({"clean": clean} if clean else {})}

    def attack_objective(
        self, student: Classifier, teachers: Mapping[str, Classifier], batch: Batch, state: DistillationState
    ) -> MovingTarget:
        """Move away from the teacher's prediction, whose true logit follows its slope."""
        images, labels = batch["pixel_values"].detach().clone().requires_grad_(True), batch["labels"]
        logits = teachers["robust"](images)
        (slope,) = torch.autograd.grad(logits.gather(1, labels[:, None]).sum(), images)
        slope = slope.clone()  # CUDA graphs reuse the memory of what a compiled teacher's backward gives
        images, logits = images.detach(), logits.detach()
        true_class = F.one_hot(labels, logits.shape[1]).to(logits.dtype)

        def divergence(student_logits: Tensor, pixels: Tensor) -> Tensor:
            change = ((pixels - images) * slope).flatten(1).sum(dim=1, keepdim=True)
            return kl_between(student_logits, logits + self.config.saad_slope * true_class * change)

        return MovingTarget(divergence)

    def prepare(
        self, teachers: Mapping[str, Classifier], batches: Sequence[Batch], state: DistillationState
    ) -> Sequence[Batch]:
        """Weigh the images by how unsure the teacher is of them, against all images of the step."""
        entropies = []
        for batch in batches:
            probs = soften(teachers["robust"](batch["adv_pixel_values"]))
            entropies.append(renyi_entropy(probs, self.config.saad_entropy_order))
        together = torch.cat(entropies)
        lowest, highest = extremes_over_ranks(together.min(), together.max())
        weights = [self.config.saad_entropy_scale * (values - lowest).clamp_min(0) for values in entropies]
        most = self.config.saad_entropy_scale * (highest - lowest)
        return [
            {**batch, "image_weights": weight, "image_shares": weight / (most + 1e-8)}
            for batch, weight in zip(batches, weights, strict=True)
        ]

    def loss_parts(
        self, student: Classifier, teachers: Mapping[str, Classifier], batch: Batch, state: DistillationState
    ) -> LossOutput:
        """Forward in the authors' order: adversarial, mirrored, clean."""
        images, adversarial = batch["pixel_values"], batch["adv_pixel_values"]
        seen, asked = Recalling(student), Recalling(teachers["robust"])
        robust = kl_to_teacher(seen(adversarial), soften(asked(adversarial)), log_eps=0.0)
        matched, weights = look_around(self, seen, asked, batch), batch["image_weights"]
        output = LossOutput(
            {
                "robust": self.loss_scale * (weights * robust).mean(),
                "igdm": self.loss_scale * (weights * matched).mean(),
            }
        )
        if self.config.saad_clean_weight:
            clean = kl_to_teacher(seen(images), soften(asked(images)), log_eps=0.0)
            output.parts["clean"] = self.loss_scale * ((1 - batch["image_shares"]) * clean).mean()
        else:
            with torch.no_grad():
                student(images)  # for BatchNorm's statistics alone
        weight = 1.0 if self.config.igdm_weight is None else self.config.igdm_weight
        output.coefficients["igdm"] = weight * ramp(state)
        return output
