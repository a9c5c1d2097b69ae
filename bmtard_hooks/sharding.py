"""A student sharded over ranks by FSDP2: what fits, what does not, and what it takes."""

from __future__ import annotations

import functools
import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any, TypeVar

import torch
from accelerate.utils import compare_versions
from torch import nn

from bmtard_hooks.callbacks.adversarial_weights import AdversarialWeightPerturbation
from bmtard_hooks.callbacks.robust_evaluation import RobustEvaluation
from bmtard_hooks.callbacks.weight_averaging import WeightAveraging
from bmtard_hooks.distributed import broadcast_weights, is_sharded
from bmtard_hooks.events import FiresEvents
from bmtard_hooks.option_checks import NO_DEEPSPEED, NO_SHARDS

if TYPE_CHECKING:
    from bmtard_hooks.trainer import BMTARDTrainer

Crafting = TypeVar("Crafting", bound=Callable[..., Any])
TRIED_WITH = "1.15"
WHOLE = {
    AdversarialWeightPerturbation: "adversarial weight perturbation needs the norm of whole weights and gradients",
    WeightAveraging: "weight averaging copies the whole student, which a sharded one refuses",
    RobustEvaluation: "RobustEvaluation gives ranks different numbers of forwards, and a sharded forward waits for all",
}
"""Callback to why it does not work on a sharded student."""


def check_sharding(trainer: BMTARDTrainer) -> None:
    """Refuse what a sharded student cannot do; a student that stays whole passes.

    Raises:
        ValueError: for DeepSpeed, FSDP1, FSDP2 where nothing would be sharded, or FSDP2 with what it breaks.
    """
    if trainer.is_deepspeed_enabled or trainer.args.deepspeed:
        raise ValueError(NO_DEEPSPEED)
    if not trainer.is_fsdp_enabled:
        if trainer.args.fsdp or os.environ.get("ACCELERATE_USE_FSDP", "false").lower() == "true":
            raise ValueError(NO_SHARDS)
        if is_sharded(trainer.model):
            raise ValueError("the student is sharded already: pass it whole, and the launcher's FSDP2 shards it")
        return
    plugin = trainer.accelerator.state.fsdp_plugin
    if plugin.fsdp_version != 2:
        raise ValueError(
            f"FSDP version {plugin.fsdp_version} is not supported: it flattens the weights, and torch and transformers give "
            "it up. Use version 2 (recipes/accelerate/fsdp2.yaml), or DDP"
        )
    if not compare_versions("accelerate", ">=", TRIED_WITH):
        raise ValueError(
            f"FSDP2 needs accelerate {TRIED_WITH} or newer, with which it was tried; with 1.8 it hangs. Upgrade accelerate, or use DDP"
        )
    conflicts = [*_conflicts_of_plugin(plugin), *_conflicts_of_options(trainer), *_conflicts_of_parts(trainer)]
    if conflicts:
        raise ValueError("FSDP2 does not go with this run: " + "; ".join(conflicts) + ". Change that, or use DDP")


def _conflicts_of_plugin(plugin: Any) -> Iterator[str]:
    from torch.distributed.fsdp import CPUOffloadPolicy

    if "FULL_STATE_DICT" not in str(plugin.state_dict_type):
        yield "save_model writes nothing from a sharded state dict, so fsdp_state_dict_type must be FULL_STATE_DICT"
    if plugin.activation_checkpointing:
        yield "activation checkpointing runs forwards twice, which moves BatchNorm's statistics twice: switch it off"
    if plugin.cpu_ram_efficient_loading:
        yield "every rank builds the student, so fsdp_cpu_ram_efficient_loading must be false"
    if isinstance(plugin.cpu_offload, CPUOffloadPolicy):
        yield "offloading to the CPU was never tried: set fsdp_offload_params to false"


def _conflicts_of_options(trainer: BMTARDTrainer) -> Iterator[str]:
    args, accelerator = trainer.args, trainer.accelerator
    if args.torch_compile:
        yield "torch_compile was never tried on a sharded student"
    if accelerator.mixed_precision not in ("no", "bf16"):
        yield f"mixed precision {accelerator.mixed_precision} was never tried: use bf16 or none"
    if args.auto_find_batch_size:
        yield "auto_find_batch_size would have to undo the sharding: pass a batch size"
    if args.sync_batch_norm:
        yield "sync_batch_norm was never tried on a sharded student"
    if getattr(accelerator, "parallelism_config", None) is not None:
        yield "a parallelism_config (tensor, context or hybrid sharding) was never tried"


def _conflicts_of_parts(trainer: BMTARDTrainer) -> Iterator[str]:
    for callback in trainer.callback_handler.callbacks:
        for kind, reason in WHOLE.items():
            if isinstance(callback, kind):
                yield reason
    if getattr(trainer.data_collator, "attack", None) is not None:
        yield "attack= of PGDCollator may stop earlier on one rank than on another, and a sharded forward waits for all"
    if is_sharded(trainer.model):
        yield "a second train() of one Trainer cannot find the sharded weights again: make a new Trainer"


def prepare_sharding(trainer: BMTARDTrainer) -> None:
    """Make a student that will be sharded train as a whole one would; a student that stays whole is left alone.

    Ranks get the same weights, as DistributedDataParallel sees to. Mixed precision is autocast, as it is without sharding:
    FSDP2's own would cast the attacked pixels too, and no verdict could be taken in float32.
    """
    if not trainer.is_fsdp_enabled:
        return
    trainer.model.to(memory_format=torch.contiguous_format)  # the images alone decide on channels_last then
    broadcast_weights(trainer.model)
    trainer.accelerator.state.fsdp_plugin.mixed_precision_policy = None
    trainer.accelerator.prepare_model(trainer.model, device_placement=False, evaluation_mode=True)


@contextmanager
def gathered(model: nn.Module) -> Iterator[None]:
    """Keep the weights of a sharded model's outermost group together inside, and for the forward that comes next.

    An attack runs many forwards on the same weights, and each would gather them anew. A model that is not sharded is left
    alone. Groups further inside are handled as their ``reshard_after_forward`` says.
    """
    if not is_sharded(model):
        yield
        return
    whole: Any = model  # an FSDPModule, which is sharded as a whole
    # Gathered before an attack freezes the weights: it has to freeze the whole ones, not the shards, from which frozen whole
    # ones would be made that the training's forward then finds.
    whole.unshard()
    whole.set_reshard_after_backward(False, recurse=False)
    try:
        yield
    finally:
        whole.set_reshard_after_backward(True, recurse=False)


def gathers_once(craft: Crafting) -> Crafting:
    """Let a Trainer's method see ``trainer.model`` gathered; see ``gathered``."""

    @functools.wraps(craft)
    def crafting(trainer: FiresEvents, *args: Any, **kwargs: Any) -> Any:
        model: Any = trainer.model
        with gathered(model):
            return craft(trainer, *args, **kwargs)

    return crafting  # type: ignore[return-value]
