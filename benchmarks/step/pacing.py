"""Clocks inside a child: only one child works at a time, and says how long its steps took when it hands over."""

from __future__ import annotations

import time
from collections import defaultdict
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import wraps
from multiprocessing.connection import Connection
from typing import Any

import torch

from step.memory import PeakMemory, give_back

REST = "overhead"


def synchronize(device: str) -> None:
    """Wait for a GPU."""
    if device.startswith("cuda"):
        torch.cuda.synchronize()


class Phases:
    """Adds up the time of named parts of a step; what happens inside an inner part does not count for the outer one.

    Does nothing until it is started, because on a GPU it has to wait at every border.

    Args:
        device: ``cpu`` or ``cuda``.
    """

    def __init__(self, device: str) -> None:
        self.device = device
        self.seconds: dict[str, float] = {}
        self._names: list[str] = []
        self._since = 0.0

    def start(self) -> None:
        """Begin; time outside every part counts as overhead."""
        synchronize(self.device)
        self.seconds = defaultdict(float)
        self._names, self._since = [REST], time.perf_counter()

    def stop(self) -> dict[str, float]:
        """End, and return seconds by part."""
        self._charge()
        self._names = []
        return dict(self.seconds)

    @contextmanager
    def part(self, name: str) -> Iterator[None]:
        """Count what happens inside for a part."""
        if not self._names:
            yield
            return
        self._charge()
        self._names.append(name)
        try:
            yield
        finally:
            if self._names:  # may have been stopped meanwhile
                self._charge()
                self._names.pop()

    def wrap(self, owner: Any, method: str, name: str) -> None:
        """Replace a method of one object by itself, counted for a part.

        Raises:
            AttributeError: if there is no such method.
        """
        original = getattr(owner, method)

        @wraps(original)
        def counted(*args: Any, **kwargs: Any) -> Any:
            with self.part(name):
                return original(*args, **kwargs)

        setattr(owner, method, counted)

    def _charge(self) -> None:
        synchronize(self.device)
        now = time.perf_counter()
        self.seconds[self._names[-1]] += now - self._since
        self._since = now


class Pacer:
    """Counts steps, and hands over to the parent after as many as it asked for.

    The parent says ``("time", n)``, ``("phases", n)`` or ``("stop", 0)``. A step's time runs from the end of the step before
    to its own end, so it includes fetching its batch.

    Args:
        connection: to the parent.
        device: ``cpu`` or ``cuda``.
        warm_up: steps before the first hand-over.
        phases: parts of a step; looked at only when asked to.
        memory: reset after the warm-up.

    Attributes:
        gives_back: return free memory to the system before every wait.
        before_phases: called once, before the first look at the parts of a step.
    """

    def __init__(self, connection: Connection, device: str, warm_up: int, phases: Phases, memory: PeakMemory) -> None:
        self.connection, self.device, self.phases, self.memory = connection, device, phases, memory
        self.gives_back = False
        self.before_phases: Callable[[], None] = lambda: None
        self._command, self._count, self._left = "warm up", warm_up, warm_up
        self._began = self._began_cpu = 0.0

    def begin(self) -> None:
        """Start the clock of the warm-up."""
        synchronize(self.device)
        self._began, self._began_cpu = time.perf_counter(), time.process_time()

    def step_finished(self) -> bool:
        """Note the end of a step.

        Returns:
            Whether another one shall follow.
        """
        self._left -= 1
        return self._left > 0 or self._hand_over()

    def _hand_over(self) -> bool:
        synchronize(self.device)
        seconds = (time.perf_counter() - self._began) / self._count
        cpu_seconds = (time.process_time() - self._began_cpu) / self._count
        reply: dict[str, Any] = {"seconds": seconds, "cpu_seconds": cpu_seconds}
        if self._command == "warm up":
            self.memory.reset()
        elif self._command == "time":
            reply |= {"peak": self.memory.peak(), "memory": self.memory.method}
        else:
            reply["phases"] = {name: value / self._count for name, value in self.phases.stop().items()}
        if self.gives_back:
            give_back(self.device)
        self.connection.send(("done", reply))
        self._command, self._count = self.connection.recv()
        self._left = self._count
        if self._command == "stop":
            return False
        if self._command == "phases":
            self.before_phases()
            self.before_phases = lambda: None
            self.phases.start()
        self.begin()
        return True
