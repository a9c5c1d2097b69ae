"""How strongly CIARD pushes: as strongly as the weaker of its two losses pulls."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

from bmtard_hooks.callbacks.base import DistillationCallback
from bmtard_hooks.state import DistillationState


class PushScale(DistillationCallback):
    """Gives the part ``push`` the order of magnitude of the smaller of the losses ``robust`` and ``clean``.

    Formula: ``w_push = 10 ** (min(order(L_robust), order(L_clean)) - order(P))`` with ``order(v) = floor(log10 v)``, on the losses
    of the whole step. Moved at step t, used at step t.

    Reference: CIARD, ICCV 2025, the authors' released code.
    """

    def on_losses(
        self,
        args: Any,
        state: Any,
        control: Any,
        *,
        losses: Mapping[str, Tensor],
        entropies: Mapping[str, Tensor],
        distillation: DistillationState,
        **kwargs: Any,
    ) -> None:
        """Set the weight of the push."""
        smaller = torch.minimum(_order(losses["robust"]), _order(losses["clean"]))
        distillation.weights["push"] = 10 ** (smaller - _order(losses["push"]))


def _order(value: Tensor) -> Tensor:
    return torch.floor(torch.log10(torch.where(value > 0, value, 1e-7)))  # rounding can make a KL negative
