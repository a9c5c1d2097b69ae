"""Students that transformers' Trainer could not handle, or would train otherwise than asked for."""

from __future__ import annotations

from typing import Any

from torch import nn

from bmtard_hooks.batch_statistics import batch_norms
from bmtard_hooks.config import BMTARDConfig


def refuse_student(network: nn.Module, args: BMTARDConfig) -> None:
    """Refuse a student that does not go with transformers' Trainer, or with these options of it.

    Args:
        network: the student inside its ``PixelClassifier``.
        args: the run's options.

    Raises:
        ValueError: for a ``config`` that takes no attributes, and for activation checkpointing where the network has none or
            BatchNorm's statistics would move twice.
    """
    _require_writable_config(network, args)
    if any(getattr(args, option, False) for option in ("activation_checkpointing", "gradient_checkpointing")):
        _require_checkpointing(network)


def _require_writable_config(network: nn.Module, args: BMTARDConfig) -> None:
    config: Any = getattr(network, "config", None)
    if config is None:
        return
    try:
        config.use_cache = args.use_cache  # as transformers does
    except (AttributeError, TypeError) as error:
        raise ValueError(
            f"the config of the student ({type(network).__name__}) is a {type(config).__name__}, and transformers sets an attribute of "
            "whatever has that name: give it another name, for example settings, or make it a types.SimpleNamespace(**config)"
        ) from error


def _require_checkpointing(network: nn.Module) -> None:
    name, option = type(network).__name__, "activation_checkpointing=True (or gradient_checkpointing=True)"
    norms = len(batch_norms(network))
    if norms:
        raise ValueError(
            f"{option} runs forwards twice, which would move the statistics of the student's {norms} BatchNorm layer(s) twice in every "
            "step: leave it off, or take a student without BatchNorm"
        )
    enabling = ("activation_checkpointing_enable", "gradient_checkpointing_enable")
    if not any(hasattr(network, method) for method in enabling):
        raise ValueError(
            f"{option} needs a student with a method {' or '.join(enabling)}, as networks of transformers have, and {name} has neither: "
            "leave it off, or call torch.utils.checkpoint in the student's forward"
        )
    if not getattr(network, "supports_gradient_checkpointing", True):
        raise ValueError(f"{option} is not supported by {name}: leave it off, or take another student")
