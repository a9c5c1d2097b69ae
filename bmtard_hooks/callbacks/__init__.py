"""Hooks on the training step: balance, progress, model card."""

from bmtard_hooks.callbacks.base import DistillationCallback
from bmtard_hooks.callbacks.entropy_balance import EntropyBalance
from bmtard_hooks.callbacks.loss_balance import LossBalance

__all__ = ["DistillationCallback", "EntropyBalance", "LossBalance"]
