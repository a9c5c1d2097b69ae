"""What a run began with, so that it cannot go on with something else without anybody noticing."""

from __future__ import annotations

import hashlib
import logging
from collections.abc import Collection, Mapping
from dataclasses import fields
from typing import Any

import torch
from torch import nn
from transformers import TrainingArguments

from bmtard_hooks.config import BMTARDConfig
from bmtard_hooks.data import is_map_style

logger = logging.getLogger(__name__)

SHARED_OPTIONS = (
    *(
        "seed",
        "data_seed",
        "num_train_epochs",
        "max_steps",
        "per_device_train_batch_size",
        "gradient_accumulation_steps",
    ),
    *("optim", "learning_rate", "weight_decay", "lr_scheduler_type", "warmup_steps", "max_grad_norm", "world_size"),
    *("bf16", "fp16", "torch_compile", "dataloader_drop_last"),
)
"""Options of transformers that change what a run learns."""
WITHOUT_EFFECT = ("overwrite_output_dir", "stop_signals", "max_skipped_steps")
"""Options of this library that do not; those of the evaluation begin with ``eval``."""


def describe_origin(
    args: BMTARDConfig, teachers: Mapping[str, nn.Module], trained: Collection[str], rows: Any
) -> dict[str, Any]:
    """Describe teachers, data and options.

    Args:
        args: the run's options.
        teachers: by role.
        trained: roles whose weights move, which say nothing.
        rows: the training set.

    Returns:
        Plain JSON values.
    """
    shared = {entry.name for entry in fields(TrainingArguments)}
    own = [entry.name for entry in fields(args) if entry.name not in shared]
    changes_result = [name for name in own if name not in WITHOUT_EFFECT and not name.startswith("eval")]
    return {
        "teachers": {name: weights_digest(teacher) for name, teacher in teachers.items() if name not in trained},
        "train_rows": len(rows) if is_map_style(rows) else None,
        "options": {name: getattr(args, name) for name in sorted({*changes_result, *SHARED_OPTIONS})},
    }


@torch.no_grad()
def weights_digest(model: nn.Module) -> str:
    """Return the SHA-256 of a model's weights and buffers, with their names, in hexadecimal."""
    digest = hashlib.sha256()
    for name, value in sorted(model.state_dict().items()):
        digest.update(f"{name} {value.dtype} {tuple(value.shape)}".encode())
        digest.update(value.detach().cpu().contiguous().reshape(-1).view(torch.uint8).numpy().tobytes())
    return digest.hexdigest()


def compare_origin(saved: Mapping[str, Any], now: Mapping[str, Any], checkpoint: str) -> None:
    """Refuse to go on with other teachers or data, and warn of other options.

    Args:
        saved: what the run began with.
        now: what it would go on with.
        checkpoint: for the message.

    Raises:
        ValueError: naming the teacher, or both numbers of images.
    """
    for role, digest in saved["teachers"].items():
        if now["teachers"].get(role, digest) != digest:
            raise ValueError(
                f"the {role} teacher has other weights than the one with which the run of {checkpoint} began: pass that one, or "
                "start anew in another output_dir"
            )
    if saved["train_rows"] != now["train_rows"]:
        raise ValueError(
            f"train_dataset has {now['train_rows']} rows, the run of {checkpoint} began with {saved['train_rows']}: pass the same "
            "data, or start anew in another output_dir"
        )
    changed = [
        f"{name} {saved['options'][name]!r} -> {value!r}"
        for name, value in now["options"].items()
        if name in saved["options"] and saved["options"][name] != value
    ]
    if changed:
        logger.warning(
            "the run goes on with other options than it began with, so it does not equal an uninterrupted one: %s",
            ", ".join(changed),
        )
