"""A faster way to a network's logits in eval mode: BatchNorm folded into the convolutions before it."""

from __future__ import annotations

import copy
import logging
import weakref
from collections import Counter
from collections.abc import Sequence
from typing import Any

import torch
from timm.layers.norm_act import BatchNormAct2d, SyncBatchNormAct
from timm.models import get_notrace_functions, get_notrace_modules
from torch import Tensor, fx, nn
from torch.nn.modules.batchnorm import _BatchNorm

from bmtard_hooks.models.agreement import disagreement
from bmtard_hooks.models.image_sizes import first_line
from bmtard_hooks.models.pixels import PixelClassifier
from bmtard_hooks.models.precision import full_precision

CONVOLUTIONS = (nn.Conv1d, nn.Conv2d, nn.Conv3d)
NORMS = (nn.BatchNorm1d, nn.BatchNorm2d, nn.BatchNorm3d, nn.SyncBatchNorm)
NORMS_WITH_ACTIVATION = (BatchNormAct2d, SyncBatchNormAct)

logger = logging.getLogger(__name__)


class CannotFold(ValueError):
    """The network has no folded copy; the message says why."""


class FoldedClassifier(nn.Module):
    """A copy of a classifier that gives the same logits in eval mode with fewer layers.

    Formula: a convolution with weight ``W``, bias ``b`` and the BatchNorm ``gamma (x - m) / s + beta`` after it are one
    convolution with weight ``gamma W / s`` and bias ``gamma (b - m) / s + beta``.

    The copy has weights of its own, which need no gradient, in channels_last layout. They stay what they are until
    ``refresh`` takes over what the classifier has now. ``checked`` makes one that is known to agree.

    Args:
        classifier: the classifier, left as it is, modes included.

    Attributes:
        module: the folded network, on normalised pixels.

    Raises:
        CannotFold: if the network cannot be traced, has nothing to fold, or carries hooks.
    """

    module: Any

    def __init__(self, classifier: PixelClassifier) -> None:
        super().__init__()
        self._original = weakref.ref(_network_of(classifier))  # or it would become a part of this module
        if any(_is_hooked(module) for module in self.network.modules()):
            raise CannotFold("it carries hooks, which would see the passes of the copy too")
        traced = _trace(self.network)
        self._folds = _fold(traced)
        if not self._folds:
            raise CannotFold("it has no BatchNorm directly after a convolution")
        self.module = traced.requires_grad_(False).to(memory_format=torch.channels_last)
        for parameter in self.module.parameters():
            parameter.grad = None
        self.normalisation = PixelClassifier(nn.Identity())
        self.normalisation.mean, self.normalisation.std = (
            None if values is None else values.detach().clone() for values in (classifier.mean, classifier.std)
        )
        self.eval()
        self.refresh()

    @property
    def network(self) -> Any:
        """The network that was copied, as long as somebody else keeps it."""
        return self._original()

    @classmethod
    def checked(cls, classifier: PixelClassifier, images: Tensor) -> FoldedClassifier | None:
        """Make a copy that is known to agree with its classifier.

        Args:
            classifier: the classifier, on the device to use.
            images: ``(B, C, H, W)`` float32 in [0, 1] on that device, a few images for the comparison.

        Returns:
            The copy; or None, with the reason in the log at level info, if there is none or it answers otherwise.
        """
        try:
            folded = cls(classifier)
            reason = disagreement(classifier, folded, images)
        except CannotFold as error:
            reason = str(error)
        if reason is None:
            return folded
        name = type(_network_of(classifier)).__name__
        logger.info("BatchNorm of %s is not folded into its convolutions, which is slower: %s", name, reason)
        return None

    def forward(self, pixels: Tensor) -> Tensor:
        """Classify pixels as the classifier does; returns logits ``(B, K)``, never in half precision."""
        if pixels.ndim == 4:
            pixels = pixels.contiguous(memory_format=torch.channels_last)
        return self.normalisation.logits(self.module, pixels)

    @torch.no_grad()
    def refresh(self) -> None:
        """Take over the classifier's weights and statistics as they are now, without waiting for the device."""
        own = [self.module.get_submodule(name) for name in self._folds]
        convs = [self.network.get_submodule(name) for name in self._folds]
        weights, biases = _folded_weights(convs, [self.network.get_submodule(name) for name in self._folds.values()])
        targets = [conv.weight for conv in own] + [conv.bias for conv in own]
        torch._foreach_copy_(targets, weights + biases)
        current, folded = _state(self.network), self._folded_names()
        rest = [
            (value, current[name])
            for name, value in _state(self.module).items()
            if name in current and name not in folded
        ]
        for is_float in (True, False):  # apart, because lists of mixed types are copied one by one
            pairs = [pair for pair in rest if pair[0].is_floating_point() == is_float]
            if pairs:
                torch._foreach_copy_([target for target, _ in pairs], [source for _, source in pairs])

    def share(self) -> FoldedClassifier:
        """Use the classifier's own memory for every weight that is not folded; for classifiers that never change.

        Returns:
            The copy itself.
        """
        folded, sources = self._folded_names(), _state(self.network)
        for name, value in _state(self.module).items():
            source = sources.get(name)
            if (
                source is not None
                and name not in folded
                and (source.stride(), source.dtype) == (value.stride(), value.dtype)
            ):
                value.data = source.data
        return self

    def _folded_names(self) -> set[str]:
        return {f"{conv}.{name}" for conv in self._folds for name in ("weight", "bias")}

    def to_precision(self, dtype: torch.dtype) -> FoldedClassifier:
        """Keep the weights of convolutions and linear layers in the type that autocast would cast them to in every pass.

        Args:
            dtype: ``torch.bfloat16`` or ``torch.float16``; the copy must then be called under autocast to that type.

        Returns:
            The copy itself.
        """
        for module in self.module.modules():
            if type(module) in (*CONVOLUTIONS, nn.Linear):
                module.to(dtype)
        return self

    def in_float32(self) -> FoldedClassifier:
        """Make a second copy in float32 from the same trace, to compare it with the classifier."""
        other = copy.deepcopy(self).float()
        other.refresh()
        return other


