"""The paper's learning-rate schedule."""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Sequence

import torch


def multi_step_schedule(
    optimizer: torch.optim.Optimizer, milestones: Sequence[int], gamma: float, warmup_steps: int = 0
) -> torch.optim.lr_scheduler.LambdaLR:
    """Multiply the learning rate by ``gamma`` after each milestone, after an optional linear warm-up.

    Args:
        optimizer: its initial rates are the starting point.
        milestones: increasing optimizer steps; the step with that number is the first with the lower rate.
        gamma: factor, in (0, 1].
        warmup_steps: steps over which the rate grows linearly from 0.
    """

    def factor(step: int) -> float:
        warm = min(1.0, step / warmup_steps) if warmup_steps else 1.0
        return warm * gamma ** bisect_right(milestones, step)

    return torch.optim.lr_scheduler.LambdaLR(optimizer, factor)
