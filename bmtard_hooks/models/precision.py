"""Float32 that is really float32, inside a mixed-precision run."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import torch
from torch import nn


@contextmanager
def full_precision(module: nn.Module) -> Iterator[None]:
    """Run a module without the mixed precision that Accelerate put around its forward.

    Accelerate replaces the instance's ``forward``; hiding the replacement gives float32 logits bit-identical to those
    of a plain model. Switching autocast off from outside has no effect, because the inner context wins.
    """
    # Accelerate leaves the original beside its replacement; a forward that somebody else put there is part of the model.
    replaced = module.__dict__.pop("forward", None) if "_original_forward" in module.__dict__ else None
    try:
        yield
    finally:
        if replaced is not None:
            module.__dict__["forward"] = replaced


@contextmanager
def exact_arithmetic() -> Iterator[None]:
    """Switch TF32 off: its ten bits of mantissa flip verdicts."""
    matmul, convolution = torch.backends.cuda.matmul.allow_tf32, torch.backends.cudnn.allow_tf32
    torch.backends.cuda.matmul.allow_tf32 = torch.backends.cudnn.allow_tf32 = False
    try:
        yield
    finally:
        torch.backends.cuda.matmul.allow_tf32, torch.backends.cudnn.allow_tf32 = matmul, convolution
