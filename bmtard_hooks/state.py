"""What moves during distillation: temperatures, loss weights, and the losses they are measured against."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

STATE_NAME = "distillation_state.json"
TENSORS_NAME = "distillation_tensors.safetensors"


@dataclass
class DistillationState:
    """The only state that methods and callbacks share.

    Every value is a float64 tensor, 0-dim but for ``per_class``, on the training device (float32 where a device lacks float64), so a training
    step never waits for the host. All ranks hold the same values.

    Args:
        temperatures: teacher name to temperature, used in the current step.
        weights: loss part name to weight, non-negative; those of balanced parts keep their sum.
        initial_losses: loss part name to its value at the first step, empty before it.
        per_class: name to ``(K,)`` values, for methods that treat classes differently.
        epoch: epochs finished before this step; kept by the Trainer, not part of ``state_dict``.
        epochs: epochs of the whole run, 1 for a stream without end; the same.
    """

    temperatures: dict[str, Tensor] = field(default_factory=dict)
    weights: dict[str, Tensor] = field(default_factory=dict)
    initial_losses: dict[str, Tensor] = field(default_factory=dict)
    per_class: dict[str, Tensor] = field(default_factory=dict)
    epoch: int = 0
    epochs: float = 1.0
    _next_temperatures: dict[str, Tensor] = field(default_factory=dict, repr=False)

    @classmethod
    def create(
        cls,
        temperatures: Mapping[str, float],
        weights: Mapping[str, float],
        device: torch.device | str = "cpu",
        per_class: Mapping[str, Sequence[float]] | None = None,
    ) -> DistillationState:
        """Start from numbers."""
        state = cls(
            {name: torch.tensor(value, dtype=torch.float64) for name, value in temperatures.items()},
            {name: torch.tensor(value, dtype=torch.float64) for name, value in weights.items()},
            per_class={name: torch.tensor(value, dtype=torch.float64) for name, value in (per_class or {}).items()},
        )
        return state.to(device)

    def to(self, device: torch.device | str) -> DistillationState:
        """Move every value to a device, in place."""
        dtype = torch.float32 if torch.device(device).type == "mps" else torch.float64
        for values in self._groups().values():
            for name, value in values.items():
                values[name] = value.to(device=device, dtype=dtype)
        return self

    def move_temperature(self, teacher: str, temperature: Tensor) -> None:
        """Set a teacher's temperature from the next step on (the paper's order, Eq. 21)."""
        self._next_temperatures[teacher] = temperature

    def advance(self) -> None:
        """End the step: temperatures that were moved take effect."""
        self.temperatures.update(self._next_temperatures)
        self._next_temperatures.clear()

    def relative_loss(self, part: str, loss: Tensor) -> Tensor:
        """Divide a loss by its value at the first step, which this call records if there is none yet (Eq. 15).

        Raises:
            ValueError: if the first loss is not a positive number, because nothing can be measured against it.
        """
        if part not in self.initial_losses:
            if not loss > 0:
                raise ValueError(
                    f"the {part} loss of the first step is {loss.item():.3g}; relative losses need a positive one. "
                    "A student that equals its teacher gives 0: check that the two are different models"
                )
            self.initial_losses[part] = loss.detach().clone()
        return loss / self.initial_losses[part]

    def state_dict(self) -> dict[str, dict[str, Any]]:
        """Read every value as a Python float, or a list of them (waits for the device)."""
        return {
            group: {name: value.tolist() for name, value in values.items()} for group, values in self._groups().items()
        }

    def load_state_dict(self, values: Mapping[str, Mapping[str, Any]]) -> None:
        """Take over saved values, bit for bit, keeping the device.

        Raises:
            ValueError: if the saved teachers or loss parts are others than this run's.
        """
        for group, current in self._groups().items():
            saved = values.get(group, {})
            if group != "initial_losses" and saved.keys() != current.keys():
                raise ValueError(
                    f"the checkpoint has {group} for {sorted(saved)}, this run for {sorted(current)}: it was made by "
                    "another method or with other teachers"
                )
            device = next(iter(self.weights.values())).device if self.weights else torch.device("cpu")
            dtype = torch.float32 if device.type == "mps" else torch.float64
            current.clear()
            current.update({name: torch.tensor(v, dtype=dtype, device=device) for name, v in saved.items()})

    def snapshot(self) -> Callable[[], None]:
        """Remember every value on its device; what is returned puts all of them back."""
        groups = [*self._groups().values(), self._next_temperatures]
        kept = [[(name, value, value.clone()) for name, value in group.items()] for group in groups]

        def put_back() -> None:
            for group, values in zip(groups, kept, strict=True):
                group.clear()
                group.update({name: value.copy_(before) for name, value, before in values})

        return put_back

    def _groups(self) -> dict[str, dict[str, Tensor]]:
        return {
            "temperatures": self.temperatures,
            "weights": self.weights,
            "initial_losses": self.initial_losses,
            "per_class": self.per_class,
        }


def save_state(directory: str | Path, content: str) -> None:
    """Write a checkpoint's ``distillation_state.json`` from JSON text: first under another name, then renamed, so it is whole."""
    path = Path(directory) / STATE_NAME
    temporary = path.with_suffix(".tmp")
    temporary.write_text(content + "\n")
    temporary.replace(path)


def load_state(directory: str | Path) -> dict[str, Any]:
    """Read a checkpoint's ``distillation_state.json``.

    Raises:
        FileNotFoundError: if the checkpoint was not written by this Trainer.
        ValueError: if the file is not whole.
    """
    path = Path(directory) / STATE_NAME
    if not path.is_file():
        raise FileNotFoundError(
            f"{path} is missing: {directory} was not written by BMTARDTrainer, so temperatures and weights would be lost"
        )
    try:
        return json.loads(path.read_text())
    except json.JSONDecodeError as error:
        raise ValueError(f"{path} is not whole ({error}): resume from an older checkpoint") from error


def averages_weights(directory: str | Path) -> bool:
    """Tell whether a directory is a checkpoint of a run that averages its weights; its own model is then not the average."""
    try:
        return any(entry["class"] == "WeightAveraging" for entry in load_state(directory)["callbacks"])
    except (OSError, ValueError, KeyError, TypeError):  # no checkpoint, or somebody else's file
        return False


def save_tensors(directory: str | Path, tensors: Mapping[str, Tensor]) -> None:
    """Write what callbacks keep as tensors into a checkpoint, whole or not at all; nothing if there is nothing."""
    if not tensors:
        return
    path = Path(directory) / TENSORS_NAME
    temporary = path.with_suffix(".tmp")
    save_file({name: value.detach().clone().contiguous().cpu() for name, value in tensors.items()}, temporary)
    temporary.replace(path)


def load_tensors(directory: str | Path) -> dict[str, Tensor]:
    """Read what ``save_tensors`` wrote; empty if it wrote nothing."""
    path = Path(directory) / TENSORS_NAME
    return load_file(path) if path.is_file() else {}
