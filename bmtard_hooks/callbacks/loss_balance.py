"""Normalization Loss Balance: move the loss weights until the student learns equally fast from all teachers."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor
from transformers import TrainerControl, TrainerState, TrainingArguments

from bmtard_hooks.callbacks.base import DistillationCallback, rate_factor
from bmtard_hooks.functional import balance_weights
from bmtard_hooks.state import DistillationState


class LossBalance(DistillationCallback):
    """Give more weight to the loss that has fallen least since the first step.

    Formula: ``w_k <- rate * r_k + (1 - rate) * w_k`` (Eq. 19 and 20) with the target
    ``r_k = R_k^power / sum_j R_j^power`` (Eq. 17 and 18) and the relative loss ``R_k = L_k(t) / L_k(0)`` (Eq. 15).
    Moved at step t, used at step t.

    Args:
        rate: share of the target in the moving average, ``(0, 1]``; follows the learning-rate schedule if
            ``follow_lr``.
        power: beta of the paper, positive.
        parts: names of the balanced loss parts; all of them if None. The others keep their weight, and the balanced
            ones share what they had together.
        follow_lr: multiply the rate by the learning rate's fall so far (authors' code).

    Raises:
        ValueError: if a setting is outside its range.

    Reference: Zhao, Wang, Wei, TPAMI 2024, section 3.4; first in MTARD (ECCV 2022).
    """

    def __init__(
        self,
        rate: float = 0.025,
        power: float = 1.0,
        parts: Sequence[str] | None = None,
        follow_lr: bool = True,
    ) -> None:
        if not 0 < rate <= 1:
            raise ValueError(f"weight_rate={rate} is outside (0, 1]; leave the callback out to keep the weights")
        if not power > 0:
            raise ValueError(f"loss_balance_power={power} must be positive; the paper has 1")
        self.rate = rate
        self.power = power
        self.parts = list(parts) if parts is not None else None
        self.follow_lr = follow_lr
        self.schedule: Callable[[TrainerState], float] | None = None
        """Factor on the rate instead of the learning rate's, for methods with a schedule of their own."""

    def on_losses(
        self,
        args: TrainingArguments,
        state: TrainerState,
        control: TrainerControl,
        *,
        losses: Mapping[str, Tensor],
        entropies: Mapping[str, Tensor],
        distillation: DistillationState,
        **kwargs: Any,
    ) -> None:
        """Move every balanced weight towards its target."""
        parts = self.parts if self.parts is not None else list(losses)
        if len(parts) < 2:
            return
        rate = self.rate * rate_factor(self.schedule, self.follow_lr, state, kwargs.get("optimizer"))
        relative = torch.stack([distillation.relative_loss(part, losses[part]) for part in parts])
        weights = torch.stack([distillation.weights[part] for part in parts])
        total = weights.sum()
        moved = (weights - rate * (weights - total * balance_weights(relative, self.power))).clamp_min(0)
        for part, weight in zip(parts, (moved * (total / moved.sum())).unbind(), strict=True):
            distillation.weights[part] = weight
