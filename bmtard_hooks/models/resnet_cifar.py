"""Residual networks for small images, and what all networks of this folder share with timm."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from typing import Any

import torch.nn.functional as F
from timm.layers import create_classifier
from timm.models import build_model_with_cfg, generate_default_cfgs, register_model
from torch import Tensor, nn


def small_image_cfg(num_classes: int = 10, image_size: int = 32, **overrides: Any) -> dict[str, Any]:
    """Describe a network that takes small images as pixels in [0, 1].

    Mean 0 and std 1 say that nothing is to be subtracted or divided outside the network: the robust distillation
    papers feed raw pixels, and the attack radius is a distance between raw pixels.

    Args:
        num_classes: number of classes the network has unless told otherwise.
        image_size: native height and width in pixels.
        **overrides: further fields of timm's ``PretrainedCfg``.

    Returns:
        Fields for timm's ``generate_default_cfgs``.
    """
    cfg = dict(
        num_classes=num_classes,
        input_size=(3, image_size, image_size),
        crop_pct=1.0,
        mean=(0.0, 0.0, 0.0),
        std=(1.0, 1.0, 1.0),
        first_conv="conv1",
        classifier="linear",
    )
    return cfg | overrides


def rename_keys(state_dict: Mapping[str, Tensor], renames: Sequence[tuple[str, str]]) -> dict[str, Tensor]:
    """Apply regular expressions, one after the other, to every key of a checkpoint.

    Args:
        state_dict: parameters and buffers by name; left as it is.
        renames: ``(pattern, replacement)`` pairs as for ``re.sub``.

    Returns:
        A new dictionary with the same tensors.
    """
    renamed = {}
    for key, value in state_dict.items():
        for pattern, replacement in renames:
            key = re.sub(pattern, replacement, key)
        renamed[key] = value
    return renamed


def checkpoint_filter_fn(state_dict: Mapping[str, Tensor], model: nn.Module) -> dict[str, Tensor]:
    """Translate torchvision's names to those of this folder.

    The published ResNet-20/56 call the projection ``downsample`` and the classifier ``fc``, the published CIFAR
    ResNet-18, MobileNet-v2 and PreActResNets call them ``shortcut`` and ``linear``, as we do. Names that are already
    ours pass unchanged.

    Args:
        state_dict: parameters and buffers by name.
        model: the network that will receive them; not read here, timm passes it.

    Returns:
        A state dict for ``model.load_state_dict(..., strict=True)``.
    """
    return rename_keys(state_dict, [(r"\.downsample\.", ".shortcut."), (r"^fc\.", "linear.")])


def init_like_he(model: nn.Module) -> None:
    """Draw convolution weights from ``N(0, 2 / (k_h * k_w * out_channels))``.

    Args:
        model: its ``nn.Conv2d`` weights are overwritten. Batch norms keep weight 1, bias 0.

    Reference: He et al., "Delving deep into rectifiers", 2015 (the fan-out variant).
    """
    for module in model.modules():
        if isinstance(module, nn.Conv2d):
            nn.init.kaiming_normal_(module.weight, mode="fan_out", nonlinearity="relu")


def conv3x3(in_channels: int, out_channels: int, stride: int = 1) -> nn.Conv2d:
    """Make a 3x3 convolution without bias that keeps the size at stride 1."""
    return nn.Conv2d(in_channels, out_channels, 3, stride, padding=1, bias=False)


def conv1x1(in_channels: int, out_channels: int, stride: int = 1) -> nn.Conv2d:
    """Make a 1x1 convolution without bias."""
    return nn.Conv2d(in_channels, out_channels, 1, stride, bias=False)


class ConvClassifier(nn.Module):
    """Run layers one after the other, pool over space, classify with one linear layer; speak timm's interface.

    Args:
        body: the layers by name, in the order in which they run. Each becomes a child of the model under its name, so
            that timm's ``features_only`` can rebuild any prefix of the network.
        num_features: channels after the last layer of the body.
        num_classes: 0 leaves the pooled features as output.
        in_chans: channels of the input.
        global_pool: timm's name of the pooling; ``""`` for none.
        drop_rate: dropout probability before the classifier, in [0, 1).
    """

    checkpoint_filter_fn = staticmethod(checkpoint_filter_fn)
    feature_info: list[dict[str, Any]]

    def __init__(
        self,
        body: Mapping[str, nn.Module],
        num_features: int,
        num_classes: int = 10,
        in_chans: int = 3,
        global_pool: str = "avg",
        drop_rate: float = 0.0,
    ) -> None:
        super().__init__()
        self.num_classes = num_classes
        self.in_chans = in_chans
        self.num_features = num_features
        self.drop_rate = drop_rate
        self.body_names = tuple(body)
        for name, layer in body.items():
            self.add_module(name, layer)
        self._build_head(global_pool)

    def _build_head(self, global_pool: str) -> None:
        self.global_pool, self.linear = create_classifier(self.num_features, self.num_classes, pool_type=global_pool)
        self.head_hidden_size = self.num_features * self.global_pool.feat_mult()

    def get_classifier(self) -> nn.Module:
        """Return the last layer: ``nn.Linear``, or ``nn.Identity`` when there are no classes."""
        return self.linear

    def reset_classifier(self, num_classes: int, global_pool: str | None = None) -> None:
        """Replace the last layer by a freshly initialised one on the same device and of the same type.

        Args:
            num_classes: 0 leaves the pooled features as output.
            global_pool: timm's name of the pooling; None keeps the present one.
        """
        self.num_classes = num_classes
        self._build_head(self.global_pool.pool_type if global_pool is None else global_pool)
        self.linear.to(next(self.parameters())).train(self.training)

    def forward_features(self, x: Tensor) -> Tensor:
        """Compute the last feature maps.

        Args:
            x: ``(B, C, H, W)`` pixels in [0, 1].

        Returns:
            ``(B, num_features, h, w)``.
        """
        for name in self.body_names:
            x = getattr(self, name)(x)
        return x

    def forward_head(self, x: Tensor, pre_logits: bool = False) -> Tensor:
        """Pool feature maps and classify.

        Args:
            x: ``(B, num_features, h, w)``.
            pre_logits: stop before the last layer.

        Returns:
            ``(B, num_classes)`` logits, or ``(B, num_features)``.
        """
        x = F.dropout(self.global_pool(x), self.drop_rate, self.training)
        return x if pre_logits else self.linear(x)

    def forward(self, x: Tensor) -> Tensor:
        """Map ``(B, C, H, W)`` pixels in [0, 1] to ``(B, num_classes)`` logits."""
        return self.forward_head(self.forward_features(x))


class BasicBlock(nn.Module):
    """Add two 3x3 convolutions to their input; ReLU after the sum.

    The input passes unchanged where the shape stays, else through a 1x1 convolution with batch norm (option B).

    Args:
        in_channels: channels of the input.
        out_channels: channels of the output.
        stride: stride of the first convolution.

    Reference: He et al., "Deep residual learning for image recognition", 2016.
    """

    def __init__(self, in_channels: int, out_channels: int, stride: int = 1) -> None:
        super().__init__()
        self.conv1 = conv3x3(in_channels, out_channels, stride)
        self.bn1 = nn.BatchNorm2d(out_channels)
        self.act1 = nn.ReLU()
        self.conv2 = conv3x3(out_channels, out_channels)
        self.bn2 = nn.BatchNorm2d(out_channels)
        self.act2 = nn.ReLU()
        self.shortcut: nn.Module = nn.Identity()
        if stride != 1 or in_channels != out_channels:
            self.shortcut = nn.Sequential(conv1x1(in_channels, out_channels, stride), nn.BatchNorm2d(out_channels))

    def forward(self, x: Tensor) -> Tensor:
        """Map ``(B, in_channels, H, W)`` to ``(B, out_channels, H / stride, W / stride)``."""
        out = self.bn2(self.conv2(self.act1(self.bn1(self.conv1(x)))))
        return self.act2(out + self.shortcut(x))


class CifarResNet(ConvClassifier):
    """Stack stages of basic blocks on a 3x3 stem without pooling; each stage after the first halves the size.

    Args:
        depths: blocks per stage.
        widths: channels per stage; the stem has as many as the first.
        he_init: draw convolutions as in ``init_like_he``; False keeps PyTorch's default.
        in_chans: channels of the input.
        **head: see ``ConvClassifier``.

    Reference: He et al., "Deep residual learning for image recognition", 2016, section 4.2.
    """

    def __init__(
        self, depths: Sequence[int], widths: Sequence[int], he_init: bool, in_chans: int = 3, **head: Any
    ) -> None:
        channels = widths[0]
        body: dict[str, nn.Module] = {
            "conv1": conv3x3(in_chans, channels),
            "bn1": nn.BatchNorm2d(channels),
            "act1": nn.ReLU(),
        }
        for stage, (depth, width) in enumerate(zip(depths, widths, strict=True)):
            blocks = [BasicBlock(channels, width, stride=1 if stage == 0 else 2)]
            blocks += [BasicBlock(width, width) for _ in range(depth - 1)]
            body[f"layer{stage + 1}"] = nn.Sequential(*blocks)
            channels = width
        super().__init__(body, channels, in_chans=in_chans, **head)
        self.feature_info = [
            dict(num_chs=width, reduction=2**stage, module=f"layer{stage + 1}") for stage, width in enumerate(widths)
        ]
        if he_init:
            init_like_he(self)


default_cfgs = generate_default_cfgs(
    {
        "resnet8_cifar.untrained": small_image_cfg(),
        "resnet20_cifar.untrained": small_image_cfg(),
        "resnet56_cifar.untrained": small_image_cfg(),
        "resnet18_cifar.untrained": small_image_cfg(),
    }
)


def _create_resnet(
    variant: str, pretrained: bool, depths: tuple[int, ...], widths: tuple[int, ...], he_init: bool, **kwargs: Any
) -> CifarResNet:
    return build_model_with_cfg(
        CifarResNet,
        variant,
        pretrained,
        feature_cfg=dict(out_indices=tuple(range(len(depths)))),
        pretrained_filter_fn=checkpoint_filter_fn,
        depths=depths,
        widths=widths,
        he_init=he_init,
        **kwargs,
    )


@register_model
def resnet8_cifar(pretrained: bool = False, **kwargs: Any) -> CifarResNet:
    """ResNet-8 of the CIFAR 6n+2 family, option B shortcuts (He et al., 2016)."""
    return _create_resnet("resnet8_cifar", pretrained, (1, 1, 1), (16, 32, 64), he_init=True, **kwargs)


@register_model
def resnet20_cifar(pretrained: bool = False, **kwargs: Any) -> CifarResNet:
    """ResNet-20 of the CIFAR 6n+2 family, option B shortcuts (He et al., 2016)."""
    return _create_resnet("resnet20_cifar", pretrained, (3, 3, 3), (16, 32, 64), he_init=True, **kwargs)


@register_model
def resnet56_cifar(pretrained: bool = False, **kwargs: Any) -> CifarResNet:
    """ResNet-56 of the CIFAR 6n+2 family, option B shortcuts: the clean CIFAR-10 teacher of MTARD and B-MTARD."""
    return _create_resnet("resnet56_cifar", pretrained, (9, 9, 9), (16, 32, 64), he_init=True, **kwargs)


@register_model
def resnet18_cifar(pretrained: bool = False, **kwargs: Any) -> CifarResNet:
    """ResNet-18 with a 3x3 stem and no max pooling: the student of RSLAD, MTARD and B-MTARD."""
    return _create_resnet("resnet18_cifar", pretrained, (2, 2, 2, 2), (64, 128, 256, 512), he_init=False, **kwargs)
