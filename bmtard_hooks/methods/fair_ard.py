"""Fair-ARD: ARD with more weight on classes that are easily attacked."""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor

from bmtard_hooks.callbacks.base import DistillationCallback
from bmtard_hooks.callbacks.class_balance import ClassWeightBalance
from bmtard_hooks.functional import sum_by_class
from bmtard_hooks.methods.ard import ARD
from bmtard_hooks.methods.base import Batch, Classifier, LossOutput, register
from bmtard_hooks.state import DistillationState


@register("fair_ard")
class FairARD(ARD):
    """ARD whose two losses are weighed by class; see ``ClassWeightBalance`` for the weights.

    How hard a class is to attack is the mean number of the attack's iterates, the start included and the end not, that
    the student still classifies correctly. All weights are 1 in the first epoch.

    Reference: Yue et al., Revisiting Adversarial Robustness Distillation from the Perspective of Robust Fairness, NeurIPS
        2023.
    """

    counts_correct_steps = True

    def per_class(self) -> dict[str, float]:
        """All classes start equal."""
        return {"weight": 1.0}

    def image_weights(self, batch: Batch, state: DistillationState) -> Tensor:
        """Give every image the weight of its class."""
        return state.per_class["weight"][batch["labels"]].to(batch["pixel_values"].dtype)

    def loss_parts(
        self, student: Classifier, teachers: Mapping[str, Classifier], batch: Batch, state: DistillationState
    ) -> LossOutput:
        """As ARD, and report what the attack counted."""
        output = super().loss_parts(student, teachers, batch, state)
        classes = len(state.per_class["weight"])
        steps, labels = batch["correct_steps"], batch["labels"]
        output.class_sums["correct_steps"] = sum_by_class(steps, labels, classes)
        output.class_sums["images"] = sum_by_class(torch.ones_like(steps), labels, classes)
        return output

    def callbacks(self) -> list[DistillationCallback]:
        """Move the class weights once per epoch."""
        config = self.config
        balance = ClassWeightBalance(config.fair_ard_power, config.min_class_weight, config.max_class_weight)
        return [*super().callbacks(), balance]
