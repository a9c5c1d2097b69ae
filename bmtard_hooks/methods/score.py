"""SCORE: TRADES with squared errors instead of divergences."""

from __future__ import annotations

from collections.abc import Mapping

import torch
import torch.nn.functional as F
from torch import Tensor

from bmtard_hooks.attacks.losses import Objective
from bmtard_hooks.functional import soften
from bmtard_hooks.methods.base import Batch, Classifier, LossOutput, Method, register
from bmtard_hooks.state import DistillationState


@register("score")
class SCORE(Method):
    """Squared error to the label plus lambda times the squared error between the clean and the adversarial prediction.

    Formula: ``L = mean_i relu(|p(x_i) - y_i|^2 + lambda * |p(x_adv_i) - p(x_i)|^2 - c)``, sums over classes, with
    ``c = k^2 + k^2 / (C - 1)`` and ``k = score_clip``: the error of a prediction that gives the true class ``k`` too little.
    The gradient flows into both predictions. The attack maximises the second term.

    With ``score_clip_robust_only`` the bound is taken off the second term alone.

    Reference: Pang et al., Robustness and Accuracy Could Be Reconcilable by (Proper) Definition, ICML 2022; the code path
        without additional data.
    """

    attack = {"clip_start": True}
    milestones = (100 / 110, 105 / 110)

    @property
    def part_weights(self) -> dict[str, float]:
        """One part, because the bound is taken off the sum."""
        return {"score": 1.0}

    def attack_objective(
        self, student: Classifier, teachers: Mapping[str, Classifier], batch: Batch, state: DistillationState
    ) -> Objective:
        """Move the prediction away from the clean one, in squared error."""
        with torch.no_grad():
            clean = soften(student(batch["pixel_values"]))
        return lambda logits: squared_error(soften(logits), clean)

    def loss_parts(
        self, student: Classifier, teachers: Mapping[str, Classifier], batch: Batch, state: DistillationState
    ) -> LossOutput:
        """Forward in the authors' order: adversarial, clean."""
        adversarial = soften(student(batch["adv_pixel_values"]))
        clean = soften(student(batch["pixel_values"]))
        classes = clean.shape[1]
        label_error = squared_error(clean, F.one_hot(batch["labels"], classes).to(clean.dtype))
        robust_error = squared_error(adversarial, clean)
        bound = self.config.score_clip**2 * (1 + 1 / (classes - 1))
        if self.config.score_clip_robust_only:
            errors = label_error + self.config.score_lambda * F.relu(robust_error - bound)
        else:
            errors = F.relu(label_error + self.config.score_lambda * robust_error - bound)
        return LossOutput({"score": errors.mean()})


def squared_error(prediction: Tensor, target: Tensor) -> Tensor:
    """Sum the squared differences of two predictions ``(B, C)`` over classes; returns ``(B,)``."""
    return ((prediction - target) ** 2).sum(dim=1)
