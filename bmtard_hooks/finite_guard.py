"""An alarm for numbers that are not numbers: it names the first one of a step, in the order in which they were made."""

from __future__ import annotations

from collections.abc import Mapping
from typing import NamedTuple

import torch
from torch import Tensor

from bmtard_hooks.distributed import is_distributed

CAUSES = {
    "gradient": "a learning rate too high (lower it, warm it up with warmup_steps, or set max_grad_norm), or fp16 (use bf16)",
    "image": "the data set or the collator gave pixels that are not numbers",
    "attack": "fp16 (use bf16), a forward or an objective of your own whose gradient is not defined there, or weights of the student "
    "that have grown too large (lower the learning rate)",
    "crafted": "an attack or a callback of your own made them so",
    "teacher": "the teacher's weights are damaged, or its activations overflow in fp16 (use bf16)",
    "loss": "the student's logits overflow: a learning rate too high, fp16 (use bf16), or weights that were not finite to begin "
    "with",
}
"""What an alarm is about, in the order of a step (a gradient is that of the step before), and why."""


ELSEWHERE = {
    "image": "the clean images of one of the processes",
    "attack": "the gradient of the attack of one of the processes",
    "crafted": "the crafted images of one of the processes",
    "teacher": "a teacher's logits of one of the processes",
}
"""What may go wrong in one process alone, as the others call it."""


class Watched(NamedTuple):
    """A number of a step.

    Args:
        kind: a key of ``CAUSES``.
        name: for the message.
        value: 0-dim; finite if everything that it sums up is.
    """

    kind: str
    name: str
    value: Tensor


class StepSkipped(Exception):
    """Leaves a step that is not to be taken, because a number in it was not finite."""


