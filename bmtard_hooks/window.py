"""The micro-batches of one optimizer step."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Sequence

from torch import Tensor

from bmtard_hooks.answers import Answers

Batch = dict[str, Tensor]


class AccumulationWindow:
    """Knows where a step is: which micro-batch comes next, whether the balance has moved, what teachers said already.

    Args:
        batches: the micro-batches as the loader gave them, in order; replaced by the crafted ones.
    """

    def __init__(self, batches: Sequence[Batch] = ()) -> None:
        self.batches = list(batches)
        self.position = 0
        self.observed = False
        self.compared = False
        self.left_out = False
        self.zero_gradients: list[Tensor] = []
        self._answers: defaultdict[str, Answers] = defaultdict(Answers)

    def __len__(self) -> int:
        return len(self.batches)

    @property
    def is_over(self) -> bool:
        """Whether every micro-batch has been taken."""
        return self.position >= len(self.batches)

    def require_compared(self, trainer: type) -> None:
        """Refuse a step whose loss came from elsewhere, so that attacked images and teachers played no part in it.

        Args:
            trainer: whose ``compute_loss`` was asked.

        Raises:
            TypeError: if it did not ask ours.
        """
        if not self.compared:
            raise TypeError(
                f"compute_loss of {trainer.__name__} never asked that of BMTARDTrainer, so the step had neither attacked images nor "
                "teachers: call super().compute_loss(…) and add to what it returns, or register a Method with losses of your own"
            )

    def remember(self, teacher: str, pixels: Tensor, answer: Tensor) -> Tensor:
        """Keep a teacher's answer on images that will come by again, and return it."""
        self._answers[teacher].keep(pixels, answer)
        return answer

    def answer(self, teacher: str, pixels: Tensor, ask: Callable[[Tensor], Tensor]) -> Tensor:
        """Return what the teacher said before on these images, once, or ask it."""
        known = self._answers[teacher].take(pixels)
        return ask(pixels) if known is None else known

    def clear(self) -> None:
        """Let go of images, answers and graphs, so that nothing of a step lives on through an evaluation."""
        self.batches = []
        self._answers.clear()
