"""Which image sizes a network takes: found by asking it, because nothing records them."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from functools import partial
from typing import Any

import timm
import torch
from torch import nn

from bmtard_hooks.attacks.guard import attack_mode

USUAL_SIZES = (8, 16, 24, 28, 32, 48, 64, 96, 112, 128, 160, 192, 224, 240, 256, 288, 320, 384, 448, 512)
SMALLER_PATCHES = (4, 2)


def as_sides(image_size: int | Sequence[int]) -> tuple[int, int]:
    """Read an image size as height and width.

    Args:
        image_size: the side of a square, or ``(height, width)``.

    Raises:
        ValueError: if it is neither, or not positive.
    """
    sides = (image_size, image_size) if isinstance(image_size, int) else tuple(image_size)
    if len(sides) != 2 or not all(isinstance(side, int) and side > 0 for side in sides):
        raise ValueError(f"image_size={image_size!r} is not a size: pass the side in pixels, or (height, width)")
    return int(sides[0]), int(sides[1])


def size_argument(architecture: str, sides: tuple[int, int]) -> dict[str, Any]:
    """Give the argument by which a timm architecture learns its input size, or nothing where it takes any.

    Args:
        architecture: a name that timm knows.
        sides: height and width.
    """
    settings = timm.models.get_pretrained_cfg(architecture)
    if settings is None or not settings.fixed_input_size:
        return {}
    height, width = sides
    return {"img_size": height if height == width else [height, width]}  # a list, as it comes back from a saved config


def try_size(network: nn.Module, channels: int, sides: tuple[int, int]) -> None:
    """Classify one grey image, and let the network raise what it raises; its modes are restored.

    Args:
        network: any module from images ``(B, C, H, W)`` to logits, on any device, ``meta`` too.
        channels: of the image.
        sides: height and width.
    """
    device = next((parameter.device for parameter in network.parameters()), torch.device("cpu"))
    with attack_mode(network), torch.no_grad():
        network(torch.full((1, channels, *sides), 0.5, device=device))


def takes_size(network: nn.Module, channels: int, sides: tuple[int, int]) -> bool:
    """Tell whether a network can classify images of a size. See ``try_size``."""
    try:
        try_size(network, channels, sides)
    except Exception:  # every layer has its own way to refuse a size
        return False
    return True


def explain_architecture(
    architecture: str,
    sides: tuple[int, int],
    reason: Exception,
    build: Callable[..., nn.Module],
    model_args: Mapping[str, Any],
) -> str | None:
    """Say which sizes a timm architecture takes instead of one that it refused.

    Args:
        architecture: its name.
        sides: the refused height and width.
        reason: what was raised.
        build: makes the network from arguments.
        model_args: the user's arguments.

    Returns:
        The message, or None if the size is not to blame.
    """
    built: dict[str, nn.Module] = {}

    def network(arguments: Mapping[str, Any]) -> nn.Module:
        if repr(arguments) not in built:  # one network serves all sizes if the architecture takes no size argument
            built[repr(arguments)] = build(**arguments)
        return built[repr(arguments)]

    def takes(sides: tuple[int, int], **changes: Any) -> bool:
        arguments = {**model_args, **size_argument(architecture, sides), **changes}
        return _fits_when_built(partial(network, arguments), int(model_args.get("in_chans", 3)), sides)

    found = None if takes(sides) else _nearest(lambda side: takes((side, side)), max(sides))
    if found is None:
        return None
    patch = next((size for size in SMALLER_PATCHES if takes(sides, patch_size=size)), None)
    other = "" if patch is None else f", or keep their size and pass patch_size={patch}"
    return (
        f"{architecture} cannot take {_shown(sides)} images ({first_line(reason)}). {_range(found, sides)}: resize the "
        f"images to {found[-1]}x{found[-1]} and pass image_size={found[-1]}{other}"
    )


def explain_network(network: nn.Module, channels: int, sides: tuple[int, int]) -> str:
    """Say which sizes a network takes as it is, after it refused one; empty if the size is not to blame.

    Args:
        network: any module from images to logits.
        channels: of the images.
        sides: the refused height and width.
    """
    if takes_size(network, channels, sides):
        return ""
    found = _nearest(lambda side: takes_size(network, channels, (side, side)), max(sides))
    if found is None:
        return ""
    advice = f". {_range(found, sides)}: resize all images to {found[-1]}x{found[-1]}"
    config = getattr(getattr(network, "backbone", network), "config", None)
    architecture: Any = getattr(config, "architecture", None)
    argument = {} if architecture is None else size_argument(architecture, sides)
    if argument and _fits_when_built(partial(timm.create_model, architecture, **argument), channels, sides):
        size = sides[0] if sides[0] == sides[1] else sides
        advice += f", or take a model that was made for these, by create_model({architecture!r}, …, image_size={size})"
    return advice


def _fits_when_built(build: Callable[[], nn.Module], channels: int, sides: tuple[int, int]) -> bool:
    try:
        with torch.device("meta"):  # shapes only: no memory, no arithmetic
            return takes_size(build(), channels, sides)
    except Exception:  # every architecture has its own way to refuse a size
        return False


def _nearest(takes: Callable[[int], bool], wanted: int) -> list[int] | None:
    """Find the smallest usual size that is taken, and the smallest above the wanted one if that is another."""
    found: list[int] = []
    for side in USUAL_SIZES:
        if (not found or side > wanted) and takes(side):
            found.append(side)
            if side > wanted:
                break
    return found or None


def _range(found: list[int], sides: tuple[int, int]) -> str:
    text = f"The smallest usual size that works is {found[0]}"
    return text if len(found) == 1 else f"{text}, the next above {_shown(sides)} is {found[1]}"


def _shown(sides: tuple[int, int]) -> str:
    return f"{sides[0]}x{sides[1]}"


def first_line(error: Exception) -> str:
    """Shorten what was raised to its first line, or to its class if it says nothing."""
    return (str(error).strip().splitlines() or [type(error).__name__])[0].rstrip(".")
