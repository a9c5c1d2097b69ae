"""What an option may be: its kind, as declared, and for the options of transformers its range too."""

from __future__ import annotations

import difflib
import inspect
import math
import os
from collections.abc import Callable, Mapping, Sequence
from dataclasses import fields
from numbers import Integral, Real
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from accelerate.utils import DynamoBackend
from transformers.integrations.integration_utils import INTEGRATION_TO_CALLBACK
from transformers.trainer_pt_utils import AcceleratorConfig
from transformers.trainer_utils import HubStrategy, IntervalStrategy, SaveStrategy, SchedulerType
from transformers.training_args import OptimizerNames

from bmtard_hooks.options import require

if TYPE_CHECKING:
    from bmtard_hooks.config import BMTARDConfig

NO_DEEPSPEED = (
    "DeepSpeed is not supported: its engine takes over forward, backward and optimizer, beside which the attack "
    "differentiates the student on its own. Use DDP (recipes/accelerate/multi_gpu.yaml) or FSDP2 (fsdp2.yaml)"
)
NO_SHARDS = (
    "FSDP was asked for, but Accelerate shards only over several accelerators and would train whole copies here: "
    "leave FSDP out, or start one process per GPU with recipes/accelerate/fsdp2.yaml"
)
LARGEST_SEED = 2**32 - 1
LARGEST_COUNT = 2**31 - 1


def require_kinds(config: BMTARDConfig) -> None:
    """Refuse options that are not of the kind they are declared with: numbers, whole numbers, booleans, words.

    A parser converts what it reads; from Python, ``"yes"`` would count as true and ``2.5`` steps would fail after hours.

    Raises:
        ValueError: naming the option, the value and what is wanted; NaN and infinity are no numbers here.
    """
    defaults = {entry.name: entry.default for entry in fields(config)}
    declared: dict[str, Any] = {}
    for owner in reversed(type(config).__mro__):
        declared |= inspect.get_annotations(owner)
    for name in defaults:
        kind, optional = _kind(declared.get(name))
        value = getattr(config, name)
        if kind not in KINDS or name == "fsdp" or (optional and value is None):  # fsdp: releases differ in its kind
            continue
        fits, wanted = KINDS[kind]
        default = defaults[name]
        example = f", for example {default!r} (the default)" if fits(default) and default != value else ""
        require(name, value, fits(value), wanted + example + (", or None" if optional else ""))


def _kind(declared: Any) -> tuple[str, bool]:
    """Read ``float | None``, which is a string or a type, as the name of a kind and whether None is allowed."""
    text = declared if isinstance(declared, str) else getattr(declared, "__name__", "")
    if not isinstance(declared, type):
        text = str(declared)
    text = text.replace("typing.", "")
    if text.startswith("Optional["):
        return text.removeprefix("Optional[").removesuffix("]"), True
    return text.removesuffix(" | None"), text.endswith(" | None")


def _is_number(value: Any) -> bool:
    return isinstance(value, Real) and not isinstance(value, bool) and math.isfinite(value)


def _is_whole(value: Any) -> bool:
    return isinstance(value, Integral) and not isinstance(value, bool)


def _is_list_of_numbers(value: Any) -> bool:
    return isinstance(value, (list, tuple)) and all(isinstance(entry, Real) for entry in value)


KINDS: dict[str, tuple[Callable[[Any], bool], str]] = {
    "bool": (lambda value: isinstance(value, bool) or (_is_whole(value) and value in (0, 1)), "True or False"),
    "int": (_is_whole, "a whole number"),
    "float": (_is_number, "a finite number"),
    "str": (lambda value: isinstance(value, str), "a word"),
    "list[float]": (_is_list_of_numbers, "a list of numbers, such as [215, 260, 285]"),
    "list[str]": (lambda value: isinstance(value, (list, tuple)), "a list of words"),
}
_AT_LEAST: tuple[tuple[int, tuple[str, ...]], ...] = (
    (
        1,
        (
            *("per_device_train_batch_size", "per_device_eval_batch_size", "gradient_accumulation_steps"),
            *("eval_accumulation_steps", "dataloader_prefetch_factor", "torch_empty_cache_steps", "ddp_timeout"),
        ),
    ),
    (
        0,
        (
            *("learning_rate", "weight_decay", "max_grad_norm", "warmup_steps", "dataloader_num_workers"),
            *("eval_delay", "crop_padding", "eval_attack_steps"),
        ),
    ),
)
_FIXES = {
    "learning_rate": "0.1 as in the paper",
    "weight_decay": "2e-4 as in the paper",
    "per_device_train_batch_size": "128 as in the paper",
    "per_device_eval_batch_size": "for example 256",
    "max_grad_norm": "0 for no clipping",
    "dataloader_num_workers": "0 to load in the training process",
    "eval_accumulation_steps": "None to keep all answers on the device until the end",
    "dataloader_prefetch_factor": "None for torch's own",
    "warmup_steps": "0 for none",
    "crop_padding": "4 as in the paper",
}


