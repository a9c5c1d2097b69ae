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

NESTED_KEYS = ("state_dict", "model_state_dict", "model", "net", "ema_state_dict", "teacher", "student")
WRAPPER_PREFIXES = ("module.", "_orig_mod.", "backbone.", "timm_model.", "model.", "net.")


def read_state_dict(path: str | Path) -> dict[str, Tensor]:
    """Read tensors by name from a ``.safetensors``, ``.pt`` or ``.pth`` file.

    A nested dictionary (``{"state_dict": …}``) is opened, prefixes that wrappers leave (``module.`` …) are removed.

    Args:
        path: the file.

    Returns:
        Names and tensors, on the CPU.

    Raises:
        FileNotFoundError: if there is no such file.
        ValueError: if the file is truncated, holds no tensors, or is a pickle that would have to run code.
    """
    path = Path(path)
    if not path.is_file():
        raise FileNotFoundError(f"checkpoint {path} does not exist (looked in {Path.cwd()})")
    state = _open_nested(_read(path), path)
    return _strip_prefixes(state)


def _read(path: Path) -> Any:
    if path.suffix == ".safetensors":
        try:
            return load_file(path)
        except (SafetensorError, OSError) as error:
            raise ValueError(f"{path} is not a whole safetensors file ({error}): copy or download it again") from error
    try:
        return torch.load(path, map_location="cpu", weights_only=True)
    except pickle.UnpicklingError as error:
        raise ValueError(
            f"{path} was refused: it holds more than tensors, and reading it would run code from the file. Save "
            "model.state_dict() alone (torch.save or safetensors) and pass that file instead."
        ) from error
    except (RuntimeError, EOFError, OSError, KeyError) as error:
        raise ValueError(f"{path} is not a whole PyTorch file ({error}): copy or download it again") from error


def _open_nested(content: Any, path: Path) -> dict[str, Tensor]:
    for _ in range(3):
        if not isinstance(content, Mapping):
            break
        tensors = {key: value for key, value in content.items() if isinstance(value, Tensor)}
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
        ValueError: if names or shapes differ; the message lists them. The model is then unchanged.
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
    model.load_state_dict(state, strict=not optional - state.keys())


def _some(items: list[str], limit: int = 6) -> str:
    if not items:
        return "none"
    return ", ".join(items[:limit]) + (f" and {len(items) - limit} more" if len(items) > limit else "")
