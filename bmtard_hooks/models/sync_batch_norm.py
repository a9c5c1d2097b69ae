"""BatchNorm layers that take the statistics of a step over the images of all ranks."""

from __future__ import annotations

import logging

from timm.layers import BatchNormAct2d, convert_sync_batchnorm
from torch import nn

logger = logging.getLogger(__name__)

CONVERTIBLE = (nn.BatchNorm1d, nn.BatchNorm2d, nn.BatchNorm3d, nn.SyncBatchNorm, BatchNormAct2d)


def synchronise_batch_norm(network: nn.Module) -> int:
    """Replace every BatchNorm layer inside a network by ``torch.nn.SyncBatchNorm``, before anything wraps the network.

    Parameters and statistics stay the very same tensors under the same names, so a saved state dict fits the network with and
    without. In eval mode, and in one process, the new layers compute what the old ones do.

    Args:
        network: changed in place; must not be a BatchNorm layer itself.

    Returns:
        The number of layers.

    Raises:
        ValueError: for a BatchNorm layer of another kind, whose own forward the replacement would drop.
    """
    norms = {name: m for name, m in network.named_modules() if isinstance(m, nn.modules.batchnorm._BatchNorm)}
    for name, norm in norms.items():
        if type(norm) not in CONVERTIBLE:
            raise ValueError(
                f"sync_batch_norm cannot replace {name}, a {type(norm).__name__}, by torch.nn.SyncBatchNorm without losing what "
                "is its own: leave sync_batch_norm off"
            )
    if not norms:
        logger.warning("sync_batch_norm has nothing to do: the student has no BatchNorm")
    convert_sync_batchnorm(network)
    return len(norms)