def require_ranges(config: BMTARDConfig) -> None:
    """Refuse values of transformers' options that would fail later, or train something else than asked for.

    Raises:
        ValueError: naming the option, the value, the range and the fix.
    """
    for least, names in _AT_LEAST:
        for name in names:
            value = getattr(config, name, None)
            fits = value is None or (least <= value and (isinstance(value, float) or value <= LARGEST_COUNT))
            require(name, value, fits, f"a number of {least} or more, {_FIXES.get(name, f'for example {least or 1}')}")
    for name in ("seed", "data_seed"):
        value = getattr(config, name)
        fits = value is None or 0 <= value <= LARGEST_SEED
        require(name, value, fits, f"a whole number from 0 to {LARGEST_SEED}, for example 42")
    epochs, steps, limit = config.num_train_epochs, config.max_steps, config.save_total_limit
    require("num_train_epochs", epochs, epochs > 0, "a positive number of epochs, 300 as in the paper")
    fits = steps == -1 or 0 < steps <= LARGEST_COUNT
    require("max_steps", steps, fits, "a positive number of steps, or -1 to train for num_train_epochs")
    wanted = "the directory of the run, for example 'outputs/run'"
    require("output_dir", config.output_dir, config.output_dir != "", wanted)
    require_directory("output_dir", config.output_dir)
    require(
        "save_total_limit", limit, limit is None or limit > 0, "a positive number, or None to keep all checkpoints"
    )
    for kind in ("logging", "eval", "save"):
        name, every = f"{kind}_steps", getattr(config, f"{kind}_steps")
        used = getattr(config, f"{kind}_strategy") == "steps" and every is not None
        wanted = f"a positive number of steps, a share of the run below 1, or {kind}_strategy='epoch'"
        require(name, every, not used or (every > 0 and (every < 1 or every == int(every))), wanted)
    _require_names(config)
    _require_supported(config)


def require_directory(name: str, path: str | Path | None) -> None:
    """Refuse a directory for results that cannot be made or written.

    Args:
        name: of the option.
        path: the directory, which need not exist; None passes.

    Raises:
        NotADirectoryError: if there is a file in its place or above it.
        PermissionError: if it may not be written.
    """
    if path is None:
        return
    found = Path(path).expanduser().absolute()
    while not found.exists() and found != found.parent:
        found = found.parent
    if not found.is_dir():
        raise NotADirectoryError(
            f"{name}={str(path)!r}: {found} is a file, expected a directory or a free name: pass another"
        )
    if not os.access(found, os.W_OK | os.X_OK):
        raise PermissionError(
            f"{name}={str(path)!r}: {found} may not be written, expected a directory of yours: pass another"
        )


def _require_names(config: BMTARDConfig) -> None:
    known: dict[str, Sequence[str]] = {
        "lr_scheduler_type": [str(entry.value) for entry in SchedulerType],
        "optim": [str(entry.value) for entry in OptimizerNames],
        "eval_strategy": [str(entry.value) for entry in IntervalStrategy],
        "logging_strategy": [str(entry.value) for entry in IntervalStrategy],
        "save_strategy": [str(entry.value) for entry in SaveStrategy],
        "train_sampling_strategy": ["random", "sequential", "group_by_length"],
        "hub_strategy": [str(entry.value) for entry in HubStrategy],
        "ddp_backend": [
            name for name in (*torch.distributed.Backend.backend_list, "ccl", "hccl") if name != "undefined"
        ],
    }
    for name, choices in known.items():
        value = getattr(config, name, None)
        require(name, value, value in choices or (value is None and name == "ddp_backend"), _one_of(value, choices))
    backend = config.torch_compile_backend
    names = [str(entry.value).lower() for entry in DynamoBackend]
    fits = backend is None or backend.lower() in names
    require("torch_compile_backend", backend, fits, _one_of(backend, names) + ", or leave it out for inductor")
    _require_accelerator_names(config)
    reports = [config.report_to] if isinstance(config.report_to, str) else config.report_to or []
    for report in reports:
        require("report_to", report, report in ("all", "none", *INTEGRATION_TO_CALLBACK), _one_of(report, _reports()))


