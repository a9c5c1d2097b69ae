"""What a training step lets others see: numbers for the log."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch import Tensor

from bmtard_hooks.functional import knowledge_scale
from bmtard_hooks.state import DistillationState


class StepMetrics:
    """Collects numbers on the device and brings them to the host only when they are logged."""

    def __init__(self) -> None:
        self._sums: dict[str, Tensor] = {}
        self._latest: dict[str, Tensor] = {}
        self._count = 0

    def add(self, averaged: Mapping[str, Tensor], latest: Mapping[str, Tensor]) -> None:
        """Record one step.

        Args:
            averaged: 0-dim tensors that are averaged over the steps between two logs.
            latest: 0-dim tensors of which the last one counts.
        """
        self._count += 1
        for name, value in averaged.items():
            self._sums[name] = self._sums[name] + value if name in self._sums else value
        self._latest.update(latest)

    def record(
        self,
        losses: Mapping[str, Tensor],
        entropies: Mapping[str, Tensor],
        temperatures: Mapping[str, Tensor],
        distillation: DistillationState,
        num_classes: int | None,
        attack: Mapping[str, Tensor] | None = None,
    ) -> None:
        """Record a distillation step under the keys of the log.

        Args:
            losses: part name to 0-dim loss.
            entropies: teacher name to 0-dim entropy in nats.
            temperatures: teacher name to the temperature that was used.
            distillation: the state after the callbacks acted: the weights that are used.
            num_classes: for the knowledge scales; None leaves them out.
            attack: ``zero_gradient``, the share of images whose attack had no gradient at its last step; not shown while it is 0.
        """
        averaged = {f"loss_{part}": loss for part, loss in losses.items()}
        averaged |= {f"attack_{name}": value for name, value in (attack or {}).items()}
        for part, first in distillation.initial_losses.items():
            averaged[f"relative_loss_{part}"] = losses[part] / first
        for teacher, value in entropies.items():
            averaged[f"entropy_{teacher}"] = value
            if num_classes is not None:
                averaged[f"knowledge_scale_{teacher}"] = knowledge_scale(value, num_classes)
        latest = {f"temperature_{teacher}": value for teacher, value in temperatures.items()}
        if len(losses) > 1:
            latest |= {f"weight_{part}": value for part, value in distillation.weights.items()}
        for name, values in distillation.per_class.items():
            latest |= {f"lowest_class_{name}": values.min(), f"highest_class_{name}": values.max()}
        self.add(averaged, latest)

    def collect(self) -> dict[str, float]:
        """Return the numbers as Python floats and start over."""
        names = [*self._sums, *self._latest]
        if not names:
            return {}
        values = [*(total / self._count for total in self._sums.values()), *self._latest.values()]
        numbers = torch.stack([value.double() if value.device.type != "mps" else value for value in values]).tolist()
        self._sums, self._latest, self._count = {}, {}, 0
        found = dict(zip(names, numbers, strict=True))
        return {name: value for name, value in found.items() if value or not name.startswith("attack_")}

    def snapshot(self) -> Callable[[], None]:
        """Remember what was collected; what is returned goes back to it."""
        sums, latest, count = dict(self._sums), dict(self._latest), self._count

        def put_back() -> None:
            self._sums, self._latest, self._count = sums, latest, count

        return put_back

    def state_dict(self) -> dict[str, Any]:
        """Return what was collected since the last log, as plain numbers (waits for the device)."""
        groups = {"sums": self._sums, "latest": self._latest}
        return {
            "count": self._count,
            **{group: {name: value.item() for name, value in values.items()} for group, values in groups.items()},
        }

    def load_state_dict(self, state: Mapping[str, Any], device: torch.device) -> None:
        """Go on with what ``state_dict`` returned."""
        dtype = torch.float32 if device.type == "mps" else torch.float64
        self._sums, self._latest = (
            {name: torch.tensor(value, dtype=dtype, device=device) for name, value in state[group].items()}
            for group in ("sums", "latest")
        )
        self._count = int(state["count"])