class FiniteGuard:
    """Stops a run in which a number became NaN or infinite, before a checkpoint can be spoiled, or leaves the step out.

    On a CPU the step itself is stopped. On a GPU a step's numbers travel to the host while it goes on; they are looked at
    in the next step and before every checkpoint. Leaving steps out needs an answer within the step, so each waits for the
    device then.

    Args:
        max_skipped_steps: how many steps in a row may be left out; 0 stops at the first.
    """

    def __init__(self, max_skipped_steps: int = 0) -> None:
        self.max_skipped_steps = max_skipped_steps
        self.skipped = 0
        """Steps of the run that were left out."""
        self._in_a_row = 0
        self._noted: list[Watched] = []
        self._pending: tuple[int, list[Watched], Tensor] | None = None
        self._copied: torch.cuda.Event | None = None

    @property
    def skips(self) -> bool:
        """Whether steps are left out instead of ending the run."""
        return self.max_skipped_steps > 0

    def note(self, kind: str, name: str, values: Tensor) -> None:
        """Remember a tensor of the step for the next ``watch``, by its sum.

        Args:
            kind: a key of ``CAUSES``.
            name: for the message.
            values: of any shape.
        """
        self._noted.append(Watched(kind, name, values.detach().float().sum()))

    def share(self, device: torch.device) -> dict[str, Tensor]:
        """Return what was noted as an entry for the step's all-reduce, so that all processes decide alike; none if there is one.

        The entry has a number for every kind in ``ELSEWHERE``: 0, or NaN if anything of that kind is not finite in this
        process. Its mean is NaN where it is so in any.
        """
        if not is_distributed():
            return {}
        nothing = torch.zeros((), device=device)
        by_kind = [[entry.value for entry in self._noted if entry.kind == kind] for kind in ELSEWHERE]
        return {"noted": torch.stack([sum((0 * value for value in values), nothing) for values in by_kind])}

    def watch(self, step: int, losses: Mapping[str, Tensor], noted: Tensor | None = None) -> None:
        """Take the numbers of a step: those noted, and its losses.

        Args:
            step: optimizer steps done before this one.
            losses: names and 0-dim tensors, the same in every process.
            noted: what ``share`` became when it was averaged over all processes.

        Raises:
            FloatingPointError: see ``check``.
            StepSkipped: if the step is to be left out.
        """
        watched = [*self._noted, *(Watched("loss", name, value) for name, value in losses.items())]
        if noted is not None:
            shared = zip(ELSEWHERE.items(), noted, strict=True)
            watched += [Watched(kind, name, value) for (kind, name), value in shared]
        self._noted = []
        order = list(CAUSES)
        self._take(step, sorted(watched, key=lambda entry: order.index(entry.kind)))

    def watch_gradient(self, step: int, norm: Tensor | float) -> None:
        """Take the norm of a step's gradient; see ``watch``. On a GPU it is looked at with the next step's numbers."""
        value = torch.as_tensor(norm)
        if value.is_cuda and not self.skips:
            self._noted.append(Watched("gradient", f"the norm of step {step + 1}'s gradient", value))
        else:
            self._take(step, [Watched("gradient", "the norm of the gradient", value)])

    def finish(self, step: int) -> None:
        """Look at what waits for a next step when there is none: the last step's numbers and its gradient.

        Args:
            step: optimizer steps done.

        Raises:
            FloatingPointError: see ``check``.
        """
        gradients, self._noted = [entry for entry in self._noted if entry.kind == "gradient"], []
        self._take(step - 1, gradients)
        self.check()

    def succeed(self) -> None:
        """Learn that a step was taken."""
        self._in_a_row = 0

    def _take(self, step: int, watched: list[Watched]) -> None:
        self.check()
        if not watched:
            return
        device = watched[-1].value.device
        stacked = torch.stack([entry.value.to(device, torch.float32) for entry in watched])
        if stacked.is_cuda and not self.skips:
            on_host = torch.empty(stacked.shape, dtype=stacked.dtype, pin_memory=True)
            on_host.copy_(stacked, non_blocking=True)
            self._copied = torch.cuda.Event()
            self._copied.record()
            self._pending = (step, watched, on_host)
            return
        self._pending = (step, watched, stacked)
        self.check()

    def check(self) -> None:
        """Look at the numbers taken last.

        Raises:
            FloatingPointError: naming the step, the first number that is not finite, what followed, and the likely cause.
            StepSkipped: if the step is to be left out.
        """
        if self._pending is None:
            return
        if self._copied is not None:
            self._copied.synchronize()  # waits for that copy alone, not for what was queued after it
            self._copied = None
        (step, watched, values), self._pending = self._pending, None
        bad = [
            (entry, value) for entry, value in zip(watched, values.tolist(), strict=True) if not abs(value) < torch.inf
        ]
        if not bad:
            return
        if self._in_a_row < self.max_skipped_steps:
            self._in_a_row += 1
            self.skipped += 1
            raise StepSkipped(_describe(step, bad))
        allowed = f" {self.skipped} steps were left out before, {self._in_a_row} in a row." if self.skips else ""
        raise FloatingPointError(
            f"{_describe(step, bad)} Training stopped and no checkpoint was written since; the last one is good.{allowed} To "
            "leave such steps out instead, set max_skipped_steps"
        )

    def state_dict(self) -> dict[str, int]:
        """Return how many steps were left out."""
        return {"skipped": self.skipped, "in_a_row": self._in_a_row}

    def load_state_dict(self, state: Mapping[str, int]) -> None:
        """Take over what ``state_dict`` returned."""
        self.skipped, self._in_a_row = int(state["skipped"]), int(state["in_a_row"])


def _describe(step: int, bad: list[tuple[Watched, float]]) -> str:
    here = {entry.kind for entry, _ in bad if entry.name not in ELSEWHERE.values()}
    (first, value), *rest = [
        (entry, value) for entry, value in bad if entry.kind not in here or entry.name not in ELSEWHERE.values()
    ]
    names = dict.fromkeys(entry.name for entry, _ in rest if entry.name != first.name)
    after = f", then {', '.join(names)}" if names else ""
    shown = (
        f" = {value}"
        if first.kind in ("loss", "gradient")
        else " is not finite"
        if first.kind == "attack"
        else " are not finite"
    )
    return f"step {step + 1}: {first.name}{shown}{after}. Likely cause: {CAUSES[first.kind]}."
