"""Random numbers as a function of a key, so that resuming, workers or evaluation in between cannot move a result."""

from __future__ import annotations

import hashlib
import random
from collections.abc import Iterator
from contextlib import contextmanager

import numpy as np
import torch


def keyed_generator(*key: int | str, device: torch.device | str = "cpu") -> torch.Generator:
    """Make a generator whose numbers depend on the key alone.

    Args:
        *key: integers and strings, for example ``(seed, "noise", step, micro_step, rank)``.
        device: where the numbers will be drawn. CPU and GPU generators give different numbers for one key.

    Returns:
        A fresh ``torch.Generator``; the global generators are not touched.
    """
    plain = tuple(part if isinstance(part, str) else int(part) for part in key)  # numpy's integers print otherwise
    digest = hashlib.sha256(repr(plain).encode()).digest()
    seed = int.from_bytes(digest[:8], "big") >> 1
    return torch.Generator(device=device).manual_seed(seed)


@contextmanager
def untouched_randomness(device: torch.device) -> Iterator[None]:
    """Put the global random generators of Python, numpy and torch back afterwards.

    Args:
        device: the training device; its generator is restored too.
    """
    python, numbers = random.getstate(), np.random.get_state()
    try:
        with torch.random.fork_rng([device] if device.type == "cuda" else []):
            yield
    finally:
        random.setstate(python)
        np.random.set_state(numbers)
