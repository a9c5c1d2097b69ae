"""Environment variables that contradict each other or the options, found before Accelerate acts on them."""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING

import torch
from accelerate.utils import DynamoBackend

if TYPE_CHECKING:
    from bmtard_hooks.config import BMTARDConfig

LAUNCH = "start with accelerate launch or torchrun, which set all of them, or unset RANK, WORLD_SIZE and LOCAL_RANK"
SWITCHES = ("ACCELERATE_USE_CPU", "ACCELERATE_USE_FSDP", "ACCELERATE_USE_DEEPSPEED", "ACCELERATE_SPLIT_BATCHES")
TRUTHS = ("1", "true", "t", "yes", "y", "on", "0", "false", "f", "no", "n", "off")
PRECISIONS = ("no", "bf16", "fp16")
LAST_PORT = 65535


def require_environment(config: BMTARDConfig, environment: Mapping[str, str] | None = None) -> None:
    """Refuse variables that a launcher or a shell set so that the run would hang, crash or train something else.

    Args:
        config: the run's options.
        environment: variables by name; those of the process if None.

    Raises:
        ValueError: naming the variable, its value, what is allowed and the fix.
    """
    variables = os.environ if environment is None else environment
    for name in SWITCHES:
        value = variables.get(name, "")
        if value and value.lower() not in TRUTHS:
            raise _refusal(name, value, "true or false", "unset it")
    _require_precision(config, variables)
    _require_accumulation(config, variables)
    backend = variables.get("ACCELERATE_DYNAMO_BACKEND", "")
    known = [str(entry.value).lower() for entry in DynamoBackend]
    if backend and backend.lower() not in known:
        wanted = f"one of {', '.join(known)}"
        raise _refusal("ACCELERATE_DYNAMO_BACKEND", backend, wanted, "unset it and pass torch_compile=True")
    _require_device(variables)
    if not (torch.distributed.is_available() and torch.distributed.is_initialized()):
        _require_whole_launch(variables)


def _refusal(name: str, value: str, wanted: str, fix: str) -> ValueError:
    return ValueError(f"the environment has {name}={value!r}, expected {wanted}: {fix}")


def _require_precision(config: BMTARDConfig, variables: Mapping[str, str]) -> None:
    name = "ACCELERATE_MIXED_PRECISION"
    value = variables.get(name, "").lower()
    if value and value not in PRECISIONS:
        fix = "pass --mixed_precision no or bf16 to accelerate launch, or bf16=True to BMTARDConfig"
        raise _refusal(name, value, f"one of {', '.join(PRECISIONS)}", fix)
    if value == "fp16" and not config.bf16 and (config.use_cpu or not torch.accelerator.is_available()):
        fix = "fp16 on a CPU would lose the attack's gradients. Pass --mixed_precision no or bf16 to accelerate launch"
        raise _refusal(name, value, "no or bf16 without an accelerator", fix)


def _require_accumulation(config: BMTARDConfig, variables: Mapping[str, str]) -> None:
    name, chosen = "ACCELERATE_GRADIENT_ACCUMULATION_STEPS", config.gradient_accumulation_steps
    value = variables.get(name, "1")
    if value not in ("1", "", str(chosen)):
        fix = f"it would be ignored. Unset it, or pass gradient_accumulation_steps={value} to BMTARDConfig"
        raise _refusal(name, value, f"the gradient_accumulation_steps={chosen} of the options", fix)


def _require_device(variables: Mapping[str, str]) -> None:
    name = "ACCELERATE_TORCH_DEVICE"
    value = variables.get(name, "")
    if not value:
        return
    try:
        torch.empty(0, device=value)
    except (RuntimeError, AssertionError) as error:
        reason = str(error).splitlines()[0]
        raise _refusal(name, value, "a device of this machine, such as cpu", f"unset it ({reason})") from error


def _require_whole_launch(variables: Mapping[str, str]) -> None:
    given = {name: variables.get(name, "") for name in ("RANK", "WORLD_SIZE", "LOCAL_RANK")}
    if given["LOCAL_RANK"] == "-1":
        given["LOCAL_RANK"] = ""
    numbers: dict[str, int] = {}
    for name, value in given.items():
        if value:
            numbers[name] = _whole(name, value, lambda number: number >= 0, "a whole number from 0")
    size = numbers.get("WORLD_SIZE", 1)
    if size < 1:
        raise _refusal("WORLD_SIZE", given["WORLD_SIZE"], "the number of processes, 1 or more", LAUNCH)
    missing = [name for name, value in given.items() if not value]
    if missing and (size > 1 or "LOCAL_RANK" in numbers or numbers.get("RANK", 0) > 0):
        told = ", ".join(f"{name}={value}" for name, value in given.items() if value)
        raise ValueError(f"the environment has {told} without {' and '.join(missing)}, expected all three: {LAUNCH}")
    for name in ("RANK", "LOCAL_RANK"):
        if numbers.get(name, 0) >= size:
            raise _refusal(name, given[name], f"a whole number below WORLD_SIZE={size}", LAUNCH)
    port = variables.get("MASTER_PORT", "")
    if port and not missing:
        _whole("MASTER_PORT", port, lambda number: 0 <= number <= LAST_PORT, f"a port from 0 to {LAST_PORT}")


def _whole(name: str, value: str, fits: Callable[[int], bool], wanted: str) -> int:
    try:
        number = int(value)
    except ValueError as error:
        raise _refusal(name, value, wanted, LAUNCH) from error
    if not fits(number):
        raise _refusal(name, value, wanted, LAUNCH)
    return number
