"""Float32 that is really float32, inside a mixed-precision run."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import nn


def not_float32(module: nn.Module, *, trained: bool = False) -> str:
    """Name the types of a module's weights that are floats of another kind than float32; empty if there are none.

    Args:
        module: any module.
        trained: look only at weights that need a gradient.
    """
    weights = [weight for weight in module.parameters() if weight.requires_grad or not trained]
    others = {str(weight.dtype) for weight in weights if weight.is_floating_point() and weight.dtype != torch.float32}
    return ", ".join(sorted(others))


def require_float32(role: str, network: nn.Module) -> None:
    """Refuse to train in half precision, in which most steps are too small to move a weight.

    Args:
        role: what it is called in messages, for example ``student``.
        network: about to be trained.

    Raises:
        ValueError: naming the types of trained weights that are not float32.
    """
    others = not_float32(network, trained=True)
    if others:
        raise ValueError(
            f"the {role} has {others} weights: weights that are trained must be float32, pass model.float(). bf16=True of the "
            "config computes in half precision where it is safe"
        )


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
    """Switch TF32 off: its ten bits of mantissa flip verdicts.

    The older switches (``allow_tf32``) raise errors once somebody has used the newer ones (``fp32_precision``), as transformers
    does for ``tf32`` and ``torch_compile``, and leave TF32 on in convolutions. So the newer ones it is.
    """
    cudnn: Any = torch.backends.cudnn
    switches: list[Any] = [torch.backends.cuda.matmul, cudnn, cudnn.conv, cudnn.rnn]  # the second sets those after it
    before = [switch.fp32_precision for switch in switches]
    for switch in switches:
        switch.fp32_precision = "ieee"
    try:
        yield
    finally:
        for switch, precision in zip(switches, before, strict=True):
            switch.fp32_precision = precision
