"""What a trained run depends on, so that a finished one is used again only if nothing of it has changed."""

from __future__ import annotations

import functools
import json
from collections.abc import Mapping
from dataclasses import MISSING, fields
from enum import Enum
from typing import Any

from bmtard_hooks._version import __version__
from bmtard_hooks.config import BMTARDConfig
from bmtard_hooks.evaluation.outcome_store import fingerprint, fingerprint_tensors
from bmtard_hooks.image_tensors import ImageTensors
from bmtard_hooks.models.pixels import PixelClassifier

WITHOUT_INFLUENCE = {
    *("output_dir", "overwrite_output_dir", "resume_from_checkpoint", "ignore_data_skip", "run_name", "project"),
    *("report_to", "disable_tqdm", "use_cpu", "per_device_eval_batch_size", "eval_accumulation_steps"),
    *("save_total_limit", "save_safetensors", "save_on_each_node", "torch_empty_cache_steps", "skip_memory_metrics"),
    *("do_train", "do_eval", "do_predict", "restore_callback_states_from_checkpoint", "remove_unused_columns"),
    *("dataloader_num_workers", "dataloader_pin_memory", "dataloader_persistent_workers"),
    *("dataloader_prefetch_factor", "ddp_timeout", "ddp_backend", "local_rank", "batch_eval_metrics"),
    *("include_num_input_tokens_seen", "method", "seed"),  # the last two stand on their own
}
"""Options that change where a run writes, what it shows or how fast it is, but not its result."""

PREFIXES_WITHOUT_INFLUENCE = ("logging_", "log_", "hub_", "push_to_hub", "trackio_", "include_for_")


def run_identity(
    config: BMTARDConfig,
    student: tuple[str, PixelClassifier],
    teachers: Mapping[str, str],
    data: Mapping[str, str],
) -> dict[str, Any]:
    """Describe everything that a run's result depends on, as plain JSON values.

    Args:
        config: the run's options.
        student: its name, and the student with its first weights.
        teachers: role to fingerprint of those that the method uses.
        data: name of each set of images the training sees to its fingerprint, see ``fingerprint_images``.
    """
    name, first = student
    options = influential_options(config)
    return {
        "bmtard_hooks": __version__,
        "method": config.method,
        "seed": config.seed,
        "student": name,
        "first_weights": fingerprint_classifier(first),
        "teachers": dict(teachers),
        "data": dict(data),
        "options": options,
        "changed": [name for name, value in options.items() if value != _default(f"options.{name}")],
    }


def influential_options(config: BMTARDConfig) -> dict[str, Any]:
    """List the options that change a result, as plain JSON values."""
    return {name: _plain(getattr(config, name)) for name in _names()}


def _names() -> list[str]:
    return [
        entry.name
        for entry in fields(BMTARDConfig)
        if entry.init and entry.name not in WITHOUT_INFLUENCE and not entry.name.startswith(PREFIXES_WITHOUT_INFLUENCE)
    ]


def fingerprint_classifier(model: PixelClassifier) -> str:
    """Hash a model's weights, its normalisation and its structure."""
    buffers = [values for values in (model.mean, model.std) if values is not None]
    return fingerprint([fingerprint_tensors([*model.state_dict().values(), *buffers]), repr(model)])


def fingerprint_images(data: ImageTensors) -> str:
    """Hash images and labels."""
    return fingerprint_tensors([data.images, data.labels])


def differences(saved: Mapping[str, Any], now: Mapping[str, Any]) -> list[str]:
    """Tell in which points two identities differ.

    An option that the release which trained the saved run did not have yet counts as equal to its default, and so does
    one that is gone since, unless it had been changed.
    """
    found = []
    before, after = _flat(saved), _flat(now)
    for key in {**before, **after}:
        old = before.get(key, _default(key))
        new = after.get(key, "(nothing)")
        is_gone = key.startswith("options.") and key not in after and key[len("options.") :] not in saved["changed"]
        if old != new and not is_gone:
            found.append(f"{key.removeprefix('options.')}: {_shown(old)} on disk, {_shown(new)} now")
    return found


def _flat(identity: Mapping[str, Any]) -> dict[str, Any]:
    flat: dict[str, Any] = {}
    for key, value in identity.items():
        if key == "changed":
            continue
        nested = value if key in ("options", "teachers", "data") else None
        flat |= {f"{key}.{name}": entry for name, entry in nested.items()} if nested is not None else {key: value}
    return flat


def _default(key: str) -> Any:
    name = key.removeprefix("options.")
    return "(nothing)" if key == name else _defaults().get(name, "(nothing)")


@functools.cache
def _defaults() -> dict[str, Any]:
    values = {}
    for entry in fields(BMTARDConfig):
        made = entry.default if entry.default_factory is MISSING else entry.default_factory()
        values[entry.name] = None if made is MISSING else _plain(made)
    return values


def _plain(value: Any) -> Any:
    if isinstance(value, Enum):
        return value.value
    if hasattr(value, "to_dict"):
        value = value.to_dict()
    return json.loads(json.dumps(value, default=str))


def _shown(value: Any) -> str:
    return value if isinstance(value, str) else json.dumps(value)
