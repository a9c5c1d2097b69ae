"""Callbacks that options add to any method."""

from __future__ import annotations

from bmtard_hooks.callbacks.adversarial_weights import AdversarialWeightPerturbation
from bmtard_hooks.callbacks.base import DistillationCallback
from bmtard_hooks.methods.base import Method


def added_callbacks(method: Method) -> list[DistillationCallback]:
    """Make the callbacks that the method's config adds to it.

    Args:
        method: the method.
    """
    config = method.config
    callbacks: list[DistillationCallback] = []
    if config.awp_gamma:
        callbacks.append(AdversarialWeightPerturbation(config.awp_gamma, config.awp_begin, config.awp_restore))
    return callbacks
