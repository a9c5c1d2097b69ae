"""From a config to a method with everything that the config adds to it."""

from __future__ import annotations

from typing import TYPE_CHECKING

from bmtard_hooks.methods.base import Method, method_class
from bmtard_hooks.methods.igdm import with_igdm

if TYPE_CHECKING:
    from bmtard_hooks.config import BMTARDConfig


def make_method(config: BMTARDConfig) -> Method:
    """Make the configured method, with IGDM as a further loss part if ``igdm_weight`` asks for it.

    Raises:
        ValueError: for an unknown method, or a balance that would have nothing to do.
    """
    chosen = method_class(config.method)
    if config.igdm_weight and not chosen.includes_igdm:
        chosen = with_igdm(chosen)
    elif config.igdm_balanced:
        raise ValueError("igdm_balanced=True has nothing to do: pass igdm_weight too, with another method than saad")
    return chosen(config)