def _require_accelerator_names(config: BMTARDConfig) -> None:
    given = config.accelerator_config
    known = [entry.name for entry in fields(AcceleratorConfig)]
    for name in given if isinstance(given, dict) else ():
        require("accelerator_config", given, name in known, f"names among {_one_of(name, known)}")


def _reports() -> list[str]:
    return ["none", "all", *INTEGRATION_TO_CALLBACK]


def _one_of(value: Any, choices: Sequence[str]) -> str:
    near = difflib.get_close_matches(str(value), choices, n=2)
    hint = f"{' or '.join(near)}, " if near else ""
    return f"{hint}one of {', '.join(choices)}"


def _require_supported(config: BMTARDConfig) -> None:
    if config.deepspeed or os.environ.get("ACCELERATE_USE_DEEPSPEED", "false").lower() == "true":
        asked = f"deepspeed={config.deepspeed!r}" if config.deepspeed else "ACCELERATE_USE_DEEPSPEED=true"
        raise ValueError(f"{asked}: {NO_DEEPSPEED}")
    if config.fsdp and not _is_launched():
        raise ValueError(f"fsdp={config.fsdp!r}: {NO_SHARDS}")
    for name, why in _POINTLESS.items():
        value = getattr(config, name, None)
        if value:
            raise ValueError(f"{name}={value!r} {why}: leave it out")
    if config.train_sampling_strategy == "group_by_length":
        raise ValueError(
            "train_sampling_strategy='group_by_length' sorts texts, and images have no length: pass 'random' or 'sequential'"
        )
    _require_evaluations(config)


def _is_launched() -> bool:
    return os.environ.get("WORLD_SIZE", "1") not in ("", "0", "1")


_POINTLESS: Mapping[str, str] = {
    "neftune_noise_alpha": "adds noise to the embeddings of words, which image classifiers have not",
    "use_liger_kernel": "replaces layers of language models",
    "remove_unused_columns": "drops the images before the collator, which finds its columns by itself, can see them",
    "prediction_loss_only": "leaves out the logits, without which evaluate() has no accuracy",
}


def _word(value: Any) -> str:
    return str(getattr(value, "value", value))


def _require_evaluations(config: BMTARDConfig) -> None:
    """Refuse a choice of the best checkpoint that has nothing to choose by."""
    metric, evaluates = config.metric_for_best_model, config.eval_strategy != "no"
    chooses = config.load_best_model_at_end or config.save_strategy == "best"
    asked = "load_best_model_at_end=True" if config.load_best_model_at_end else "save_strategy='best'"
    if chooses and not evaluates:
        raise ValueError(
            f"{asked} needs evaluations to choose by, and eval_strategy={_word(config.eval_strategy)!r}: pass "
            "eval_strategy='epoch' or 'steps' with an eval_dataset"
        )
    if config.save_strategy == "best" and not (metric or config.load_best_model_at_end):
        raise ValueError(
            f"save_strategy='best' needs a name of what is best, and metric_for_best_model={metric!r}: pass "
            "metric_for_best_model='w_robust', 'robust_accuracy' or 'clean_accuracy'"
        )
    if chooses and config.save_strategy not in ("best", config.eval_strategy):
        raise ValueError(
            f"load_best_model_at_end=True with eval_strategy={_word(config.eval_strategy)!r} and save_strategy="
            f"{_word(config.save_strategy)!r}: every evaluated checkpoint must be saved, so pass the same for both"
        )
    evaluated = config.eval_steps or config.logging_steps
    if chooses and config.save_strategy == "steps" and config.save_steps != evaluated:
        raise ValueError(
            f"load_best_model_at_end=True with eval_steps={evaluated} and save_steps={config.save_steps}: the best evaluation may have "
            "no checkpoint, and then another model is loaded, or none. Pass the same number for both, or save_strategy='best'"
        )
    if metric is not None and not metric:
        raise ValueError("metric_for_best_model='' is no name: pass 'w_robust', 'robust_accuracy', or leave it out")
