"""Callbacks that options add to any method."""

from __future__ import annotations

from bmtard_hooks.callbacks.adversarial_weights import AdversarialWeightPerturbation
from bmtard_hooks.callbacks.base import DistillationCallback
from bmtard_hooks.callbacks.weight_averaging import WeightAveraging
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
    callbacks += weight_averaging(method)
    return callbacks


def weight_averaging(method: Method) -> list[DistillationCallback]:
    """Make the method's own weight averaging, or the one that the config asks for; empty without.

    Args:
        method: the method.
    """
    config, own = method.config, method.averaging
    kind = config.weight_averaging or (own[0] if own else "none")
    if kind == "none":
        return []
    start, statistics = config.averaging_start, config.averaging_statistics
    if own and kind == own[0]:  # the authors estimate BatchNorm with torch's update_bn
        start = own[1] if start is None else start
        statistics = statistics or "batches"
    return [WeightAveraging(kind, config.averaging_decay, start, statistics, config.averaging_warmup)]
