"""What a trained run depends on, so that a finished one is used again only if nothing of it has changed."""

from __future__ import annotations

import functools
import json
from collections.abc import Mapping
from dataclasses import MISSING, fields
from typing import Any

from bmtard_hooks._version import __version__
from bmtard_hooks.config import BMTARDConfig
from bmtard_hooks.evaluation.outcome_store import fingerprint, fingerprint_tensors
from bmtard_hooks.image_tensors import ImageTensors
from bmtard_hooks.models.pixels import PixelClassifier
from bmtard_hooks.origin import influential_options, plain


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
        values[entry.name] = None if made is MISSING else plain(made)
    return values


def _shown(value: Any) -> str:
    return value if isinstance(value, str) else json.dumps(value)
