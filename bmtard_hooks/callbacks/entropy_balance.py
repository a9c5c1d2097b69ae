"""Entropy-Based Balance: move the teachers' temperatures until all know equally much."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch import Tensor
from transformers import TrainerControl, TrainerState, TrainingArguments

from bmtard_hooks.callbacks.base import DistillationCallback, rate_factor
from bmtard_hooks.state import DistillationState

RULES = ("difference", "ratio")


class EntropyBalance(DistillationCallback):
    """Raise the temperature of teachers that are surer than average and lower the others', by a fixed step.

    Formula: ``T_k <- clip(T_k - rate * sign(H_k - mean(H)), min_temperature, max_temperature)``; for two teachers this is
    the paper's Eq. 12 and 13. Moved at step t, used from step t + 1.

    Args:
        rate: step of a temperature, positive; follows the learning-rate schedule if ``follow_lr``.
        min_temperature: lower bound, positive.
        max_temperature: upper bound.
        rule: ``difference`` compares entropies as the paper writes; ``ratio`` compares their quotient with 1 as the
            authors' code does, for two teachers only. They differ only if a teacher is certain to within 1e-5, where
            the quotient changes its sign and both temperatures rise.
        follow_lr: multiply the rate by the learning rate's fall so far (authors' code).

    Raises:
        ValueError: if a setting is outside its range.

    Reference: Zhao, Wang, Wei: Mitigating Accuracy-Robustness Trade-off via Balanced Multi-Teacher Adversarial
        Distillation, TPAMI 2024, section 3.3.
    """

    def __init__(
        self,
        rate: float = 0.001,
        min_temperature: float = 1.0,
        max_temperature: float = 10.0,
        rule: str = "difference",
        follow_lr: bool = True,
    ) -> None:
        if not rate > 0:
            raise ValueError(f"temperature_rate={rate} must be positive; leave the callback out to keep temperatures")
        if not 0 < min_temperature <= max_temperature:
            raise ValueError(
                f"temperature bounds [{min_temperature}, {max_temperature}] are crossed or not positive: pass "
                "0 < min_temperature <= max_temperature, the paper has [1, 10]"
            )
        if rule not in RULES:
            raise ValueError(f"entropy_rule={rule!r} is unknown: choose one of {', '.join(RULES)}")
        self.rate = rate
        self.min_temperature = min_temperature
        self.max_temperature = max_temperature
        self.rule = rule
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
        """Move every teacher's temperature by one step towards equal entropies."""
        if len(entropies) < 2:
            return
        rate = self.rate * rate_factor(self.schedule, self.follow_lr, state, kwargs.get("optimizer"))
        values = torch.stack(list(entropies.values()))
        for index, teacher in enumerate(entropies):
            moved = distillation.temperatures[teacher] - rate * self._direction(values, index)
            distillation.move_temperature(teacher, moved.clamp(self.min_temperature, self.max_temperature))

    def _direction(self, values: Tensor, index: int) -> Tensor:
        if self.rule == "difference":
            return torch.sign((values[index] - values).sum())  # K * (H_k - mean), without rounding at K = 2
        if len(values) != 2:
            raise ValueError(f"entropy_rule='ratio' compares two teachers, got {len(values)}: use 'difference'")
        return torch.sign(values[index] / values[1 - index] - 1)
