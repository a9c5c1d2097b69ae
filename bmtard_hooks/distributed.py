"""The two things ranks must agree on: observed scalars, and the buffers that an attack or an evaluation sees."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Mapping

import torch
import torch.distributed as dist
from accelerate import PartialState
from torch import Tensor, nn


def processes() -> PartialState:
    """Return Accelerate's state of the processes, which it makes on the first call.

    Without an accelerator it has to be told so, or each of several processes would take itself for the only one.
    """
    return PartialState(cpu=not torch.accelerator.is_available())


def is_distributed() -> bool:
    """Tell whether there is more than one process."""
    return dist.is_available() and dist.is_initialized() and dist.get_world_size() > 1


def average_over_ranks(values: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Average named 0-dim tensors over all processes in one all-reduce, in float64.

    Args:
        values: the same names in the same order on every rank.

    Returns:
        The same names; identical on every rank. MPS, which lacks float64, gets float32.
    """
    if not values:
        return {}
    device = next(iter(values.values())).device
    dtype = torch.float32 if device.type == "mps" else torch.float64
    stacked = torch.stack([value.detach().to(dtype) for value in values.values()])
    if is_distributed():
        dist.all_reduce(stacked)
        stacked = stacked / dist.get_world_size()
    return dict(zip(values, stacked.unbind(), strict=True))


def broadcast_buffers(model: nn.Module) -> None:
    """Give every rank the buffers of rank 0.

    DistributedDataParallel does so only inside its forward. Between steps each rank has moved its own BatchNorm
    statistics, so an attack or an evaluation would see another model on every rank, and a resumed run yet another.
    """
    if not is_distributed():
        return
    groups: dict[tuple[torch.dtype, torch.device], list[Tensor]] = defaultdict(list)
    for buffer in model.buffers():
        groups[buffer.dtype, buffer.device].append(buffer)
    with torch.no_grad():
        for buffers in groups.values():
            flat = torch.cat([buffer.reshape(-1) for buffer in buffers])
            dist.broadcast(flat, 0)
            for buffer, values in zip(buffers, flat.split([buffer.numel() for buffer in buffers]), strict=True):
                buffer.copy_(values.view_as(buffer))
