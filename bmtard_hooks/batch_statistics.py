"""Running statistics of BatchNorm layers, estimated anew for weights that were never trained with them."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils.data import BatchSampler, Sampler

from bmtard_hooks.models.precision import exact_arithmetic, full_precision


def batch_norms(model: nn.Module) -> list[Any]:
    """Find the BatchNorm layers that keep running statistics."""
    found = [module for module in model.modules() if isinstance(module, nn.modules.batchnorm._BatchNorm)]
    return [norm for norm in found if norm.track_running_stats and norm.running_mean is not None]


class BatchesOfSeveral(Sampler[list[int]]):
    """Gives indices in batches; one that is left over joins the batch before it, because BatchNorm may not take it alone.

    Args:
        order: gives the indices.
        size: of a batch. If it is 1, batches of one are what was asked for.
    """

    def __init__(self, order: Sampler[int], size: int) -> None:
        self.order, self.size = order, size

    def __iter__(self) -> Iterator[list[int]]:
        """Go through all indices once."""
        before: list[int] = []
        for batch in BatchSampler(self.order, self.size, drop_last=False):
            if len(batch) == 1 < self.size:
                before += batch
                break
            if before:
                yield before
            before = batch
        if before:
            yield before


@torch.no_grad()
def estimate_statistics(
    model: nn.Module, forward: Callable[[Tensor], Tensor], batches: Iterable[Tensor], by_sample: bool
) -> None:
    """Replace the running statistics of every BatchNorm layer by those of the model's current weights.

    Formula: ``S <- S + m * (s_B - S)`` over batches B, variances unbiased, with ``m = |B| / (images so far)`` if every image
    counts the same (Chen et al.) and ``m = 1 / (batches so far)`` if every batch does (torch's ``update_bn``).

    Args:
        model: in any mode, which is kept; in training mode meanwhile.
        forward: runs the model on pixels, in float32.
        batches: pixels ``(B, C, H, W)``.
        by_sample: count images, not batches.
    """
    norms = batch_norms(model)
    modes = [(module, module.training) for module in model.modules()]
    momenta = [norm.momentum for norm in norms]
    seen = 0
    try:
        model.train()
        for norm in norms:
            norm.reset_running_stats()
            norm.momentum = None
        with full_precision(model), exact_arithmetic():
            for pixels in batches:
                seen += len(pixels)
                for norm in norms if by_sample else ():
                    norm.momentum = len(pixels) / seen
                forward(pixels)
    finally:
        for norm, momentum in zip(norms, momenta, strict=True):
            norm.momentum = momentum
        for module, training in modes:
            module.training = training
