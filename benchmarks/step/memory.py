"""Largest memory of a process from a moment on, without what it held before its models existed."""

from __future__ import annotations

import ctypes
import gc
import re
import sys
from contextlib import suppress
from pathlib import Path

import torch

STATUS, CLEAR = Path("/proc/self/status"), Path("/proc/self/clear_refs")


class PeakMemory:
    """Measures the memory of a contender: of the process on a CPU, of torch's allocator on a GPU.

    Made when everything is imported and the data is there, but no model yet.

    Args:
        device: ``cpu`` or ``cuda``.

    Attributes:
        method: how it is measured.
    """

    def __init__(self, device: str) -> None:
        self._cuda = device.startswith("cuda")
        gc.collect()
        self.method = "torch.cuda.max_memory_allocated" if self._cuda else "largest resident memory of its whole life"
        self._before = self._now()

    def reset(self) -> None:
        """Forget the peak so far, which may be that of a compiler."""
        if self._cuda:
            torch.cuda.reset_peak_memory_stats()
            return
        give_back("cpu")  # what a compiler or a first step left behind is not a step's memory
        try:
            CLEAR.write_text("5")  # the kernel then counts anew from what is resident now
        except OSError:
            return
        self.method = "largest resident memory after the warm-up"

    def peak(self) -> int:
        """Return bytes above what was there at the beginning."""
        return max(0, self._largest() - self._before)

    def _now(self) -> int:
        if self._cuda:
            return torch.cuda.memory_allocated()
        resident = _status("VmRSS")
        return _lifelong() if resident is None else resident

    def _largest(self) -> int:
        if self._cuda:
            return torch.cuda.max_memory_allocated()
        largest = _status("VmHWM")
        return _lifelong() if largest is None else largest


def give_back(device: str) -> None:
    """Return memory that is free inside this process to the system, so that others can have it meanwhile."""
    if device.startswith("cuda"):
        torch.cuda.empty_cache()
    elif sys.platform == "linux":
        with suppress(OSError, AttributeError):  # a C library without it
            ctypes.CDLL(None).malloc_trim(0)


def _status(name: str) -> int | None:
    try:
        found = re.search(rf"^{name}:\s+(\d+) kB", STATUS.read_text(), re.MULTILINE)
    except OSError:  # not Linux
        return None
    return int(found[1]) * 1024 if found else None


def _lifelong() -> int:
    try:
        import resource
    except ImportError as error:
        raise RuntimeError("this system tells no peak memory: measure on Linux, macOS or a GPU") from error
    used = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return used if sys.platform == "darwin" else used * 1024
