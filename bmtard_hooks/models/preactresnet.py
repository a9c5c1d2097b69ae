"""Pre-activation residual networks; as they stand for 64x64 images, and as the base of the wide ones."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from timm.models import build_model_with_cfg, generate_default_cfgs, register_model
from torch import Tensor, nn

from .resnet_cifar import ConvClassifier, checkpoint_filter_fn, conv1x1, conv3x3, small_image_cfg


class PreActBlock(nn.Module):
    """Normalise and activate before each of two 3x3 convolutions, and add the input.

    Where the shape changes, the input is added through a 1x1 convolution, which reads it after the first activation.

    Args:
        in_channels: channels of the input.
        out_channels: channels of the output.
        stride: stride of the first convolution, 1 or 2.
        activation: layer without arguments.
        pad_end: how a convolution of stride 2 sees the border: one row and column of zeros at the bottom and right
            (TensorFlow's ``SAME`` for even sizes) if True, on all four sides if False.

    Reference: He et al., "Identity mappings in deep residual networks", 2016.
    """

    def __init__(
        self,
        in_channels: int,
        out_channels: int,
        stride: int = 1,
        activation: type[nn.Module] = nn.ReLU,
        pad_end: bool = False,
    ) -> None:
        super().__init__()
        self.bn1 = nn.BatchNorm2d(in_channels)
        self.act1 = activation()
        self.pad: nn.Module = nn.Identity()
        self.conv1 = conv3x3(in_channels, out_channels, stride)
        if pad_end and stride == 2:
            self.pad = nn.ZeroPad2d((0, 1, 0, 1))
            self.conv1.padding = (0, 0)
        self.bn2 = nn.BatchNorm2d(out_channels)
        self.act2 = activation()
        self.conv2 = conv3x3(out_channels, out_channels)
        self.shortcut: nn.Module | None = None
        if stride != 1 or in_channels != out_channels:
            self.shortcut = nn.Sequential(conv1x1(in_channels, out_channels, stride))

    def forward(self, x: Tensor) -> Tensor:
        """Map ``(B, in_channels, H, W)`` to ``(B, out_channels, H / stride, W / stride)``."""
        activated = self.act1(self.bn1(x))
        shortcut = x if self.shortcut is None else self.shortcut(activated)
        out = self.conv1(self.pad(activated))
        return self.conv2(self.act2(self.bn2(out))) + shortcut


class PreActResNet(ConvClassifier):
    """Stack stages of pre-activation blocks on a 3x3 stem; each stage after the first halves the size.

    The features of a stage are the plain sums; only those of the last stage are normalised and activated, as the
    classifier sees them.

    Args:
        depths: blocks per stage.
        widths: channels per stage.
        stem_width: channels of the stem.
        activation: layer without arguments.
        pad_end: see ``PreActBlock``.
        normalize: layer that the pixels pass first; None for none.
        in_chans: channels of the input.
        **head: see ``ConvClassifier``.

    Reference: He et al., "Identity mappings in deep residual networks", 2016.
    """

    def __init__(
        self,
        depths: Sequence[int],
        widths: Sequence[int],
        stem_width: int,
        activation: type[nn.Module] = nn.ReLU,
        pad_end: bool = False,
        normalize: nn.Module | None = None,
        in_chans: int = 3,
        **head: Any,
    ) -> None:
        body: dict[str, nn.Module] = {} if normalize is None else {"normalize": normalize}
        body["conv1"] = conv3x3(in_chans, stem_width)
        channels = stem_width
        features = []
        for stage, (depth, width) in enumerate(zip(depths, widths, strict=True)):
            blocks = [PreActBlock(channels, width, 1 if stage == 0 else 2, activation, pad_end)]
            blocks += [PreActBlock(width, width, 1, activation) for _ in range(depth - 1)]
            name = f"layer{stage + 1}"
            body[name] = nn.Sequential(*blocks)
            channels = width
            features.append(dict(num_chs=width, reduction=2**stage, module=name))
        features[-1]["module"] = "act"
        body |= {"bn": nn.BatchNorm2d(channels), "act": activation()}
        super().__init__(body, channels, in_chans=in_chans, **head)
        self.feature_info = features


default_cfgs = generate_default_cfgs(
    {
        "preactresnet18_tiny.untrained": small_image_cfg(num_classes=200, image_size=64),
        "preactresnet34_tiny.untrained": small_image_cfg(num_classes=200, image_size=64),
    }
)


def _create_preactresnet(variant: str, pretrained: bool, depths: tuple[int, ...], **kwargs: Any) -> PreActResNet:
    return build_model_with_cfg(
        PreActResNet,
        variant,
        pretrained,
        feature_cfg=dict(out_indices=(0, 1, 2, 3)),
        pretrained_filter_fn=checkpoint_filter_fn,
        depths=depths,
        widths=(64, 128, 256, 512),
        stem_width=64,
        **kwargs,
    )


@register_model
def preactresnet18_tiny(pretrained: bool = False, **kwargs: Any) -> PreActResNet:
    """PreActResNet-18 for Tiny ImageNet: the student of B-MTARD on 64x64 images."""
    return _create_preactresnet("preactresnet18_tiny", pretrained, (2, 2, 2, 2), **kwargs)


@register_model
def preactresnet34_tiny(pretrained: bool = False, **kwargs: Any) -> PreActResNet:
    """PreActResNet-34 for Tiny ImageNet: both teachers of B-MTARD on 64x64 images."""
    return _create_preactresnet("preactresnet34_tiny", pretrained, (3, 4, 6, 3), **kwargs)
