"""Random numbers as a function of a key, so that resuming, workers or evaluation in between cannot move a result."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence

import torch
from torch import Tensor


def keyed_generator(*key: int | str, device: torch.device | str = "cpu") -> torch.Generator:
    """Make a generator whose numbers depend on the key alone.

    Args:
        *key: integers and strings, for example ``(seed, "noise", step, micro_step, rank)``.
        device: where the numbers will be drawn. CPU and GPU generators give different numbers for one key.

    Returns:
        A fresh ``torch.Generator``; the global generators are not touched.
    """
    digest = hashlib.sha256(repr(key).encode()).digest()
    seed = int.from_bytes(digest[:8], "big") >> 1
    return torch.Generator(device=device).manual_seed(seed)


def uniform_by_image(indices: Sequence[int], shape: Sequence[int], *key: int | str) -> Tensor:
    """Draw one block of noise per image, so that batch size and process count cannot change it.

    Args:
        indices: position of each image in its data set, ``B`` of them.
        shape: of one image, ``(C, H, W)``.
        *key: what the noise is for, for example ``(seed, "eval")``.

    Returns:
        ``(B, C, H, W)`` float32 in [-1, 1), on the CPU.
    """
    blocks = [torch.rand(tuple(shape), generator=keyed_generator(*key, int(index))) for index in indices]
    return 2 * torch.stack(blocks) - 1
