"""The command `bmtard train`."""

from __future__ import annotations

from collections.abc import Sequence

from bmtard_hooks.distil import distil
from bmtard_hooks.distributed import processes


def train(argv: Sequence[str]) -> str:
    """Train a student from its teachers, save the best checkpoint, and tabulate both on the test split, as the recipes do."""
    _, table = distil(argv, train.__doc__, program="bmtard train")
    return table if processes().is_main_process else ""
