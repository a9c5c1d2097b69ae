"""A progress bar for an evaluation: the attack, its robust accuracy so far, and the time left for all of them."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from tqdm.auto import tqdm


class EvaluationProgress:
    """Shows how far an evaluation is, in image passes.

    Every attack is planned at its full budget on the images that can still reach it, so that the time left is known
    from the start and shrinks when images break early.

    Args:
        plan: attack name to the passes it may need on this process.
        rest: name in ``plan`` of the budget for attacks that it does not name.
        disable: show nothing.
    """

    def __init__(self, plan: Mapping[str, int], rest: str = "", disable: bool = False) -> None:
        self._left = dict(plan)
        self._rest = rest
        self._bar: Any = tqdm(total=sum(plan.values()), unit="pass", unit_scale=True, disable=disable, smoothing=0.05)
        self._attack = ""
        self._images = self._done = self._broken = 0
        self._budget = self._spent = 0

    def attack_started(self, name: str, images: int, passes: int) -> None:
        """See ``Listener``; what was planned and is not needed comes off the total."""
        self._attack, self._images, self._done, self._broken = name, images, 0, 0
        self._budget = passes
        needed = images * passes
        if name in self._left:
            planned = self._left.pop(name)
        else:
            planned = min(needed, self._left.get(self._rest, 0))
            self._left[self._rest] = self._left.get(self._rest, 0) - planned
        self._bar.total += needed - planned
        self._show()

    def passed(self, passes: int) -> None:
        """See ``Listener``."""
        self._spent += passes
        self._bar.update(passes)

    def batch_done(self, images: int, broken: int) -> None:
        """See ``Listener``; what the batch did not need of its budget comes off the total."""
        self._bar.total += self._spent - images * self._budget
        self._spent = 0
        self._done += images
        self._broken += broken
        self._show()

    def close(self) -> None:
        """Finish the bar."""
        self._bar.close()

    def _show(self) -> None:
        robust = f" {1 - self._broken / self._done:.1%} stand" if self._done else ""
        self._bar.set_description(f"{self._attack} {self._done}/{self._images}{robust}")
