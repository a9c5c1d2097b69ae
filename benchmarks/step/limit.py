"""What the hardware could do: the arithmetic a step cannot avoid, over the best rate this machine reaches."""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from functools import partial
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.utils.flop_counter import FlopCounterMode

from step.loops import STEPS
from step.pacing import synchronize

CONVOLUTIONS = ((64, 32), (128, 16), (256, 8), (160, 32))
"""Channels and side of the measured 3x3 convolutions."""

SECONDS = 0.3
"""Time given to each measured operation."""


def step_flops(
    student: nn.Module, clean_teacher: nn.Module, robust_teacher: nn.Module, pixels: Tensor, batch_size: int
) -> dict[str, float]:
    """Count the floating point operations that one training step cannot do without.

    Formula: attack = 10 x (forward + gradient of the pixels), student = 2 x (forward + gradient of the weights), teachers = one
    forward each; a multiplication and an addition are two. Convolutions and matrix products are counted, nothing else.

    Args:
        student: from pixels to logits; afterwards it has gradients and other statistics, so give a copy.
        clean_teacher: from pixels to logits, left in eval mode.
        robust_teacher: the same.
        pixels: ``(b, C, H, W)``, a few images, two at least.
        batch_size: of the step.

    Returns:
        Part to operations per step.
    """
    scale = batch_size / len(pixels)
    parts = {
        "attack": STEPS * _count(lambda: _input_gradient(student.eval(), pixels)),
        "student": 2 * _count(lambda: student.train()(pixels).sum().backward()),
        "teachers": _count(lambda: _answers((clean_teacher, robust_teacher), pixels)),
    }
    return {name: scale * count for name, count in parts.items()}


def _count(work: Callable[[], object]) -> int:
    with FlopCounterMode(
        display=False, custom_mapping={torch.ops.aten.convolution_backward: _backward_flops}
    ) as counter:
        work()
    return counter.get_total_flops()


def _backward_flops(
    output_gradient: Sequence[int], pixels: Any, weight: Sequence[int], *rest: Any, **kwargs: Any
) -> int:
    """Count a convolution's backward: each gradient that is asked for costs as much as the forward.

    torch's own count takes the weights of a grouped convolution for a dense one's.
    """
    transposed, wanted = rest[4], rest[7]
    if transposed:
        raise NotImplementedError("transposed convolutions are not counted: take another network")
    return sum(wanted[:2]) * 2 * output_gradient[0] * math.prod(output_gradient[2:]) * math.prod(weight)


def _input_gradient(student: nn.Module, pixels: Tensor) -> None:
    pixels = pixels.clone().requires_grad_(True)
    logits = student(pixels.clone())  # the counter's hooks cannot be on a leaf
    torch.autograd.grad(F.cross_entropy(logits, logits.argmax(dim=1)), pixels)


@torch.no_grad()
def _answers(teachers: Iterable[nn.Module], pixels: Tensor) -> None:
    for teacher in teachers:
        teacher.eval()(pixels)


def measure_rates(dtype_name: str, device: str, batch_size: int, seconds: float = SECONDS) -> dict[str, float]:
    """Measure how fast large convolutions and a matrix product run here.

    Args:
        dtype_name: ``float32`` or ``bfloat16``. On a GPU float32 convolutions may use TF32, as everywhere in torch.
        device: ``cpu`` or ``cuda``.
        batch_size: of the convolutions.
        seconds: time for each operation.

    Returns:
        Operation to its best rate in floating point operations per second.
    """
    dtype = getattr(torch, dtype_name)
    rates = {}
    with torch.no_grad():
        for channels, side in CONVOLUTIONS:
            images = torch.randn(batch_size, channels, side, side, device=device, dtype=dtype)
            weights = torch.randn(channels, channels, 3, 3, device=device, dtype=dtype)
            images, weights = (t.contiguous(memory_format=torch.channels_last) for t in (images, weights))
            flops = 2 * batch_size * side**2 * channels**2 * 9
            took = _fastest(partial(F.conv2d, images, weights, padding=1), device, seconds)
            rates[f"convolution {channels}x{side}x{side}"] = flops / took
        size = 2048 if device == "cpu" else 8192
        left, right = (torch.randn(size, size, device=device, dtype=dtype) for _ in range(2))
        rates[f"matrix product {size}"] = 2 * size**3 / _fastest(lambda: left @ right, device, seconds)
    return rates


def _fastest(work: Callable[[], Tensor], device: str, seconds: float) -> float:
    """Return the fastest of repeated runs, the first two left out; on a GPU of blocks, since launching takes time too."""
    block = 1 if device == "cpu" else 20
    for _ in range(2):
        work()
    fastest, spent = float("inf"), 0.0
    while spent < seconds:
        synchronize(device)
        began = time.perf_counter()
        for _ in range(block):
            work()
        synchronize(device)
        took = time.perf_counter() - began
        fastest, spent = min(fastest, took / block), spent + took
    return fastest


def best_of(measured: Iterable[Mapping[str, float]]) -> dict[str, float]:
    """Take the best rate of every operation over several measurements."""
    best: dict[str, float] = {}
    for rates in measured:
        for name, rate in rates.items():
            best[name] = max(rate, best.get(name, 0.0))
    return best
