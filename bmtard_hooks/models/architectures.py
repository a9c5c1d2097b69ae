"""timm architectures: built, put into transformers' wrapper, and explained where they cannot be."""

from __future__ import annotations

import difflib
import inspect
import json
import re
from functools import partial
from pathlib import Path
from typing import Any

import timm
import torch
from torch import Tensor, nn
from transformers import AutoConfig, PreTrainedModel, TimmWrapperConfig, TimmWrapperForImageClassification

from bmtard_hooks.attacks.guard import attack_mode
from bmtard_hooks.models.checkpoints import load_weights
from bmtard_hooks.models.image_sizes import explain_architecture, first_line, size_argument, try_size

CLOSE = 0.75
"""How alike a name must be to be proposed; below, a mistyped directory would be answered with networks nobody meant."""


def build_architecture(
    name: str,
    num_classes: int | None,
    model_args: dict[str, Any],
    *,
    checkpoint: str | Path | None = None,
    pretrained: bool = False,
    sides: tuple[int, int] | None = None,
) -> PreTrainedModel:
    """Build a timm architecture inside transformers' wrapper, so that it can be saved and loaded by either library.

    Args:
        name: the architecture.
        num_classes: number of logits.
        model_args: for ``timm.create_model``.
        checkpoint: file with weights, see ``read_state_dict``.
        pretrained: download timm's weights.
        sides: height and width of the images; the network is made for them where it must know, and tried on one.

    Raises:
        ValueError: for an unknown name or argument, a missing class count, a size that the network cannot take, or weights
            that timm does not have or cannot download.
        FileNotFoundError: if the checkpoint does not exist.
    """
    check_architecture(name)
    if pretrained:
        pretrained_settings(name)
    if num_classes is None:
        raise ValueError(f"num_classes is missing: say how many classes {name} should tell apart")
    _check_recordable(name, model_args)
    build = partial(timm.create_model, name, num_classes=num_classes)
    complete = model_args if sides is None else {**size_argument(name, sides), **model_args}
    try:
        network = build(pretrained=pretrained, **complete)
        if sides is not None:
            try_size(network, int(model_args.get("in_chans", 3)), sides)
    except Exception as error:  # every architecture has its own way to refuse a size
        advice = _explain_download(name, error) if pretrained else None
        advice = advice or _explain_argument(name, error)
        if advice is None and sides is not None:
            advice = explain_architecture(name, sides, error, build, model_args)
        if advice is None:
            raise
        raise ValueError(advice) from error
    if checkpoint is not None:
        load_weights(network, checkpoint)
    return wrap_timm(network, name, num_classes, complete)


def is_own_architecture(name: str) -> bool:
    """Tell an architecture that this library registers from one that timm brings."""
    base = name.split(".")[0]
    return timm.is_model(base) and timm.model_entrypoint(base).__module__.startswith("bmtard_hooks.")


def check_architecture(name: str) -> None:
    """Raise ``ValueError`` with the nearest names if timm does not know an architecture."""
    if timm.is_model(name.split(".")[0]):
        return
    if "/" in name or name.startswith((".", "~")):
        hint = (
            ": pass an architecture, and the file as checkpoint=" if Path(name).is_file() else near_directories(name)
        )
        raise ValueError(f"{name!r} is not a directory with a saved model (config.json and weights){hint}")
    near = difflib.get_close_matches(name, timm.list_models(), n=3, cutoff=CLOSE)
    hint = (
        f"did you mean {', '.join(near)}?"
        if near
        else "pass a directory that save_model wrote, a hub id or a timm name"
    )
    raise ValueError(f"{name!r} is neither a directory here nor an architecture of timm: {hint}")


def is_saved(name: str) -> bool:
    """Tell a saved directory or a hub id (``owner/model``) from an architecture."""
    return Path(name).is_dir() or (name.count("/") == 1 and not name.startswith((".", "/", "~")))


def require_config(directory: Path) -> None:
    """Raise ``ValueError`` for a directory without a saved model, naming those inside it that have one."""
    if (directory / "config.json").is_file():
        return
    if (directory / "model.safetensors").is_file():
        raise ValueError(
            f"{directory} holds weights without a config.json, as save_model writes them for a module that is neither a timm nor a "
            "transformers network: build the module and load model.safetensors into it"
        )
    inside = sorted(str(found.parent) for found in directory.glob("*/config.json"))
    hint = f": did you mean {', '.join(inside[:3])}?" if inside else ""
    raise ValueError(f"{directory} is a directory without a saved model (config.json and weights){hint}")


def read_config(name: str, trust_remote_code: bool) -> Any:
    """Read the config of a saved directory or hub id.

    Raises:
        OSError: if it is neither, with the directories that are spelt alike.
    """
    try:
        return AutoConfig.from_pretrained(name, trust_remote_code=trust_remote_code)
    except OSError as error:
        if Path(name).is_dir():
            raise
        near = near_directories(name)
        raise OSError(
            f"{name} is no directory here{near}, nor a hub id that can be read: {first_line(error)}"
        ) from error


def near_directories(name: str) -> str:
    """Name the directories beside one that does not exist whose names are spelt alike, to be put behind a message.

    Args:
        name: path that does not exist.

    Returns:
        Empty if there are none.
    """
    path = Path(name)
    beside = [entry.name for entry in path.parent.iterdir() if entry.is_dir()] if path.parent.is_dir() else []
    near = difflib.get_close_matches(path.name, beside, n=3)
    return f" (did you mean {', '.join(str(path.parent / entry) for entry in near)}?)" if near else ""


