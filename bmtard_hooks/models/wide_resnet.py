"""Wide residual networks: the robust teachers, in the layouts of TRADES and of Gowal et al."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from timm.models import build_model_with_cfg, generate_default_cfgs, register_model
from torch import Tensor, nn

from .preactresnet import PreActResNet
from .resnet_cifar import init_like_he, rename_keys, small_image_cfg

CIFAR10_MEAN = (0.4914, 0.4822, 0.4465)
CIFAR10_STD = (0.2471, 0.2435, 0.2616)

TRADES_NAMES = [
    (r"^block(\d+)\.layer\.", r"layer\1."),
    (r"\.convShortcut\.", ".shortcut.0."),
    (r"^bn1\.", "bn."),
    (r"^fc\.", "linear."),
]
GOWAL_NAMES = [
    (r"^(mean|std)$", r"normalize.\1"),
    (r"^init_conv\.", "conv1."),
    (r"^layer\.0\.block\.", "layer1."),
    (r"^layer\.1\.block\.", "layer2."),
    (r"^layer\.2\.block\.", "layer3."),
    (r"\.batchnorm_0\.", ".bn1."),
    (r"\.conv_0\.", ".conv1."),
    (r"\.batchnorm_1\.", ".bn2."),
    (r"\.conv_1\.", ".conv2."),
    (r"\.shortcut\.weight$", ".shortcut.0.weight"),
    (r"^batchnorm\.", "bn."),
    (r"^logits\.", "linear."),
]


class Normalize(nn.Module):
    """Subtract a mean and divide by a standard deviation, channel by channel.

    Both are saved with the weights, so that a checkpoint cannot be used with other statistics by mistake.

    Args:
        mean: one number per channel, or one for all, in the unit of the pixels.
        std: likewise, positive.
        in_chans: number of channels.

    Raises:
        ValueError: if the number of values is neither 1 nor ``in_chans``, or a standard deviation is not positive.
    """

    mean: Tensor
    std: Tensor

    def __init__(self, mean: float | Sequence[float], std: float | Sequence[float], in_chans: int = 3) -> None:
        super().__init__()
        means, stds = ([v] * in_chans if isinstance(v, int | float) else list(v) for v in (mean, std))
        if len(means) != in_chans or len(stds) != in_chans:
            raise ValueError(f"mean={mean}, std={std}: pass one number, or in_chans={in_chans} of each")
        if min(stds) <= 0:
            raise ValueError(f"std={std} must be positive")
        self.register_buffer("mean", torch.tensor(means, dtype=torch.float32).reshape(in_chans, 1, 1))
        self.register_buffer("std", torch.tensor(stds, dtype=torch.float32).reshape(in_chans, 1, 1))

    def forward(self, x: Tensor) -> Tensor:
        """Map ``(B, C, H, W)`` pixels in [0, 1] to ``(B, C, H, W)`` of about zero mean and unit deviation."""
        return (x - self.mean) / self.std


def checkpoint_filter_fn(state_dict: Mapping[str, Tensor], model: nn.Module) -> dict[str, Tensor]:
    """Translate the names of the TRADES and the Gowal et al. checkpoints to ours.

    TRADES networks carry a second first stage, ``sub_block1``, that no forward pass reads: it is dropped. The
    checkpoints of Gowal et al. hold no statistics: they get those the model was built with; re-saved ones that do hold
    them keep theirs. Names that are already ours pass unchanged.

    Args:
        state_dict: parameters and buffers by name.
        model: the network that will receive them.

    Returns:
        A state dict for ``model.load_state_dict(..., strict=True)``.
    """
    used = {key: value for key, value in state_dict.items() if not key.startswith("sub_block1.")}
    own_statistics = {key: value for key, value in model.state_dict().items() if key.startswith("normalize.")}
    return own_statistics | rename_keys(used, TRADES_NAMES + GOWAL_NAMES)


class WideResNet(PreActResNet):
    """A pre-activation network of three stages of 16, 32 and 64 channels times a width factor.

    Args:
        depth: number of layers, ``6n + 4``.
        width: the factor on the channels; the stem keeps 16.
        inner_mean: what the network itself subtracts from its pixels, see ``Normalize``; None for none.
        inner_std: what it divides by; given exactly if ``inner_mean`` is.
        in_chans: channels of the input.
        **kwargs: see ``PreActResNet``.

    Raises:
        ValueError: if the depth is not ``6n + 4``, or only one of ``inner_mean`` and ``inner_std`` is given.

    Reference: Zagoruyko and Komodakis, "Wide residual networks", 2016.
    """

    checkpoint_filter_fn = staticmethod(checkpoint_filter_fn)

    def __init__(
        self,
        depth: int,
        width: int,
        inner_mean: float | Sequence[float] | None = None,
        inner_std: float | Sequence[float] | None = None,
        in_chans: int = 3,
        **kwargs: Any,
    ) -> None:
        blocks, rest = divmod(depth - 4, 6)
        if rest or blocks < 1:
            raise ValueError(f"depth={depth} is not 6n + 4 with n >= 1: pass 10, 16, 22, 28, 34, ...")
        normalize = None
        if inner_mean is not None and inner_std is not None:
            normalize = Normalize(inner_mean, inner_std, in_chans)
        elif inner_mean is not None or inner_std is not None:
            raise ValueError(f"inner_mean={inner_mean} and inner_std={inner_std}: pass both or none")
        widths = (16 * width, 32 * width, 64 * width)
        super().__init__((blocks,) * 3, widths, stem_width=16, normalize=normalize, in_chans=in_chans, **kwargs)
        init_like_he(self)
        if isinstance(self.linear, nn.Linear):
            nn.init.zeros_(self.linear.bias)


default_cfgs = generate_default_cfgs(
    {
        "wrn34_10_cifar.untrained": small_image_cfg(),
        "wrn22_6_cifar.untrained": small_image_cfg(),
        "wrn34_20_cifar.untrained": small_image_cfg(),
        "wrn70_16_cifar.untrained": small_image_cfg(),
    }
)


def _create_wide_resnet(variant: str, pretrained: bool, depth: int, width: int, **kwargs: Any) -> WideResNet:
    return build_model_with_cfg(
        WideResNet,
        variant,
        pretrained,
        feature_cfg=dict(out_indices=(0, 1, 2)),
        pretrained_filter_fn=checkpoint_filter_fn,
        depth=depth,
        width=width,
        **kwargs,
    )


def _create_gowal(variant: str, pretrained: bool, depth: int, width: int, **kwargs: Any) -> WideResNet:
    grey = kwargs.get("in_chans", 3) != 3
    statistics = dict(
        inner_mean=sum(CIFAR10_MEAN) / 3 if grey else CIFAR10_MEAN,
        inner_std=sum(CIFAR10_STD) / 3 if grey else CIFAR10_STD,
    )
    layout = dict(activation=nn.SiLU, pad_end=True)
    return _create_wide_resnet(variant, pretrained, depth, width, **layout, **(statistics | kwargs))


@register_model
def wrn34_10_cifar(pretrained: bool = False, **kwargs: Any) -> WideResNet:
    """WRN-34-10 in the TRADES layout: the robust CIFAR-10 teacher of RSLAD, MTARD and B-MTARD.

    Reference: Zhang et al., "Theoretically principled trade-off between robustness and accuracy", 2019.
    """
    return _create_wide_resnet("wrn34_10_cifar", pretrained, 34, 10, **kwargs)


@register_model
def wrn22_6_cifar(pretrained: bool = False, **kwargs: Any) -> WideResNet:
    """WRN-22-6 in the layout of Gowal et al.: the clean CIFAR-100 teacher of MTARD and B-MTARD.

    ``inner_mean`` and ``inner_std`` are options. MTARD uses the CIFAR-10 statistics, our default, for CIFAR-100 too.
    """
    return _create_gowal("wrn22_6_cifar", pretrained, 22, 6, **kwargs)


@register_model
def wrn34_20_cifar(pretrained: bool = False, **kwargs: Any) -> WideResNet:
    """WRN-34-20 in the layout of Gowal et al.; ``inner_mean`` and ``inner_std`` are options."""
    return _create_gowal("wrn34_20_cifar", pretrained, 34, 20, **kwargs)


@register_model
def wrn70_16_cifar(pretrained: bool = False, **kwargs: Any) -> WideResNet:
    """WRN-70-16 of Gowal et al.: the robust CIFAR-100 teacher of RSLAD, MTARD and B-MTARD.

    ``inner_mean`` and ``inner_std`` are options. RSLAD and MTARD use the CIFAR-10 statistics, our default, on 100
    classes too; the authors of the checkpoint use mean (0.5071, 0.4865, 0.4409), std (0.2673, 0.2564, 0.2762) there.

    Reference: Gowal et al., "Uncovering the limits of adversarial training against norm-bounded adversarial
    examples", 2020.
    """
    return _create_gowal("wrn70_16_cifar", pretrained, 70, 16, **kwargs)
