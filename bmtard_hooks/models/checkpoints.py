"""Read weights from files that others made, without ever running code from them."""

from __future__ import annotations

import pickle
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor, nn

from bmtard_hooks.models.untrusted_files import check_claims, check_contents

NESTED_KEYS = ("state_dict", "model_state_dict", "model", "net", "ema_state_dict", "teacher", "student")
WRAPPER_PREFIXES = ("module.", "_orig_mod.", "backbone.", "timm_model.", "model.", "net.")
FLOATS = (torch.float16, torch.bfloat16, torch.float32, torch.float64)


def read_state_dict(path: str | Path) -> dict[str, Tensor]:
    """Read tensors by name from a file of safetensors or of ``torch.save``, told apart by their content.

    No code from the file is run, and nothing is unpacked or allocated beyond the size of the file. A nested dictionary (``{"state_dict": …}``) is opened, prefixes that wrappers leave (``module.`` …) are removed.

    Args:
        path: the file.

    Returns:
        Names and tensors, on the CPU.

    Raises:
        FileNotFoundError: if there is no such file.
        PermissionError: if it may not be read.
        ValueError: if the file is truncated, claims more than it holds, holds no plain tensors, is no file of weights at all, or
            is a pickle that would have to run code.
    """
    path = Path(path)
    state = _open_nested(_read(path), path)
    check_contents(state, path)
    return _strip_prefixes(state)


def _read(path: Path) -> Any:
    if check_claims(path) == "safetensors":
        try:
            return load_file(path)
        except (SafetensorError, OSError, ValueError, KeyError, OverflowError, RuntimeError) as error:
            raise ValueError(f"{path} is not a whole safetensors file ({error}): copy or download it again") from error
    try:
        return torch.load(path, map_location="cpu", weights_only=True)
    except pickle.UnpicklingError as error:
        if not names_code(error):
            raise ValueError(_broken(path, error)) from error
        raise ValueError(code_refusal(path)) from error
    except Exception as error:  # a damaged pickle breaks its reader in every way there is
        raise ValueError(_broken(path, error)) from error


def _broken(path: Path, error: Exception) -> str:
    return f"{path} is not a whole PyTorch file ({_reason(error)}): copy or download it again"


def _reason(error: Exception) -> str:
    lines = str(error).rpartition("WeightsUnpickler error:")[2].strip().splitlines()  # torch puts advice around it
    return lines[0].rstrip(" .") if lines else type(error).__name__


def names_code(error: pickle.UnpicklingError) -> bool:
    """Tell a pickle that names classes or functions from one that is only damaged."""
    return any(word in _reason(error) for word in ("GLOBAL", "Unsupported class", "Can only", "Trying to"))


def code_refusal(path: str | Path) -> str:
    """Say why a pickle is not read, and what to do."""
    return (
        f"{path} was refused: it holds more than tensors, and reading it would run code from the file. Save "
        "model.state_dict() alone (torch.save or safetensors) and pass that file instead."
    )


def _open_nested(content: Any, path: Path) -> dict[str, Tensor]:
    for _ in range(3):
        if not isinstance(content, Mapping):
            break
        tensors = {key: value for key, value in content.items() if isinstance(key, str) and isinstance(value, Tensor)}
        inner = next((content[key] for key in NESTED_KEYS if isinstance(content.get(key), Mapping)), None)
        if inner is None and tensors:
            return tensors
        content = inner
    raise ValueError(f"{path} holds no state dict: expected names and tensors, perhaps under {', '.join(NESTED_KEYS)}")


def _strip_prefixes(state: dict[str, Tensor]) -> dict[str, Tensor]:
    stripped = True
    while stripped:
        stripped = False
        for prefix in WRAPPER_PREFIXES:
            if state and all(key.startswith(prefix) for key in state):
                state = {key[len(prefix) :]: value for key, value in state.items()}
                stripped = True
    return state


def load_weights(model: nn.Module, path: str | Path) -> None:
    """Load a checkpoint file into a model, every weight or none.

    Args:
        model: a bare network, as timm or torchvision builds it.
        path: see ``read_state_dict``.

    Raises:
        FileNotFoundError: see ``read_state_dict``.
        PermissionError: see ``read_state_dict``.
        ValueError: if names or shapes differ, if weights are not floating-point numbers, or if they are not finite; the message
            lists them. The model is then unchanged.
    """
    state = read_state_dict(path)
    adapt = getattr(type(model), "checkpoint_filter_fn", None)
    if adapt is not None:
        state = adapt(state, model)
    expected = model.state_dict()
    optional = {key for key in expected if key.endswith("num_batches_tracked")}
    missing = sorted(expected.keys() - state.keys() - optional)
    unexpected = sorted(state.keys() - expected.keys())
    shapes = [
        f"{key}: file {tuple(state[key].shape)}, model {tuple(expected[key].shape)}"
        for key in sorted(expected.keys() & state.keys())
        if state[key].shape != expected[key].shape
    ]
    if missing or unexpected or shapes:
        raise ValueError(
            f"{path} does not fit {type(model).__name__}: it is a checkpoint of another architecture or class count.\n"
            f"  missing from the file: {_some(missing)}\n  not in the model: {_some(unexpected)}\n"
            f"  other shapes: {_some(shapes)}"
        )
    useless = [
        reason
        for key in sorted(expected.keys() & state.keys() - optional)
        if (reason := _why_useless(key, state[key], expected[key])) is not None
    ]
    if useless:
        raise ValueError(
            f"{path} has weights that nothing can be computed with: {_some(useless)}. Pass a checkpoint from before the "
            "training went wrong, with floating-point weights"
        )
    model.load_state_dict(state, strict=not optional - state.keys())


def why_not_finite(name: str, value: Tensor, fresh: Tensor | None = None) -> str | None:
    """Count the numbers of a tensor that are NaN or infinite where a fresh model's are not; None if there is none."""
    broken = ~torch.isfinite(value)
    if fresh is not None:
        broken &= torch.isfinite(fresh)
    count = int(broken.sum())
    return f"{name}: {count} of {value.numel()} NaN or infinite" if count else None


def _why_useless(key: str, value: Tensor, expected: Tensor) -> str | None:
    if expected.is_floating_point() and value.dtype not in FLOATS:
        return f"{key}: {value.dtype}"
    if not expected.is_floating_point():
        return f"{key}: {value.dtype}, expected {expected.dtype}" if value.is_floating_point() else None
    return why_not_finite(key, value.to(expected.dtype), expected)  # converted, because large float64 overflow


def _some(items: list[str], limit: int = 6) -> str:
    if not items:
        return "none"
    return ", ".join(items[:limit]) + (f" and {len(items) - limit} more" if len(items) > limit else "")
