"""B-MTARD with three teachers: a clean one and one for each of two norms."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from bmtard_hooks.methods.base import ADVERSARIAL, register
from bmtard_hooks.methods.bmtard import BMTARD

if TYPE_CHECKING:
    from bmtard_hooks.config import BMTARDConfig

L2_ADVERSARIAL = "adv_l2_pixel_values"


@register("bmtard_union")
class BMTARDUnion(BMTARD):
    """One student, robust in L-infinity and in L2, from three teachers balanced by the same two callbacks.

    Formula: ``L = sum_k w_k * KL(T_k(x_k; tau_k), S(x_k))`` over the teachers ``robust`` on L-infinity examples, ``robust_l2``
    on L2 examples (radius ``l2_eps``) and ``clean`` on clean images. Each temperature moves towards equal entropy with the
    mean of all three, each weight towards its part's share of the relative losses. The paper has two teachers; three are
    this library's extension.

    Raises:
        ValueError: if ``norm`` is not ``linf``, because the L2 attack has options of its own.
    """

    views = {"robust": ADVERSARIAL, "robust_l2": L2_ADVERSARIAL, "clean": "pixel_values"}

    def __init__(self, config: BMTARDConfig) -> None:
        super().__init__(config)
        if config.norm != "linf":
            raise ValueError(
                f"norm={config.norm!r}: method 'bmtard_union' attacks in linf with eps and in l2 with l2_eps: leave norm out"
            )

    @property
    def adversarial_views(self) -> dict[str, Mapping[str, Any]]:
        """Two attacks on the same images."""
        l2 = {"norm": "l2", "eps": self.config.l2_eps, "step_size": self.config.l2_step_size}
        return {ADVERSARIAL: {}, L2_ADVERSARIAL: l2}
