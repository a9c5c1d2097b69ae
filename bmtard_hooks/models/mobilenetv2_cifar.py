"""MobileNet-v2 for 32x32 images, in the layout that robust distillation papers use as the small student."""

from __future__ import annotations

from typing import Any, NamedTuple

from timm.models import build_model_with_cfg, generate_default_cfgs, register_model
from torch import Tensor, nn

from .resnet_cifar import ConvClassifier, checkpoint_filter_fn, conv1x1, conv3x3, small_image_cfg


class Stage(NamedTuple):
    """A run of blocks of one width; only its first block may have a stride."""

    expansion: int
    channels: int
    depth: int
    stride: int


STAGES = (
    Stage(1, 16, 1, 1),
    Stage(6, 24, 2, 1),
    Stage(6, 32, 3, 2),
    Stage(6, 64, 4, 2),
    Stage(6, 96, 3, 1),
    Stage(6, 160, 3, 2),
    Stage(6, 320, 1, 1),
)
STEM_CHANNELS = 32
HEAD_CHANNELS = 1280


class InvertedResidual(nn.Module):
    """Widen with 1x1, filter each channel with 3x3, narrow with 1x1; add the input where the size stays.

    Unlike the original, the widening convolution is there at expansion 1 too, activations are ReLU, not ReLU6, and a
    stride-1 block that changes the number of channels adds its input through a 1x1 convolution with batch norm.

    Args:
        in_channels: channels of the input.
        out_channels: channels of the output.
        expansion: factor of the inner width.
        stride: stride of the 3x3 convolution; with 2 there is no sum.

    Reference: Sandler et al., "MobileNetV2: inverted residuals and linear bottlenecks", 2018.
    """

    def __init__(self, in_channels: int, out_channels: int, expansion: int, stride: int) -> None:
        super().__init__()
        inner = expansion * in_channels
        self.conv1 = conv1x1(in_channels, inner)
        self.bn1 = nn.BatchNorm2d(inner)
        self.act1 = nn.ReLU()
        self.conv2 = nn.Conv2d(inner, inner, 3, stride, padding=1, groups=inner, bias=False)
        self.bn2 = nn.BatchNorm2d(inner)
        self.act2 = nn.ReLU()
        self.conv3 = conv1x1(inner, out_channels)
        self.bn3 = nn.BatchNorm2d(out_channels)
        self.shortcut: nn.Module | None = None
        if stride == 1 and in_channels == out_channels:
            self.shortcut = nn.Identity()
        elif stride == 1:
            self.shortcut = nn.Sequential(conv1x1(in_channels, out_channels), nn.BatchNorm2d(out_channels))

    def forward(self, x: Tensor) -> Tensor:
        """Map ``(B, in_channels, H, W)`` to ``(B, out_channels, H / stride, W / stride)``."""
        out = self.act1(self.bn1(self.conv1(x)))
        out = self.act2(self.bn2(self.conv2(out)))
        out = self.bn3(self.conv3(out))
        return out if self.shortcut is None else out + self.shortcut(x)


class MobileNetV2(ConvClassifier):
    """Stack inverted residuals; the size is halved three times, so 32x32 pixels end as 4x4.

    Args:
        in_chans: channels of the input.
        **head: see ``ConvClassifier``.

    Reference: Sandler et al., 2018, with strides of 1 in the stem and the second stage for 32x32 images.
    """

    def __init__(self, in_chans: int = 3, **head: Any) -> None:
        blocks: list[nn.Module] = []
        ends = []
        channels, reduction = STEM_CHANNELS, 1
        for stage in STAGES:
            for index in range(stage.depth):
                stride = stage.stride if index == 0 else 1
                blocks.append(InvertedResidual(channels, stage.channels, stage.expansion, stride))
                channels = stage.channels
            reduction *= stage.stride
            ends.append(dict(num_chs=channels, reduction=reduction, module=f"layers.{len(blocks) - 1}"))
        body = {
            "conv1": conv3x3(in_chans, STEM_CHANNELS),
            "bn1": nn.BatchNorm2d(STEM_CHANNELS),
            "act1": nn.ReLU(),
            "layers": nn.Sequential(*blocks),
            "conv2": conv1x1(channels, HEAD_CHANNELS),
            "bn2": nn.BatchNorm2d(HEAD_CHANNELS),
            "act2": nn.ReLU(),
        }
        super().__init__(body, HEAD_CHANNELS, in_chans=in_chans, **head)
        last_of_each_size = {end["reduction"]: end for end in ends}
        self.feature_info = list(last_of_each_size.values())


default_cfgs = generate_default_cfgs({"mobilenetv2_cifar.untrained": small_image_cfg()})


@register_model
def mobilenetv2_cifar(pretrained: bool = False, **kwargs: Any) -> MobileNetV2:
    """MobileNet-v2 for 32x32 images: the small student of RSLAD, MTARD and B-MTARD."""
    return build_model_with_cfg(
        MobileNetV2,
        "mobilenetv2_cifar",
        pretrained,
        feature_cfg=dict(out_indices=(0, 1, 2, 3), flatten_sequential=True),
        pretrained_filter_fn=checkpoint_filter_fn,
        **kwargs,
    )
