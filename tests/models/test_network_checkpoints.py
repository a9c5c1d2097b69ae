"""The authors' checkpoints of the paper's networks fit, and our own come back from transformers."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import timm
import torch
from torch import Tensor, nn
from transformers import AutoModelForImageClassification, TimmWrapperConfig, TimmWrapperForImageClassification

from bmtard_hooks.models import mobilenetv2_cifar, preactresnet, resnet_cifar, wide_resnet
from bmtard_hooks.models.wide_resnet import CIFAR10_MEAN, CIFAR10_STD, WideResNet

CIFAR100_MEAN = (0.5071, 0.4865, 0.4409)
CIFAR100_STD = (0.2673, 0.2564, 0.2762)


def narrow_trades() -> WideResNet:
    return WideResNet(depth=16, width=2)


def narrow_gowal(**kwargs: Any) -> WideResNet:
    statistics = dict(inner_mean=CIFAR10_MEAN, inner_std=CIFAR10_STD)
    return WideResNet(depth=16, width=2, activation=nn.SiLU, pad_end=True, **(statistics | kwargs))


def batch_norm(prefix: str) -> Iterator[str]:
    return (f"{prefix}.{name}" for name in ("weight", "bias", "running_mean", "running_var", "num_batches_tracked"))


def convs(prefix: str, numbers: range, conv: str = "conv", norm: str = "bn") -> Iterator[str]:
    for number in numbers:
        yield f"{prefix}.{conv}{number}.weight"
        yield from batch_norm(f"{prefix}.{norm}{number}")


def residual_names(depths: list[int], projected: set[int], shortcut: str, classifier: str) -> set[str]:
    names = {"conv1.weight", *batch_norm("bn1"), f"{classifier}.weight", f"{classifier}.bias"}
    for stage, depth in enumerate(depths, start=1):
        for block in range(depth):
            names.update(convs(f"layer{stage}.{block}", range(1, 3)))
        if stage in projected:
            names.update([f"layer{stage}.0.{shortcut}.0.weight", *batch_norm(f"layer{stage}.0.{shortcut}.1")])
    return names


def trades_names(depth: int, stages: tuple[str, ...]) -> set[str]:
    names = {"conv1.weight", *batch_norm("bn1"), "fc.weight", "fc.bias"}
    for stage in stages:
        names.add(f"{stage}.layer.0.convShortcut.weight")
        for block in range((depth - 4) // 6):
            names.update(convs(f"{stage}.layer.{block}", range(1, 3)))
    return names


def gowal_names(depth: int) -> set[str]:
    names = {"init_conv.weight", *batch_norm("batchnorm"), "logits.weight", "logits.bias"}
    for stage in range(3):
        names.add(f"layer.{stage}.block.0.shortcut.weight")
        for block in range((depth - 4) // 6):
            names.update(convs(f"layer.{stage}.block.{block}", range(2), conv="conv_", norm="batchnorm_"))
    return names


def preact_names(depths: list[int]) -> set[str]:
    names = {"conv1.weight", *batch_norm("bn"), "linear.weight", "linear.bias"}
    for stage, depth in enumerate(depths, start=1):
        for block in range(depth):
            names.update(convs(f"layer{stage}.{block}", range(1, 3)))
        if stage > 1:
            names.add(f"layer{stage}.0.shortcut.0.weight")
    return names


def mobilenet_names() -> set[str]:
    names = {"linear.weight", "linear.bias", "conv1.weight", *batch_norm("bn1"), "conv2.weight", *batch_norm("bn2")}
    for block in range(17):
        names.update(convs(f"layers.{block}", range(1, 4)))
    for block in (0, 1, 10, 16):
        names.update([f"layers.{block}.shortcut.0.weight", *batch_norm(f"layers.{block}.shortcut.1")])
    return names


ALL_TRADES_STAGES = ("block1", "block2", "block3", "sub_block1")
AUTHORS_NAMES = {
    "resnet56_cifar": residual_names([9, 9, 9], {2, 3}, "downsample", "fc"),
    "resnet18_cifar": residual_names([2, 2, 2, 2], {2, 3, 4}, "shortcut", "linear"),
    "mobilenetv2_cifar": mobilenet_names(),
    "preactresnet18_tiny": preact_names([2, 2, 2, 2]),
    "preactresnet34_tiny": preact_names([3, 4, 6, 3]),
    "wrn34_10_cifar": trades_names(34, ALL_TRADES_STAGES),
    "wrn22_6_cifar": gowal_names(22),
    "wrn34_20_cifar": gowal_names(34),
    "wrn70_16_cifar": gowal_names(70),
}


@pytest.mark.parametrize("name", AUTHORS_NAMES)
def test_every_name_of_the_authors_checkpoint_finds_its_place(name: str) -> None:
    with torch.device("meta"):
        model = timm.create_model(name)
        checkpoint = {key: torch.empty(0) for key in AUTHORS_NAMES[name]}
    assert type(model).checkpoint_filter_fn(checkpoint, model).keys() == model.state_dict().keys()


@pytest.mark.parametrize("name", ["resnet18_cifar", "mobilenetv2_cifar", "preactresnet18_tiny"])
def test_student_checkpoints_carry_the_authors_names(name: str) -> None:
    with torch.device("meta"):
        assert timm.create_model(name).state_dict().keys() == AUTHORS_NAMES[name]


def test_block_that_trades_never_runs_is_dropped_from_the_checkpoint() -> None:
    model = narrow_trades()
    translate = wide_resnet.checkpoint_filter_fn
    origin = _authors_view(model, trades_names(16, ALL_TRADES_STAGES[:3]))
    unused = {
        "sub_block1.layer.0.conv1.weight": torch.ones(16, 16, 3, 3),
        "sub_block1.layer.0.bn1.bias": torch.ones(16),
    }
    other = narrow_trades()
    other.load_state_dict(translate(origin | unused, other), strict=True)
    _assert_same_output(model, other)


def test_gowal_checkpoint_without_statistics_keeps_those_of_the_model() -> None:
    source = narrow_gowal()
    checkpoint = _authors_view(source, gowal_names(16))
    assert not {"mean", "std", "normalize.mean"} & checkpoint.keys()
    same = narrow_gowal()
    same.load_state_dict(wide_resnet.checkpoint_filter_fn(checkpoint, same), strict=True)
    _assert_same_output(source, same)
    shifted = narrow_gowal(inner_mean=CIFAR100_MEAN, inner_std=CIFAR100_STD)
    shifted.load_state_dict(wide_resnet.checkpoint_filter_fn(checkpoint, shifted), strict=True)
    torch.testing.assert_close(shifted.normalize.mean.flatten(), torch.tensor(CIFAR100_MEAN))


def test_gowal_checkpoint_with_statistics_brings_its_own() -> None:
    source = narrow_gowal(inner_mean=CIFAR100_MEAN, inner_std=CIFAR100_STD)
    statistics = {"mean": source.normalize.mean, "std": source.normalize.std}
    checkpoint = _authors_view(source, gowal_names(16)) | statistics
    other = narrow_gowal()
    other.load_state_dict(wide_resnet.checkpoint_filter_fn(checkpoint, other), strict=True)
    _assert_same_output(source, other)


OWN = {"resnet8_cifar": resnet_cifar.resnet8_cifar, "narrow_trades": narrow_trades, "narrow_gowal": narrow_gowal}


@pytest.mark.parametrize("name", OWN)
def test_own_checkpoint_passes_the_filter_unchanged(name: str) -> None:
    model = OWN[name]()
    state = model.state_dict()
    filtered = type(model).checkpoint_filter_fn(state, model)
    assert filtered.keys() == state.keys()
    assert all(filtered[key] is state[key] for key in state if not key.startswith("normalize."))


def _authors_view(model: nn.Module, names: set[str]) -> dict[str, Tensor]:
    """Rename a model's weights to the authors' names."""
    state = model.state_dict()
    ours = {name: next(iter(_translated(name))) for name in names}
    return {name: state[key] for name, key in ours.items()}


def _translated(name: str) -> dict[str, Tensor]:
    return wide_resnet.checkpoint_filter_fn({name: torch.empty(0)}, nn.Module())


def _assert_same_output(first: nn.Module, second: nn.Module) -> None:
    pixels = torch.rand(2, 3, 16, 16)
    with torch.no_grad():
        torch.testing.assert_close(second.eval()(pixels), first.eval()(pixels))


@pytest.mark.parametrize(
    ("name", "args"),
    [
        ("resnet8_cifar", None),
        ("mobilenetv2_cifar", {"drop_rate": 0.1}),
        ("wrn22_6_cifar", {"inner_mean": [0.5, 0.4, 0.3], "inner_std": [0.2, 0.3, 0.1]}),
    ],
)
def test_transformers_reloads_the_network_with_equal_logits(
    name: str, args: dict[str, Any] | None, tmp_path: Path
) -> None:
    wrapper = TimmWrapperForImageClassification(TimmWrapperConfig(architecture=name, num_labels=7, model_args=args))
    for buffer in wrapper.timm_model.buffers():
        if buffer.is_floating_point() and buffer.dim() == 1:
            buffer.uniform_(0.5, 2.0)
    wrapper.save_pretrained(tmp_path)
    again = AutoModelForImageClassification.from_pretrained(tmp_path)
    saved, loaded = wrapper.state_dict(), again.state_dict()
    assert saved.keys() == loaded.keys()
    assert all(torch.equal(loaded[key], saved[key]) for key in saved)
    pixels = torch.rand(1, 3, 16, 16)
    with torch.no_grad():
        torch.testing.assert_close(again(pixels).logits, wrapper.eval()(pixels).logits)


def test_each_module_offers_its_filter_function() -> None:
    for module in (resnet_cifar, mobilenetv2_cifar, preactresnet):
        assert module.checkpoint_filter_fn is resnet_cifar.checkpoint_filter_fn
    assert wide_resnet.checkpoint_filter_fn is WideResNet.checkpoint_filter_fn
