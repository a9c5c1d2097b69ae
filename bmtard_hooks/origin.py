"""What a run began with, so that it cannot go on with something else without anybody noticing."""

from __future__ import annotations

import json
import logging
import math
from collections.abc import Collection, Mapping
from dataclasses import fields
from enum import Enum
from typing import Any

from bmtard_hooks.config import BMTARDConfig
from bmtard_hooks.data import is_map_style
from bmtard_hooks.evaluation.outcome_store import fingerprint_tensors
from bmtard_hooks.models.pixels import PixelClassifier

logger = logging.getLogger(__name__)

WITHOUT_INFLUENCE = {
    *("output_dir", "overwrite_output_dir", "resume_from_checkpoint", "ignore_data_skip", "run_name", "project"),
    *("report_to", "disable_tqdm", "use_cpu", "per_device_eval_batch_size", "eval_accumulation_steps"),
    *("save_total_limit", "save_safetensors", "save_on_each_node", "torch_empty_cache_steps", "skip_memory_metrics"),
    *("do_train", "do_eval", "do_predict", "restore_callback_states_from_checkpoint", "remove_unused_columns"),
    *("dataloader_num_workers", "dataloader_pin_memory", "dataloader_persistent_workers"),
    *("dataloader_prefetch_factor", "ddp_timeout", "ddp_backend", "local_rank", "batch_eval_metrics"),
    *("include_num_input_tokens_seen", "method", "seed"),  # the last two stand on their own
    "stop_signals",
}
"""Options that change where a run writes, what it shows or how fast it is, but not its result."""

PREFIXES_WITHOUT_INFLUENCE = ("logging_", "log_", "hub_", "push_to_hub", "trackio_", "include_for_")


OF_A_STEP = ("per_device_train_batch_size", "gradient_accumulation_steps", "world_size")
"""Options whose product is the number of images in a step."""

OF_THE_COURSE = ("save_", "eval_")
"""How the names of options begin that say when a run saves and evaluates."""


def influential_options(config: BMTARDConfig) -> dict[str, Any]:
    """List the options that change a result, as plain JSON values."""
    return {name: plain(getattr(config, name)) for name in _names()}


def _names() -> list[str]:
    return [
        entry.name
        for entry in fields(BMTARDConfig)
        if entry.init and entry.name not in WITHOUT_INFLUENCE and not entry.name.startswith(PREFIXES_WITHOUT_INFLUENCE)
    ]


def plain(value: Any) -> Any:
    """Turn a value into what reading its JSON gives."""
    if isinstance(value, Enum):
        return value.value
    if hasattr(value, "to_dict"):
        value = value.to_dict()
    return json.loads(json.dumps(value, default=str))


def describe_origin(
    args: BMTARDConfig, teachers: Mapping[str, PixelClassifier], trained: Collection[str], rows: Any
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
    options = {name: value for name, value in influential_options(args).items() if not name.startswith(OF_THE_COURSE)}
    return {
        "teachers": {name: _digest(teacher) for name, teacher in teachers.items() if name not in trained},
        "train_rows": len(rows) if is_map_style(rows) else None,
        "options": {**options, "seed": args.seed, "world_size": args.world_size},
    }


def _digest(teacher: PixelClassifier) -> str:
    normalisation = [values for values in (teacher.mean, teacher.std) if values is not None]
    return fingerprint_tensors([*teacher.state_dict().values(), *normalisation])


def compare_origin(saved: Mapping[str, Any], now: Mapping[str, Any], checkpoint: str) -> None:
    """Refuse to go on with other teachers, data or images per step, and warn of other options.

    Args:
        saved: what the run began with, see ``describe_origin``, and ``images_per_step``.
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
    _require_same_step(saved, now, checkpoint)
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


def _require_same_step(saved: Mapping[str, Any], now: Mapping[str, Any], checkpoint: str) -> None:
    """Refuse other images per step: steps done would count as other epochs, so the run would end early or late."""
    before, images = saved.get("images_per_step"), now["images_per_step"]
    if before is None:  # a checkpoint of an older release
        before, images = (_product(origin["options"]) for origin in (saved, now))
    if before == images or None in (before, images):
        return
    size, steps = (now["options"][name] for name in ("per_device_train_batch_size", "gradient_accumulation_steps"))
    larger = {
        "gradient_accumulation_steps": (steps * before, images),
        "per_device_train_batch_size": (size * before, images),
    }
    fixes = [f"{name}={above // below}" for name, (above, below) in larger.items() if above % below == 0]
    fix = f"pass {fixes[0]}" if fixes else "pass the same batch size, accumulation and number of processes"
    raise ValueError(
        f"a step has {images} images ({_factors(now)}), the run of {checkpoint} had {before} ({_factors(saved)}): it would count its "
        f"epochs anew, and end early or late. To go on with {before}, {fix}; or start anew in another output_dir"
    )


def _product(options: Mapping[str, Any]) -> int | None:
    if options.get("auto_find_batch_size"):
        return None  # the size that was found is not among the options
    return math.prod(int(options[name]) for name in OF_A_STEP)


def _factors(origin: Mapping[str, Any]) -> str:
    return " x ".join(f"{name} {origin['options'][name]}" for name in OF_A_STEP)
