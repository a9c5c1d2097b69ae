"""A teacher that goes on learning while it teaches."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch import Tensor, nn

from bmtard_hooks.callbacks.base import DistillationCallback
from bmtard_hooks.distributed import average_gradients, broadcast_buffers
from bmtard_hooks.state import DistillationState


class TeacherTraining(DistillationCallback):
    """Steps a teacher's own SGD after each of the student's backwards, which leaves gradients on both.

    Weights and momentum of the teacher are part of every checkpoint.

    Args:
        teacher: role of the teacher; the method must list it in ``trained_teachers``.
        lr: learning rate that ``lr_factor`` scales.
        momentum: of the SGD.
        weight_decay: on every parameter.
        lr_factor: maps the number of finished epochs and of all epochs to a factor.
        learns: tells from the state whether the weights move in this step.

    Raises:
        ValueError: under fp16, whose gradient scale the second optimizer does not know.
    """

    def __init__(
        self,
        teacher: str,
        lr: float,
        momentum: float,
        weight_decay: float,
        lr_factor: Callable[[int, float], float],
        learns: Callable[[DistillationState], bool],
    ) -> None:
        self.role, self.lr, self.lr_factor, self.learns = teacher, lr, lr_factor, learns
        self.momentum, self.weight_decay = momentum, weight_decay
        self._teacher: nn.Module = nn.Identity()
        self._first: dict[str, Tensor] = {}
        self._optimizer: torch.optim.Optimizer | None = None

    def attach(self, trainer: Any) -> None:
        """Take the teacher over, once."""
        super().attach(trainer)
        if self._teacher is trainer.teachers[self.role]:
            return
        if trainer.accelerator.mixed_precision == "fp16":
            raise ValueError("a method that trains its teacher does not know fp16's gradient scale: use bf16=True")
        self._teacher = trainer.teachers[self.role]
        self._first = {name: value.detach().cpu().clone() for name, value in self._teacher.state_dict().items()}
        self._make_optimizer()

    def on_pre_optimizer_step(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        """Step the teacher, beside the student."""
        distillation, optimizer = self.trainer.distillation, self._optimizer
        assert optimizer is not None
        if self.learns(distillation):
            average_gradients(self._teacher.parameters())
            for group in optimizer.param_groups:
                group["lr"] = self.lr * self.lr_factor(distillation.epoch, distillation.epochs)
            optimizer.step()
        optimizer.zero_grad(set_to_none=True)

    def reset(self) -> None:
        """Start over from the teacher that was passed."""
        if self._optimizer is not None:
            self._teacher.load_state_dict(self._first)
            self._make_optimizer()

    def tensors(self) -> dict[str, Tensor]:
        """Return weights, statistics and momentum."""
        broadcast_buffers(self._teacher)
        assert self._optimizer is not None
        found = {f"teacher.{name}": value for name, value in self._teacher.state_dict().items()}
        for name, parameter in self._teacher.named_parameters():
            momentum = self._optimizer.state.get(parameter, {}).get("momentum_buffer")
            if momentum is not None:
                found[f"momentum.{name}"] = momentum
        return found

    def load_tensors(self, tensors: Mapping[str, Tensor]) -> None:
        """Go on with the teacher of the checkpoint."""
        assert self._optimizer is not None
        weights = {k.removeprefix("teacher."): v for k, v in tensors.items() if k.startswith("teacher.")}
        self._teacher.load_state_dict(weights)
        self._make_optimizer()
        for name, parameter in self._teacher.named_parameters():
            momentum = tensors.get(f"momentum.{name}")
            if momentum is not None:
                self._optimizer.state[parameter]["momentum_buffer"] = momentum.to(parameter.device)

    def _make_optimizer(self) -> None:
        self._teacher.zero_grad(set_to_none=True)  # of a step that was broken off
        self._optimizer = torch.optim.SGD(
            self._teacher.parameters(), self.lr, self.momentum, weight_decay=self.weight_decay
        )
