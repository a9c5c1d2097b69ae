"""Buffers of networks that are put back as they were: BatchNorm's statistics, and those that a module keeps itself."""

from __future__ import annotations

from collections.abc import Callable

from torch import nn


def kept_buffers(*networks: nn.Module) -> Callable[[], None]:
    """Remember every buffer of some networks; what is returned puts all of them back.

    A module may change a buffer in place, as BatchNorm does, or assign a new tensor. So value and tensor are both put back.

    Args:
        *networks: whose own buffers, and those of all modules inside, are remembered.
    """
    kept = [
        (module, name, buffer, None if buffer is None else buffer.detach().clone())
        for network in networks
        for module in network.modules()
        for name, buffer in module._buffers.items()
    ]

    def put_back() -> None:
        for module, name, buffer, value in kept:
            if buffer is not None and value is not None:
                buffer.data.copy_(value)  # through .data, because autograd refuses a graph whose statistics moved
            module._buffers[name] = buffer

    return put_back