def _network_of(classifier: PixelClassifier) -> Any:
    return getattr(classifier.backbone, "timm_model", classifier.backbone)


class _Tracer(fx.Tracer):
    """Traces down to torch's own layers, and leaves whole what timm says cannot be looked into."""

    def __init__(self) -> None:
        super().__init__(autowrap_functions=tuple(get_notrace_functions()))
        self._whole = (_BatchNorm, *get_notrace_modules())

    def is_leaf_module(self, m: nn.Module, module_qualified_name: str) -> bool:
        return isinstance(m, self._whole) or super().is_leaf_module(m, module_qualified_name)


def _trace(network: nn.Module) -> fx.GraphModule:
    try:
        with full_precision(network):
            own = copy.deepcopy(network).eval().requires_grad_(False)
        forgetful: list[Any] = [module for module in own.modules() if hasattr(module, "attention_bias_cache")]
        for module in forgetful:
            module.attention_bias_cache = {}  # or the trace would keep the biases of today for ever
        replaced = any("forward" in module.__dict__ for module in own.modules())
        traced = None if replaced else fx.GraphModule(own, _Tracer().trace(own))
    except Exception as error:  # a tracer runs the network's own code, which may fail in any way
        raise CannotFold(f"it cannot be traced ({type(error).__name__}: {first_line(error)})") from error
    if traced is None:
        raise CannotFold("the forward of one of its modules was replaced")
    return traced


def _fold(traced: fx.GraphModule) -> dict[str, str]:
    """Fold in place; the weights are computed by ``refresh``. Returns names of convolutions to names of their BatchNorms."""
    modules: dict[str, Any] = dict(traced.named_modules(remove_duplicate=False))
    calls = Counter(id(modules[str(node.target)]) for node in traced.graph.nodes if node.op == "call_module")
    folds = {}
    for node in list(traced.graph.nodes):
        before = node.args[0] if node.op == "call_module" and node.args else None
        if not isinstance(before, fx.Node) or before.op != "call_module" or len(before.users) > 1:
            continue
        conv, norm = modules[str(before.target)], modules[str(node.target)]
        if type(conv) not in CONVOLUTIONS or type(norm) not in (*NORMS, *NORMS_WITH_ACTIVATION):
            continue
        if norm.running_mean is None or calls[id(conv)] > 1 or calls[id(norm)] > 1:
            continue  # statistics of the batch, or weights that are used with several statistics
        folds[str(before.target)] = str(node.target)
        if conv.bias is None:
            conv.bias = nn.Parameter(conv.weight.new_zeros(conv.out_channels))
        if type(norm) in NORMS_WITH_ACTIVATION:
            traced.set_submodule(str(node.target), nn.Sequential(norm.drop, norm.act))
        else:
            node.replace_all_uses_with(before)
            traced.graph.erase_node(node)
    traced.delete_all_unused_submodules()
    traced.recompile()
    return folds


def _folded_weights(convs: Sequence[Any], norms: Sequence[Any]) -> tuple[list[Tensor], list[Tensor]]:
    """Compute weights and biases of convolutions with their BatchNorms folded in, see ``FoldedClassifier``.

    All layers at once, because hundreds of small calls cost a GPU more than their arithmetic.
    """
    scales = list(torch._foreach_add([norm.running_var for norm in norms], [norm.eps for norm in norms]))
    torch._foreach_sqrt_(scales)
    torch._foreach_reciprocal_(scales)
    torch._foreach_mul_(scales, [_or(norm.weight, 1.0, norm) for norm in norms])
    means = [
        norm.running_mean if conv.bias is None else norm.running_mean - conv.bias
        for conv, norm in zip(convs, norms, strict=True)
    ]
    biases = list(torch._foreach_addcmul([_or(norm.bias, 0.0, norm) for norm in norms], means, scales, value=-1.0))
    by_filter = [scale.view(-1, *[1] * (conv.weight.ndim - 1)) for conv, scale in zip(convs, scales, strict=True)]
    return list(torch._foreach_mul([conv.weight for conv in convs], by_filter)), biases


def _or(values: Tensor | None, constant: float, norm: Any) -> Tensor:
    return torch.full_like(norm.running_var, constant) if values is None else values


def _state(module: nn.Module) -> dict[str, Tensor]:
    """List parameters and buffers of every type, but for the counters that BatchNorm in eval mode does not read."""
    named = [*module.named_parameters(remove_duplicate=False), *module.named_buffers(remove_duplicate=False)]
    return {name: value for name, value in named if not name.endswith("num_batches_tracked")}


def _is_hooked(module: nn.Module) -> bool:
    hooks = (
        module._forward_hooks,
        module._forward_pre_hooks,
        module._backward_hooks,
        module._backward_pre_hooks,
    )
    return any(hooks)
