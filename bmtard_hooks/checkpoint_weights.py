"""Weights of a checkpoint that come back whole: transformers renames some on saving, and its Trainer does not on loading."""

from __future__ import annotations

import functools
from collections.abc import Collection, Container, Mapping
from typing import Any

import torch
from torch import Tensor, nn
from transformers import PreTrainedModel, Trainer

from bmtard_hooks.config import BMTARDConfig
from bmtard_hooks.randomness import untouched_randomness

Unmatched = tuple[list[str], list[str]]
"""Names of the model that the file lacks, and names of the file that the model lacks."""


class ReadsWholeWeights(Trainer):
    """Reads every weight of a checkpoint, or says which are missing, where ``Trainer`` would go on with a part of them.

    ``save_pretrained`` writes ViT, DeiT, Swin, BEiT, DINOv2 and others under the names of earlier releases, which only
    ``from_pretrained`` translates. What fits as it is stays as it was read. Sharded students have a format of their own.
    """

    args: BMTARDConfig
    model: Any
    _unmatched: Unmatched = ([], [])

    def _load_from_checkpoint(self, resume_from_checkpoint: str, model: Any = None) -> None:
        self._unmatched = ([], [])
        super()._load_from_checkpoint(resume_from_checkpoint, model)
        self._read_unmatched(resume_from_checkpoint)

    def _load_best_model(self) -> None:
        self._unmatched = ([], [])
        super()._load_best_model()
        if self.state.best_model_checkpoint is not None:
            self._read_unmatched(self.state.best_model_checkpoint)

    def _issue_warnings_after_load(self, load_result: Any) -> None:
        missing = _missed(self.model, load_result.missing_keys)
        self._unmatched = (missing, sorted(load_result.unexpected_keys))

    def _read_unmatched(self, checkpoint: str) -> None:
        if any(self._unmatched):
            with untouched_randomness(self.args.device):
                read_translated(self.model, checkpoint, self._unmatched)


def read_translated(model: nn.Module, checkpoint: str, unmatched: Unmatched) -> None:
    """Load a transformers network's weights from names of earlier releases, into the tensors that it has.

    Args:
        model: the network.
        checkpoint: folder that ``save_pretrained`` wrote.
        unmatched: what did not fit as it is, for the message.

    Raises:
        ValueError: if names or shapes differ after the translation too, or there is none for such a network.
    """
    if not isinstance(model, PreTrainedModel):
        raise ValueError(_misfit(model, checkpoint, unmatched))
    try:
        found: Any = type(model).from_pretrained(
            checkpoint, config=model.config, dtype=_widest(model), local_files_only=True, output_loading_info=True
        )
    except (OSError, RuntimeError, TypeError, ValueError) as error:
        raise ValueError(_misfit(model, checkpoint, unmatched)) from error
    stored, info = found
    left: Unmatched = (_missed(model, info["missing_keys"]), sorted(info["unexpected_keys"]))
    if any(left):
        raise ValueError(_misfit(model, checkpoint, left))
    model.load_state_dict(stored.state_dict(), strict=False)  # which leaves out what the network itself leaves out


def _widest(model: nn.Module) -> torch.dtype:
    """Find a type that holds every weight exactly; the model's own tensors then take theirs."""
    found = [value.dtype for value in model.state_dict().values() if value.is_floating_point()]
    return functools.reduce(torch.promote_types, found, torch.float32)


def _missed(model: nn.Module, missing: Collection[str]) -> list[str]:
    """Leave out what a file need not hold: weights that share the memory of others, which were read, and those of adapters.

    A network with adapters may leave its frozen weights out of its ``state_dict()``: they are those that it was made with.
    """
    state = model.state_dict()
    read = {value.data_ptr() for name, value in state.items() if name not in missing}
    frozen = {name for name, weight in model.named_parameters(remove_duplicate=False) if not weight.requires_grad}
    return sorted(name for name in missing if not _spared(name, state, read, frozen))


def _spared(name: str, state: Mapping[str, Tensor], read: Container[int], frozen: Container[str]) -> bool:
    return state[name].data_ptr() in read if name in state else name in frozen


def _misfit(model: nn.Module, checkpoint: str, unmatched: Unmatched) -> str:
    missing, unexpected = unmatched
    return (
        f"{checkpoint} does not hold the weights of this {type(model).__name__}: {len(missing)} are missing ({_first(missing)}), "
        f"{len(unexpected)} are unknown to it ({_first(unexpected)}). Pass the student with which the run began, of the same "
        "architecture, options and class count, or start anew in another output_dir"
    )


def _first(names: Collection[str], limit: int = 3) -> str:
    return ", ".join([*list(names)[:limit], *(["…"] if len(names) > limit else [])]) or "none"
