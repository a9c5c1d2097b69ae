"""Run an attack on a model and leave no trace of it."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import torch
from torch import Tensor, nn

from bmtard_hooks.buffers import kept_buffers


@contextmanager
def attack_mode(model: nn.Module, *, train_mode: bool = False, foreign: bool = False) -> Iterator[nn.Module]:
    """Prepare a model for an attack and put everything back afterwards, also when the attack raises.

    Inside, the model is in eval mode (or as it was, with ``train_mode``), its parameters need no gradient, and gradients
    are enabled even below ``torch.no_grad()``. Afterwards every submodule's mode, every ``requires_grad`` and every
    ``.grad`` is what it was. Parameters are frozen because a compiled backward otherwise computes weight gradients
    that nobody asked for.

    Args:
        model: the attacked model.
        train_mode: keep the modes as they are. BatchNorm then uses batch statistics and moves its running ones, as
            ARD's inner loop does; that trace is intended and stays.
        foreign: the attack is somebody else's code (torchattacks, a user's callable). Also restores buffers and the
            global random number generators, and hides ``.grad`` from the attack: FAB fills it, APGD reseeds torch.

    Yields:
        The model.
    """
    modes = [(module, module.training) for module in model.modules()]
    trainable = [parameter for parameter in model.parameters() if parameter.requires_grad]
    gradients = [(parameter, parameter.grad) for parameter in model.parameters()] if foreign else []
    put_buffers_back = kept_buffers(model) if foreign else None
    try:
        if not train_mode:
            model.eval()
        for parameter in trainable:
            parameter.requires_grad_(False)
        for parameter, _ in gradients:
            parameter.grad = None
        with torch.enable_grad(), torch.random.fork_rng(_cuda_devices(model), enabled=foreign):
            yield model
    finally:
        for module, training in modes:
            module.training = training
        for parameter in trainable:
            parameter.requires_grad_(True)
        for parameter, gradient in gradients:
            parameter.grad = gradient
        if put_buffers_back is not None:
            put_buffers_back()


def _cuda_devices(model: nn.Module) -> list[int]:
    devices = {parameter.device for parameter in model.parameters() if parameter.device.type == "cuda"}
    return [device.index or 0 for device in devices]


def checked_answer(adversarial: Tensor, images: Tensor) -> Tensor:
    """Return what a foreign attack made of ``images`` ``(B, C, H, W)``, detached, on their device.

    Raises:
        TypeError: if it is no tensor.
        ValueError: if its shape is another, or a pixel is outside [0, 1] or NaN.
    """
    if not isinstance(adversarial, Tensor):
        raise TypeError(
            f"the attack returned a {type(adversarial).__name__} for images {tuple(images.shape)}: it must return a tensor of that "
            "shape in [0, 1]"
        )
    adversarial = adversarial.detach().to(images.device, images.dtype)
    if adversarial.shape != images.shape:
        raise ValueError(
            f"the attack returned shape {tuple(adversarial.shape)} for images {tuple(images.shape)}: it must keep it"
        )
    low, high = adversarial.aminmax()
    if not (low >= 0 and high <= 1):
        raise ValueError(f"the attack returned pixels from {low:.4g} to {high:.4g}: they must stay in [0, 1]")
    return adversarial
