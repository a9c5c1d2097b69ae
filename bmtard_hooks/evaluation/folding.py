"""A faster way to a network's logits for attack searches: BatchNorm folded into the convolutions before it."""

from __future__ import annotations

import copy
import logging
from collections.abc import Callable
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, fx, nn
from torch.fx.experimental.optimization import fuse

from bmtard_hooks.attacks.guard import attack_mode
from bmtard_hooks.models.pixels import PixelClassifier
from bmtard_hooks.models.precision import exact_arithmetic, full_precision

logger = logging.getLogger(__name__)

LOGITS_TOLERANCE = 1e-4
"""Largest difference of logits, over the largest logit."""

GRADIENT_TOLERANCE = 5e-2
"""Length of the difference of input gradients, over the gradient's; rounding flips a few ReLUs of a large network (5e-3 in a WRN-34-10)."""


def folded_forward(classifier: PixelClassifier, images: Tensor) -> Callable[[Tensor], Tensor] | None:
    """Build a copy of a classifier that gives the same logits in eval mode with fewer layers.

    Formula: a convolution with weight ``W``, bias ``b`` and the BatchNorm ``gamma (x - m) / s + beta`` after it are one
    convolution with weight ``gamma W / s`` and bias ``gamma (b - m) / s + beta``.

    The copy shares nothing with the classifier. Training the classifier, loading weights into it or moving it to another
    device does not change the copy: build it again. It is compared with the classifier on a few images, so that whatever
    folding cannot do right shows here.

    Args:
        classifier: the classifier, on the device to use; left as it is, modes included.
        images: ``(B, C, H, W)`` float32 in [0, 1] on that device, a few images for the comparison.

    Returns:
        A function from pixels ``(B, C, H, W)`` in [0, 1] to logits ``(B, K)``; or None, with the reason in the log at level
        info, if the network cannot be traced, has nothing to fold, carries hooks, or answers otherwise when folded.
    """
    network = getattr(classifier.backbone, "timm_model", classifier.backbone)
    forward, reason = _fold(classifier, network)
    if forward is not None:
        reason = _disagreement(classifier, forward, images)
    if reason is not None:
        logger.info("attacks search on %s itself, without folding its BatchNorm: %s", type(network).__name__, reason)
        return None
    return forward


def _fold(classifier: PixelClassifier, network: nn.Module) -> tuple[Callable[[Tensor], Tensor] | None, str | None]:
    if any(_is_hooked(module) for module in network.modules()):
        return None, "it carries hooks, which would see the passes of the copy too"
    try:
        with full_precision(network):
            normalisation = PixelClassifier(nn.Identity())
            normalisation.mean, normalisation.std = (
                None if values is None else values.detach().clone() for values in (classifier.mean, classifier.std)
            )
            own = copy.deepcopy(network).eval().requires_grad_(False)
        if any("forward" in module.__dict__ for module in own.modules()):
            return None, "the forward of one of its modules was replaced"
        traced = fx.symbolic_trace(own)
        before = _batch_norms(traced)
        folded: Any = fuse(traced, no_trace=True)
    except Exception as error:  # a tracer runs the network's own code, which may fail in any way
        return None, f"it cannot be traced ({_first_line(error)})"
    if _batch_norms(folded) == before:
        return None, "it has no BatchNorm directly after a convolution"
    module = folded.eval().requires_grad_(False).to(memory_format=torch.channels_last)
    for parameter in module.parameters():
        parameter.grad = None

    def forward(pixels: Tensor) -> Tensor:
        return normalisation.logits(module, pixels.contiguous(memory_format=torch.channels_last))

    return forward, None


def _disagreement(classifier: PixelClassifier, forward: Callable[[Tensor], Tensor], images: Tensor) -> str | None:
    with attack_mode(classifier), full_precision(classifier.backbone), exact_arithmetic():
        try:
            expected, expected_gradient = _answer(classifier, images)
            logits, gradient = _answer(forward, images)
        except Exception as error:  # no gradient for the pixels, or a trace that lost what the network's code did
            return f"it cannot be compared with its folded copy ({_first_line(error)})"
    if logits.shape != expected.shape or logits.dtype != expected.dtype:
        return f"folded logits are {logits.dtype} {tuple(logits.shape)}, not {expected.dtype} {tuple(expected.shape)}"
    apart = float((logits - expected).abs().max() / expected.abs().max())
    if not apart <= LOGITS_TOLERANCE:  # also for NaN
        return f"folded logits differ by {apart:.1e} of the largest"
    apart = float((gradient - expected_gradient).norm() / expected_gradient.norm())
    if not apart <= GRADIENT_TOLERANCE:
        return f"input gradients of the folded copy differ by {apart:.1e} of their length"
    return None


def _answer(forward: Callable[[Tensor], Tensor], images: Tensor) -> tuple[Tensor, Tensor]:
    pixels = images.detach().clone().requires_grad_(True)
    logits = forward(pixels)
    # The least likely class: towards the predicted one a confident network has a gradient of nothing but rounding.
    loss = F.cross_entropy(logits, logits.detach().argmin(dim=1), reduction="sum")
    return logits.detach(), torch.autograd.grad(loss, pixels)[0]


def _batch_norms(traced: fx.GraphModule) -> int:
    modules = dict(traced.named_modules())
    kinds = (nn.BatchNorm1d, nn.BatchNorm2d, nn.BatchNorm3d)
    return sum(
        node.op == "call_module" and isinstance(modules[str(node.target)], kinds) for node in traced.graph.nodes
    )


def _is_hooked(module: nn.Module) -> bool:
    hooks = (
        module._forward_hooks,
        module._forward_pre_hooks,
        module._backward_hooks,
        module._backward_pre_hooks,
    )
    return any(hooks)


def _first_line(error: Exception) -> str:
    return f"{type(error).__name__}: {error}".splitlines()[0]
