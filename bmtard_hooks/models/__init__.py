"""Models in pixel space. Importing this package registers the paper's networks with timm."""

from bmtard_hooks.models import mobilenetv2_cifar, preactresnet, resnet_cifar, wide_resnet
from bmtard_hooks.models.create import create_model
from bmtard_hooks.models.pixels import PixelClassifier
from bmtard_hooks.models.teachers import load_teacher

__all__ = [
    "PixelClassifier",
    "create_model",
    "load_teacher",
    "mobilenetv2_cifar",
    "preactresnet",
    "resnet_cifar",
    "wide_resnet",
]
