"""The two things ranks must agree on: observed scalars, and the buffers that an attack or an evaluation sees."""

from __future__ import annotations

import atexit
from collections import defaultdict
from collections.abc import Iterable, Mapping

import torch
import torch.distributed as dist
from accelerate import PartialState
from torch import Tensor, nn


def processes() -> PartialState:
    """Return Accelerate's state of the processes, which it makes on the first call.

    Without an accelerator it has to be told so, or each of several processes would take itself for the only one.
    """
    state = PartialState(cpu=not torch.accelerator.is_available())
    leave_at_exit()
    return state


def leave_at_exit() -> None:
    """See to it that this process leaves the others in order when it exits, by ``sys.exit`` too.

    Without that, gloo's threads may abort a process that has done all its work. NCCL looks after itself, and could wait for
    processes that failed.
    """
    if is_distributed() and dist.get_backend() == "gloo":
        atexit.unregister(_leave)
        atexit.register(_leave)


def _leave() -> None:
    if dist.is_initialized():
        dist.destroy_process_group()


def is_distributed() -> bool:
    """Tell whether there is more than one process."""
    return dist.is_available() and dist.is_initialized() and dist.get_world_size() > 1


def average_over_ranks(values: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Average named tensors over all processes in one all-reduce, in float64.

    Args:
        values: the same names in the same order on every rank.

    Returns:
        The same names and shapes; identical on every rank. MPS, which lacks float64, gets float32.
    """
    if not values:
        return {}
    device = next(iter(values.values())).device
    dtype = torch.float32 if device.type == "mps" else torch.float64
    stacked = torch.cat([value.detach().to(dtype).reshape(-1) for value in values.values()])
    if is_distributed():
        dist.all_reduce(stacked)
        stacked = stacked / dist.get_world_size()
    split = stacked.split([value.numel() for value in values.values()])
    return {name: part.view(value.shape) for (name, value), part in zip(values.items(), split, strict=True)}


def rank_key() -> tuple[int, ...]:
    """Return what keeps this process's random numbers apart from the others'; empty for the first, which draws as one alone."""
    return (dist.get_rank(),) if is_distributed() and dist.get_rank() else ()


def world_size() -> int:
    """Return the number of processes."""
    return dist.get_world_size() if is_distributed() else 1


def extremes_over_ranks(lowest: Tensor, highest: Tensor) -> tuple[Tensor, Tensor]:
    """Find the lowest of every rank's lowest and the highest of every rank's highest value, in one all-reduce.

    Args:
        lowest: 0-dim.
        highest: 0-dim.
    """
    both = torch.stack([-lowest.detach(), highest.detach()])
    if is_distributed():
        dist.all_reduce(both, op=dist.ReduceOp.MAX)
    return -both[0], both[1]


def broadcast_buffers(model: nn.Module) -> None:
    """Give every rank the buffers of rank 0.

    DistributedDataParallel does so only inside its forward. Between steps each rank has moved its own BatchNorm
    statistics, so an attack or an evaluation would see another model on every rank, and a resumed run yet another.
    """
    if not is_distributed():
        return
    _broadcast(model.buffers())


def broadcast_weights(model: nn.Module) -> None:
    """Give every rank the parameters and buffers of rank 0, as DistributedDataParallel does when it wraps a model."""
    if is_distributed():
        _broadcast([*model.parameters(), *model.buffers()])


def is_sharded(model: nn.Module) -> bool:
    """Tell whether each rank holds only a part of the parameters (FSDP2), so that none may be read or copied for itself."""
    if not dist.is_available():
        return False
    from torch.distributed.fsdp import FSDPModule

    return any(isinstance(module, FSDPModule) for module in model.modules())


@torch.no_grad()
def _broadcast(tensors: Iterable[Tensor]) -> None:
    by_device: dict[torch.device, list[Tensor]] = defaultdict(list)
    for tensor in tensors:
        by_device[tensor.device].append(tensor)
    for together in by_device.values():  # as bytes, so that numbers of all kinds take one message
        together.sort(key=lambda tensor: -tensor.element_size())  # whose parts then start at multiples of their size
        flat = torch.cat([tensor.reshape(-1).view(torch.uint8) for tensor in together])
        dist.broadcast(flat, 0)
        parts = flat.split([tensor.numel() * tensor.element_size() for tensor in together])
        for tensor, part in zip(together, parts, strict=True):
            # through .data, because a graph may still need the old values
            tensor.data.copy_(part.view(tensor.dtype).view(tensor.shape))


def average_gradients(parameters: Iterable[Tensor]) -> None:
    """Replace every gradient by its mean over all processes; for what DistributedDataParallel does not wrap."""
    average_in_place(parameter.grad for parameter in parameters if parameter.grad is not None)


def average_in_place(tensors: Iterable[Tensor]) -> None:
    """Replace every tensor by its mean over all processes, in its own precision."""
    if not is_distributed():
        return
    for tensor in tensors:
        dist.all_reduce(tensor)
        tensor /= dist.get_world_size()
