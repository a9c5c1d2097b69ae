"""B-MTARD with three teachers: a clean one and one for each of two norms."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from bmtard_hooks.methods.base import ADVERSARIAL, register
from bmtard_hooks.methods.bmtard import BMTARD

L2_ADVERSARIAL = "adv_l2_pixel_values"


@register("bmtard_union")
class BMTARDUnion(BMTARD):
    """One student, robust in L-infinity and in L2, from three teachers balanced by the same two callbacks.

    Formula: ``L = sum_k w_k * KL(T_k(x_k; tau_k), S(x_k))`` over the teachers ``robust`` on L-infinity examples, ``robust_l2``
    on L2 examples (radius ``l2_eps``) and ``clean`` on clean images. Each temperature moves towards equal entropy with the
    mean of all three, each weight towards its part's share of the relative losses. The paper has two teachers; three are
    this library's extension.
    """

    views = {"robust": ADVERSARIAL, "robust_l2": L2_ADVERSARIAL, "clean": "pixel_values"}

    @property
    def adversarial_views(self) -> dict[str, Mapping[str, Any]]:
        """Two attacks on the same images."""
        l2 = {"norm": "l2", "eps": self.config.l2_eps, "step_size": self.config.l2_step_size}
        return {ADVERSARIAL: {}, L2_ADVERSARIAL: l2}
