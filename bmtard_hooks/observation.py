"""What a training step lets others see: numbers for the log, and an alarm when one of them is not a number."""

from __future__ import annotations

from collections.abc import Mapping

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
    ) -> None:
        """Record a distillation step under the keys of the log.

        Args:
            losses: part name to 0-dim loss.
            entropies: teacher name to 0-dim entropy in nats.
            temperatures: teacher name to the temperature that was used.
            distillation: the state after the callbacks acted: the weights that are used.
            num_classes: for the knowledge scales; None leaves them out.
        """
        averaged = {f"loss_{part}": loss for part, loss in losses.items()}
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
        return dict(zip(names, numbers, strict=True))


class FiniteGuard:
    """Stops a run whose loss became NaN or infinite, before a checkpoint can be spoiled.

    On a CPU the step itself is stopped. On a GPU a step's numbers travel to the host while it goes on; they are looked at
    in the next step and before every checkpoint.
    """

    def __init__(self) -> None:
        self._pending: tuple[int, list[str], Tensor] | None = None
        self._copied: torch.cuda.Event | None = None

    def watch(self, step: int, values: Mapping[str, Tensor]) -> None:
        """Take the numbers of a step.

        Args:
            step: optimizer steps done before this one.
            values: names and 0-dim tensors.

        Raises:
            FloatingPointError: see ``check``.
        """
        self.check()
        if values:
            stacked = torch.stack(list(values.values()))
            if stacked.is_cuda:
                on_host = torch.empty(stacked.shape, dtype=stacked.dtype, pin_memory=True)
                on_host.copy_(stacked, non_blocking=True)
                self._copied = torch.cuda.Event()
                self._copied.record()
                stacked = on_host
            self._pending = (step, list(values), stacked)
            if self._copied is None:
                self.check()

    def check(self) -> None:
        """Look at the numbers taken last.

        Raises:
            FloatingPointError: naming the step, the parts and likely causes.
        """
        if self._pending is None:
            return
        if self._copied is not None:
            self._copied.synchronize()  # waits for that copy alone, not for what was queued after it
        (step, names, values), self._pending = self._pending, None
        if torch.isfinite(values).all():
            return
        bad = ", ".join(
            f"{name} = {value}"
            for name, value in zip(names, values.tolist(), strict=True)
            if not abs(value) < torch.inf
        )
        raise FloatingPointError(
            f"step {step + 1}: {bad}. Training stopped and no checkpoint was written since. Likely causes: a learning "
            "rate too high for this student, fp16 (use bf16), or weights that were not finite to begin with"
        )
