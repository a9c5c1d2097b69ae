"""What a training step lets others see: numbers for the log, and an alarm when one of them is not a number."""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor


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
