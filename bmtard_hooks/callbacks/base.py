"""The event that an ordinary Trainer callback does not have: the losses of the step, before they are added up."""

from __future__ import annotations

import copy
from collections.abc import Callable, Mapping, MutableMapping, Sequence
from typing import Any

import torch
from torch import Tensor
from transformers import TrainerCallback, TrainerControl, TrainerState, TrainingArguments

from bmtard_hooks.state import DistillationState


class DistillationCallback(TrainerCallback):
    """A Trainer callback that also sees losses and entropies and may move temperatures and weights.

    Subclasses override ``on_losses`` or ``on_crafted`` and, if they remember anything between steps, ``state_dict`` and
    ``load_state_dict`` (numbers) or ``tensors`` and ``load_tensors``; what they return is saved in every checkpoint.
    """

    trainer: Any = None
    """The Trainer that the callback belongs to."""

    def attach(self, trainer: Any) -> None:
        """Get to know the Trainer; called when it is made, or when the callback is added to it."""
        self.trainer = trainer

    def reset(self) -> None:
        """Forget what was remembered of another run; called before every training."""

    def on_crafted(
        self,
        args: TrainingArguments,
        state: TrainerState,
        control: TrainerControl,
        *,
        batches: Sequence[MutableMapping[str, Tensor]],
        **kwargs: Any,
    ) -> None:
        """React to the crafted micro-batches of an optimizer step, before anything is computed on them.

        Args:
            args: the training arguments.
            state: the Trainer's state.
            control: the Trainer's control.
            batches: ``pixel_values``, ``adv_pixel_values``, ``labels`` and what the method added, on the device.
            **kwargs: ``model``, ``optimizer``, ``lr_scheduler`` … as in every Trainer event.
        """

    def on_losses(
        self,
        args: TrainingArguments,
        state: TrainerState,
        control: TrainerControl,
        *,
        losses: Mapping[str, Tensor],
        entropies: Mapping[str, Tensor],
        distillation: DistillationState,
        class_sums: Mapping[str, Tensor],
        **kwargs: Any,
    ) -> None:
        """React to the losses of an optimizer step; called once per step, before the weighted sum.

        Args:
            args: the training arguments.
            state: the Trainer's state.
            control: the Trainer's control.
            losses: part name to 0-dim float64 tensor, averaged over micro-batches and ranks.
            entropies: teacher name to 0-dim float64 tensor, nats, averaged likewise.
            distillation: the shared state, to be changed in place without waiting for the device.
            class_sums: name to ``(K,)`` float64 tensor, summed over the images of each class in the whole step.
            **kwargs: ``model``, ``optimizer``, ``lr_scheduler`` … as in every Trainer event.
        """

    def snapshot(self) -> Callable[[], None]:
        """Remember the state before a step that may be left out (``max_skipped_steps``); what is returned goes back to it.

        That is what ``state_dict`` and ``tensors`` return. Asked of callbacks with ``on_crafted`` or ``on_losses``, before
        every step.
        """
        numbers = copy.deepcopy(self.state_dict())
        tensors = {name: value.clone() for name, value in self.tensors().items()}

        def put_back() -> None:
            self.load_state_dict(numbers)
            self.load_tensors(tensors)

        return put_back

    def state_dict(self) -> dict[str, Any]:
        """Return what a checkpoint must hold for this callback, as plain JSON values."""
        return {}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Take over what ``state_dict`` returned when the checkpoint was written."""

    def tensors(self) -> dict[str, Tensor]:
        """Return tensors that a checkpoint must hold for this callback."""
        return {}

    def load_tensors(self, tensors: Mapping[str, Tensor]) -> None:
        """Take over what ``tensors`` returned when the checkpoint was written."""


def rate_factor(
    schedule: Callable[[TrainerState], float] | None, follow_lr: bool, state: TrainerState, optimizer: Any
) -> float:
    """Return the factor on a balance's rate: a schedule's, or the learning rate's fall, or 1."""
    if schedule is not None:
        return schedule(state)
    return schedule_factor(optimizer) if follow_lr else 1.0


def schedule_factor(optimizer: torch.optim.Optimizer | None) -> float:
    """Read how far the learning rate has fallen: current over highest, at most 1; 1 without an optimizer or a schedule.

    The authors' code multiplies the rates of both balances by 0.1 wherever it does so with the learning rate. Schedules that
    begin low, such as ``OneCycleLR``, note their highest rate as ``max_lr``; the others begin with it.
    """
    if optimizer is None:
        return 1.0
    group = optimizer.param_groups[0]
    highest = max(float(group.get(name, 0.0)) for name in ("initial_lr", "max_lr")) or float(group["lr"])
    return min(1.0, float(group["lr"]) / highest) if highest else 1.0
