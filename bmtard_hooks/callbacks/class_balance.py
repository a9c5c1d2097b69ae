"""Balances of classes, moved once per epoch: Fair-ARD's weights and ABSLD's temperatures."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor
from transformers import TrainerControl, TrainerState, TrainingArguments

from bmtard_hooks.callbacks.base import DistillationCallback, schedule_factor
from bmtard_hooks.data import is_map_style
from bmtard_hooks.state import DistillationState


class ClassBalance(DistillationCallback):
    """Adds up what steps report by class, and moves values of the state when an epoch is over.

    The move waits for the next epoch to begin, so that a run which is resumed exactly there makes it too.

    Args:
        names: which ``class_sums`` to add up.

    Raises:
        ValueError: when a training begins on a stream.
    """

    def __init__(self, names: Sequence[str]) -> None:
        self.names = tuple(names)
        self.sums: dict[str, Tensor] = {}

    @abstractmethod
    def move(self, sums: Mapping[str, Tensor], per_class: dict[str, Tensor], lr_factor: float) -> None:
        """Change per-class values after an epoch.

        Args:
            sums: name to ``(K,)`` float64 sum over the epoch.
            per_class: the state's values, to be changed in place.
            lr_factor: how far the learning rate has fallen.
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
        """Add up."""
        for name in self.names:
            self.sums[name] = self.sums[name] + class_sums[name] if name in self.sums else class_sums[name]

    def on_train_begin(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        """Refuse a stream, on which nothing would ever move.

        Raises:
            ValueError: for a training set without length.
        """
        if not is_map_style(self.trainer.train_dataset):
            raise ValueError(
                f"{type(self).__name__} moves at the end of every epoch, and a stream has none: use a data set with a length"
            )

    def on_epoch_begin(self, args: Any, state: TrainerState, control: Any, **kwargs: Any) -> None:
        """Move, if an epoch has just been finished; not in the middle of one, where a run may be resumed."""
        epoch = state.epoch or 0.0
        if self.sums and abs(epoch - round(epoch)) < 1e-6:
            self.move(self.sums, self.trainer.distillation.per_class, schedule_factor(kwargs.get("optimizer")))
            self.sums = {}

    def reset(self) -> None:
        """Forget the sums."""
        self.sums = {}

    def state_dict(self) -> dict[str, Any]:
        """Return the sums of the epoch so far."""
        return {name: value.tolist() for name, value in self.sums.items()}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Go on adding to the sums."""
        like = next(iter(self.trainer.distillation.per_class.values()))
        self.sums = {name: torch.tensor(value, dtype=like.dtype, device=like.device) for name, value in state.items()}


class ClassWeightBalance(ClassBalance):
    """Give more weight to classes whose images are attacked successfully within few steps.

    Formula: ``u_c = (k_c + 1e-5) ** -power`` with ``k_c`` the mean number of correct iterates of the class's images, and
    ``w_c = clip(C * u_c / sum_j u_j, min_weight, max_weight)``, not scaled again. A class without images keeps weight 1.

    Args:
        power: how strongly to react, positive.
        min_weight: lower bound.
        max_weight: upper bound.

    Reference: Yue et al., NeurIPS 2023 (Fair-ARD).
    """

    def __init__(self, power: float = 2.0, min_weight: float = 5 / 6, max_weight: float = 5 / 2) -> None:
        super().__init__(("correct_steps", "images"))
        self.power, self.min_weight, self.max_weight = power, min_weight, max_weight

    def move(self, sums: Mapping[str, Tensor], per_class: dict[str, Tensor], lr_factor: float) -> None:
        """Set the weights of the next epoch."""
        present = sums["images"] > 0
        mean_steps = sums["correct_steps"] / sums["images"].clamp_min(1)
        per_class["weight"] = class_weights(mean_steps, present, self.power, self.min_weight, self.max_weight)


class ClassTemperatureBalance(ClassBalance):
    """Sharpen the targets of classes that the student finds hard, and soften those of easy ones.

    Formula: ``T_c <- clip(T_c - rate * g_c / max_j |g_j|, min_temperature, max_temperature)`` with ``g_c`` the class's
    summed cross-entropy minus the mean over classes; separately for every part.

    Args:
        parts: loss parts; ``<part>_error`` is read and ``<part>_temperature`` moved.
        rate: largest step, positive; follows the learning-rate schedule if ``follow_lr``.
        min_temperature: lower bound, positive.
        max_temperature: upper bound.
        follow_lr: multiply the rate by the learning rate's fall so far (authors' code).

    Reference: Zhao et al., NeurIPS 2024 (ABSLD).
    """

    def __init__(
        self,
        parts: Sequence[str],
        rate: float = 0.1,
        min_temperature: float = 0.5,
        max_temperature: float = 5.0,
        follow_lr: bool = True,
    ) -> None:
        super().__init__([f"{part}_error" for part in parts])
        self.parts, self.rate, self.follow_lr = tuple(parts), rate, follow_lr
        self.min_temperature, self.max_temperature = min_temperature, max_temperature

    def move(self, sums: Mapping[str, Tensor], per_class: dict[str, Tensor], lr_factor: float) -> None:
        """Set the temperatures of the next epoch."""
        rate = self.rate * (lr_factor if self.follow_lr else 1.0)
        for part in self.parts:
            name = f"{part}_temperature"
            moved = per_class[name] - rate * _centred(sums[f"{part}_error"])
            per_class[name] = moved.clamp(self.min_temperature, self.max_temperature)


def class_weights(mean_steps: Tensor, present: Tensor, power: float, lowest: float, highest: float) -> Tensor:
    """Turn each class's mean number of correct iterates into its weight; see ``ClassWeightBalance``.

    Args:
        mean_steps: ``(K,)`` non-negative.
        present: ``(K,)`` which classes have images.
        power: positive.
        lowest: bound.
        highest: bound.

    Returns:
        ``(K,)``.
    """
    asked = torch.where(present, (mean_steps + 1e-5) ** -power, 0)
    scaled = present.sum() * asked / asked.sum()
    return torch.where(present, scaled.clamp(lowest, highest), 1)


def _centred(errors: Tensor) -> Tensor:
    deviations = errors - errors.mean()
    return deviations / deviations.abs().max().clamp_min(torch.finfo(deviations.dtype).tiny)
