"""Adversarial weight perturbation: train at the worst weights nearby."""

from __future__ import annotations

from collections.abc import Mapping, MutableMapping, Sequence
from typing import Any

import torch
from torch import Tensor

from bmtard_hooks.callbacks.base import DistillationCallback
from bmtard_hooks.distributed import average_in_place

TINY = 1e-20
RESTORES = ("after_step", "before_step")


class AdversarialWeightPerturbation(DistillationCallback):
    """Moves the weights uphill before a step's losses are computed, and back once they have their gradient.

    Formula: ``W <- W + gamma * |W| / |G| * G`` for every weight tensor of more than one dimension, with ``G`` the gradient of
    the step's whole loss at the unperturbed weights, BatchNorm in training mode but its running statistics left alone.
    The attack comes before, weight averaging after it. Temperatures and loss weights move once per step, with the losses at
    the perturbed weights; the search uses the loss weights of the step before. Where G is not finite, as when fp16 overflows,
    the tensor stays where it is in that step; the step's own losses and gradient are watched as in every step.

    Args:
        gamma: relative size of the perturbation, positive (0.01 for SAT, 0.005 for TRADES in the paper).
        begin: number of epochs to finish before it starts (9 for TRADES).
        restore: ``after_step`` takes the perturbation back after the optimizer's step (authors' code, so that weight decay
            sees the perturbed weights), ``before_step`` before it.

    Raises:
        ValueError: if a setting is outside its range.

    Reference: Wu et al., Adversarial Weight Perturbation Helps Robust Generalization, NeurIPS 2020.
    """

    def __init__(self, gamma: float = 0.005, begin: int = 0, restore: str = "after_step") -> None:
        if not gamma > 0:
            raise ValueError(f"awp_gamma={gamma} must be positive; leave the callback out to train without")
        if restore not in RESTORES:
            raise ValueError(f"awp_restore={restore!r} is unknown: choose one of {', '.join(RESTORES)}")
        self.gamma, self.begin, self.restore = gamma, begin, restore
        self._moved: list[tuple[Tensor, Tensor]] = []

    def on_crafted(
        self, args: Any, state: Any, control: Any, *, batches: Sequence[MutableMapping[str, Tensor]], **kwargs: Any
    ) -> None:
        """Perturb the weights."""
        if self.trainer.distillation.epoch < self.begin:
            return
        for batch in batches:
            for name in [name for name, value in batch.items() if value.requires_grad]:
                del batch[name]  # was computed with the weights that are moved now
        weights = perturbed_weights(self.trainer.model)
        uphill = self._gradient(list(weights.values()), batches)
        with torch.no_grad():
            for weight, gradient in zip(weights.values(), uphill, strict=True):
                move = self.gamma * weight.norm() / (gradient.norm() + TINY) * gradient
                move.nan_to_num_(nan=0.0)  # of an infinite gradient: 0 where that is finite, NaN where it is not
                weight.add_(move)
                self._moved.append((weight, move))

    def on_pre_optimizer_step(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        """Take the perturbation back, if that comes first."""
        if self.restore == "before_step":
            self.take_back()

    def on_optimizer_step(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        """Take the perturbation back."""
        self.take_back()

    def on_interrupted(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        """Take the perturbation back, so that nobody saves perturbed weights."""
        self.take_back()

    def on_epoch_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        """Take the perturbation back, if the epoch was broken off between a step's micro-batches."""
        self.take_back()

    def reset(self) -> None:
        """Take the perturbation back, if a training was broken off that is tried again."""
        self.take_back()

    def take_back(self) -> None:
        """Subtract what was added."""
        with torch.no_grad():
            for weight, move in self._moved:
                weight.sub_(move)
        self._moved = []

    def _gradient(self, weights: list[Tensor], batches: Sequence[Mapping[str, Tensor]]) -> list[Tensor]:
        trainer = self.trainer
        total = [torch.zeros_like(weight) for weight in weights]
        with trainer.without_trace():
            for batch in batches:
                loss = trainer.weighted(trainer.look(batch)) * trainer.attack_gradient_scale
                found = torch.autograd.grad(loss, weights, allow_unused=True)
                total = [t if g is None else t + g for t, g in zip(total, found, strict=True)]
        average_in_place(total)
        return total


def perturbed_weights(model: torch.nn.Module) -> dict[str, Tensor]:
    """Select what is perturbed: trainable tensors of more than one dimension called weight, so no bias and no BatchNorm."""
    return {
        name: parameter
        for name, parameter in model.named_parameters()
        if parameter.ndim > 1 and "weight" in name and parameter.requires_grad
    }