def has_no_weights(name: str) -> bool:
    """Tell whether a name is that of an architecture for which timm has no weights."""
    if not timm.is_model(name.split(".")[0]):
        return False
    settings = timm.models.get_pretrained_cfg(name)
    return settings is None or not settings.has_weights


def pretrained_settings(name: str, instead: str = "leave pretrained out") -> Any:
    """Look up what timm says of the weights that it has for an architecture.

    Args:
        name: the architecture.
        instead: what else a user can do if it has none.

    Raises:
        ValueError: if it has none.
    """
    settings = timm.models.get_pretrained_cfg(name)
    if settings is None or not settings.has_weights:
        raise ValueError(f"timm has no pretrained weights for {name!r}: pass checkpoint=FILE, or {instead}")
    return settings


def wrap_timm(network: nn.Module, architecture: str, num_classes: int, model_args: dict[str, Any]) -> PreTrainedModel:
    """Put a timm network into transformers' wrapper, keeping its weights (the wrapper would initialise its own)."""
    config = TimmWrapperConfig(architecture=architecture, model_args=model_args or None)
    config.num_labels = num_classes
    with torch.device("meta"):
        wrapper = TimmWrapperForImageClassification(config)
    expected = {key: value.shape for key, value in wrapper.timm_model.state_dict().items()}
    if expected != {key: value.shape for key, value in network.state_dict().items()}:
        raise ValueError(
            f"this {architecture} was built with arguments that its own config does not record, so it could not be "
            f"loaded again: build it with create_model({architecture!r}, num_classes={num_classes}, <arguments>)"
        )
    wrapper.timm_model = network
    return wrapper


def separate_shared_weights(module: nn.Module, state: dict[str, Any], prefix: str, metadata: Any) -> None:
    """Give weights with several names (CoaT) storage of their own, because safetensors files cannot share it.

    Args:
        module: whose state dict is made; this is a hook for ``register_state_dict_post_hook``.
        state: names and tensors, changed in place. Quantised layers have entries that are no tensors, which stay.
        prefix: of the module's names.
        metadata: not used.
    """
    seen: set[int] = set()
    for name, tensor in state.items():
        if not name.startswith(prefix) or not isinstance(tensor, Tensor):
            continue
        if tensor.numel() and not tensor.is_meta:
            state[name] = tensor.clone() if tensor.data_ptr() in seen else tensor
            seen.add(tensor.data_ptr())


def wrap_as_built(network: nn.Module, architecture: str) -> PreTrainedModel:
    """Put a timm network that somebody else built into the wrapper, if its name and image size describe it.

    Raises:
        ValueError: if weights or logits tell that it was built with arguments, which nothing records.
    """
    classes = int(getattr(network, "num_classes", 0))
    channels, *usual = (getattr(network, "pretrained_cfg", None) or {}).get("input_size", (3, 224, 224))
    recorded = (getattr(module, "img_size", None) for module in network.modules())
    sides = list(next((size for size in recorded if isinstance(size, (tuple, list))), usual))
    model_args = {} if sides == usual else size_argument(architecture, (sides[0], sides[-1]))
    wrapper = wrap_timm(network, architecture, classes, model_args)
    rebuilt = timm.create_model(architecture, num_classes=classes, **model_args)
    rebuilt.load_state_dict(network.state_dict())
    images = torch.rand(1, channels, *sides, generator=torch.Generator().manual_seed(0))
    with attack_mode(network), torch.no_grad():
        same = torch.allclose(network(images), rebuilt.eval()(images), rtol=1e-3, atol=1e-4)
    if not same:
        raise ValueError(f"this {architecture} computes something else than its name alone says")
    return wrapper


def _check_recordable(architecture: str, model_args: dict[str, Any]) -> None:
    try:
        json.dumps(model_args)
    except TypeError as error:
        raise ValueError(
            f"the arguments {sorted(model_args)} of {architecture} cannot be written into a config ({error}), so the model "
            "could not be saved: pass names and numbers, for example act_layer='silu'"
        ) from error


def _explain_download(architecture: str, error: Exception) -> str | None:
    if not isinstance(error, OSError):
        return None
    reason = (str(error).strip() or type(error).__name__).splitlines()[0]
    return (
        f"timm's weights of {architecture!r} cannot be loaded ({reason}): unset HF_HUB_OFFLINE to download them, pass checkpoint=FILE, "
        "or leave pretrained out"
    )


def _explain_argument(architecture: str, error: Exception) -> str | None:
    unknown = re.search(r"unexpected keyword argument '(\w+)'", str(error))
    twice = re.search(r"multiple values for (?:keyword )?argument '(\w+)'", str(error))
    if twice:
        return f"{architecture} sets {twice[1]} itself: leave it out, or take an architecture that has it as you want"
    if not unknown:
        return None
    with torch.device("meta"):
        known = inspect.signature(type(timm.create_model(architecture)).__init__).parameters
    names = sorted({*known, "image_size", "in_chans"} - {"self", "args", "kwargs", "img_size"})
    near = difflib.get_close_matches(unknown[1], names, n=2)
    hint = f"did you mean {' or '.join(near)}? " if near else ""
    return f"{architecture} has no argument {unknown[1]!r}: {hint}It takes {', '.join(names)}"
