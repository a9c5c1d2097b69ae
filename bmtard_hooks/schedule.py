"""Learning-rate schedules of the paper and of the methods it is compared with."""

from __future__ import annotations

import math
from bisect import bisect_right
from collections.abc import Callable, Sequence

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
        return _warm(step, warmup_steps) * gamma ** bisect_right(milestones, step)

    return torch.optim.lr_scheduler.LambdaLR(optimizer, factor)


def epoch_schedule(
    optimizer: torch.optim.Optimizer,
    by_epoch: Callable[[int, float], float | None],
    epochs: float,
    num_training_steps: int,
    warmup_steps: int = 0,
) -> torch.optim.lr_scheduler.LambdaLR:
    """Let the learning rate be a function of the epoch, constant within each.

    Args:
        optimizer: its initial rates are the starting point.
        by_epoch: maps the number of finished epochs and of all epochs, a last one that is cut short included, to a factor.
        epochs: epochs of the run.
        num_training_steps: optimizer steps of the run.
        warmup_steps: steps over which the rate grows linearly from 0.
    """

    def factor(step: int) -> float:
        epoch = int(step * epochs / max(1, num_training_steps) + 1e-9)
        return _warm(step, warmup_steps) * (by_epoch(epoch, math.ceil(epochs - 1e-9)) or 0.0)

    return torch.optim.lr_scheduler.LambdaLR(optimizer, factor)


def _warm(step: int, warmup_steps: int) -> float:
    return min(1.0, step / warmup_steps) if warmup_steps else 1.0
