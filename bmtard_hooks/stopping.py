"""A polite end: on SIGTERM the step is finished, a checkpoint is written, and the process exits with code 0."""

from __future__ import annotations

import logging
import os
import signal
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor

from bmtard_hooks.distributed import is_distributed

logger = logging.getLogger(__name__)

SIGNALS = ("SIGTERM", "SIGINT", "SIGUSR1", "SIGUSR2", "SIGHUP")

KNOWS_SENDERS = hasattr(signal, "sigwaitinfo")
"""Whether the system tells who sent a signal: Linux does."""


class StoppedBySignal(SystemExit):
    """Ends the process with code 0 after everything was saved; ``args[0]`` is 0."""


class EvaluationAbandoned(Exception):
    """Leaves an evaluation in the middle, because the run is asked to stop. It is made again when the run goes on."""


class StopRequest:
    """Whether the run is asked to stop, and whether all processes know.

    A signal reaches the processes at different moments, but all must stop after the same step. So each step tells the others:
    ``share`` goes into the all-reduce that the step makes anyway. On a GPU the answer is read one step later, by when it has
    arrived, so no step waits.
    """

    def __init__(self) -> None:
        self.reason: str | None = None
        self._heard: list[signal.Signals] = []
        self._answers: list[tuple[torch.cuda.Event | None, Tensor]] = []

    @property
    def requested(self) -> bool:
        """Whether this process was asked to stop."""
        return self.reason is not None

    def request(self, reason: str) -> None:
        """Ask the run to stop after the step that runs now. May be called from a signal handler.

        Args:
            reason: for the log, for example ``SIGTERM``.
        """
        self.reason = reason

    def share(self, device: torch.device) -> dict[str, Tensor]:
        """Return this process's wish as an entry for the step's all-reduce; none if there is one process."""
        return {"stop": torch.full((), float(self.requested), device=device)} if is_distributed() else {}

    def heard(self, mean: Tensor | None) -> None:
        """Take what ``share`` became when it was averaged over all processes."""
        if mean is None:
            return
        if not mean.is_cuda:
            self._answers.append((None, mean))
            return
        on_host = torch.empty((), dtype=mean.dtype, pin_memory=True)
        on_host.copy_(mean, non_blocking=True)
        copied = torch.cuda.Event()
        copied.record()
        self._answers.append((copied, on_host))

    def agreed(self) -> bool:
        """Tell whether to stop now; the same on every process."""
        if not is_distributed():
            return self.requested
        agreed = False
        while self._answers and (self._answers[0][0] is None or len(self._answers) > 1):
            copied, answer = self._answers.pop(0)
            if copied is not None:
                copied.synchronize()
            agreed = agreed or bool(answer > 0)
        if agreed and not self.requested:
            self.request("another process")
        return agreed

    @contextmanager
    def listening(self, names: list[str]) -> Iterator[None]:
        """Take signals as requests inside, where nobody else does.

        A handler that somebody installed stays; only what would end the process, or interrupt it, is replaced.

        Args:
            names: of signals, for example ``SIGTERM``.
        """
        replaced: list[tuple[signal.Signals, Any]] = []
        if threading.current_thread() is threading.main_thread():
            for name in names:
                number = signal.Signals[name]
                before = signal.getsignal(number)
                if before in (signal.SIG_DFL, signal.default_int_handler):
                    replaced.append((number, signal.signal(number, self._handle)))
                else:
                    logger.info("%s has a handler already, which decides what happens", name)
        elif names:
            logger.info(
                "training runs in a thread, which cannot listen to signals: call trainer.request_stop() instead"
            )
        self._heard = [number for number, _ in replaced]
        try:
            yield
        finally:
            self._heard, self._answers, self.reason = [], [], None
            for number, handler in replaced:
                signal.signal(number, handler)

    @contextmanager
    def held_back(self) -> Iterator[None]:
        """Let signals wait until the end of the block, so that processes that are started inside never get them."""
        if not self._heard or not KNOWS_SENDERS:
            yield
            return
        before = signal.pthread_sigmask(signal.SIG_BLOCK, self._heard)
        try:
            yield
        finally:
            signal.pthread_sigmask(signal.SIG_SETMASK, before)

    def _handle(self, number: int, frame: Any) -> None:
        self.request(signal.Signals(number).name)  # nothing else: the signal may have come in the middle of anything


class DeafWorker:
    """Starts a data worker that signals to the whole job do not end: it lives until its own process ends it.

    torch ends a worker at SIGTERM from anybody, and then the process that waits for its batch. Where a system does not tell
    who sent a signal, that stays so.

    Args:
        first: what the loader would have called.
        names: of the signals.
    """

    def __init__(self, first: Callable[[int], None] | None, names: list[str]) -> None:
        self.first = first
        self.names = names

    def __call__(self, worker: int) -> None:
        """Prepare the worker."""
        if self.first is not None:
            self.first(worker)
        if self.names and KNOWS_SENDERS:
            numbers = [signal.Signals[name] for name in self.names]
            signal.pthread_sigmask(signal.SIG_BLOCK, numbers)
            threading.Thread(target=_obey_parent, args=(numbers,), daemon=True).start()


def _obey_parent(numbers: list[signal.Signals]) -> None:
    while True:
        if signal.sigwaitinfo(numbers).si_pid == os.getppid():
            os._exit(0)
