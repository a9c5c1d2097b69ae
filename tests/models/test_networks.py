"""The paper's networks: same layout, names and size as the published ones, and good citizens of timm."""

from __future__ import annotations

import copy
from typing import Any

import pytest
import timm
import torch
from torch import Tensor, nn

from bmtard_hooks.models.wide_resnet import CIFAR10_MEAN, CIFAR10_STD, WideResNet

PARAMETERS = {
    "resnet8_cifar": 78_042,
    "resnet20_cifar": 272_474,
    "resnet56_cifar": 855_770,
    "resnet18_cifar": 11_173_962,
    "mobilenetv2_cifar": 2_296_922,
    "preactresnet18_tiny": 11_269_640,
    "preactresnet34_tiny": 21_377_800,
    "wrn34_10_cifar": 46_160_474,
    "wrn22_6_cifar": 9_658_458,
    "wrn34_20_cifar": 184_531_674,
    "wrn70_16_cifar": 266_796_506,
}
LIGHT = ["resnet8_cifar", "mobilenetv2_cifar", "preactresnet18_tiny"]


def narrow_trades(**kwargs: Any) -> WideResNet:
    return WideResNet(depth=16, width=2, **kwargs)


def narrow_gowal(**kwargs: Any) -> WideResNet:
    statistics = dict(inner_mean=CIFAR10_MEAN, inner_std=CIFAR10_STD)
    return WideResNet(depth=16, width=2, activation=nn.SiLU, pad_end=True, **(statistics | kwargs))


def build(name: str) -> Any:
    narrow = {"narrow_trades": narrow_trades, "narrow_gowal": narrow_gowal}
    return narrow[name]() if name in narrow else timm.create_model(name)


def fill(model: nn.Module) -> None:
    """Give every parameter and buffer values that depend on its name's rank and its shape alone."""
    for rank, (key, value) in enumerate(sorted(model.state_dict().items())):
        if not value.is_floating_point() or key.startswith("normalize."):
            continue
        wave = torch.cos(0.7 * rank + 1.3 * torch.arange(value.numel(), dtype=torch.float64)).reshape(value.shape)
        if value.dim() > 1:
            wave = wave * (3 / value[0].numel()) ** 0.5
        elif key.endswith(("running_var", "weight")):
            wave = 1 + 0.4 * wave
        value.copy_(wave)


def images(batch: int, size: int, channels: int = 3) -> Tensor:
    """Make ``(batch, channels, size, size)`` pixels in [0, 1] without a random generator."""
    wave = torch.sin(0.9 * torch.arange(batch * channels * size * size, dtype=torch.float64))
    return (0.5 + 0.5 * wave).reshape(batch, channels, size, size)


# Logits 0, 1 and 2 of the authors' networks under the weights of `fill` and the pixels of `images(2, size)`, float64.
PUBLISHED_LOGITS = {
    "resnet8_cifar": (
        32,
        [[2.97304485097, 5.6072501779, -2.3150373968], [2.97274666954, 5.60821623615, -2.31463839443]],
    ),
    "resnet20_cifar": (
        32,
        [[-2.01567548998, -6.73083517635, 1.32846109928], [-2.03253114523, -6.73660875744, 1.34471420502]],
    ),
    "resnet18_cifar": (
        32,
        [[11.5125823174, 18.2671745753, 23.030312766], [11.5087983695, 18.2637154346, 23.0277730749]],
    ),
    "mobilenetv2_cifar": (
        32,
        [[76.7951509695, 84.3629967905, 8.18840386618], [76.7960623751, 84.3637649781, 8.1882647573]],
    ),
    "preactresnet18_tiny": (
        64,
        [[8.33235775101, 13.3855409845, 15.0691525694], [8.3335984295, 13.3856495627, 15.0681103822]],
    ),
    "narrow_trades": (
        32,
        [[-3.65383074953, 4.18882731367, -4.377377212], [-3.65478332209, 4.18969340031, -4.37814737958]],
    ),
    "wrn22_6_cifar": (
        32,
        [[-8.77471254561, 8.20595001266, -6.71142606236], [-8.76024576081, 8.1875498492, -6.6908831258]],
    ),
    "narrow_gowal": (
        32,
        [[-3.98805358805, 4.55592524164, -4.77335191563], [-3.98349563399, 4.55125727665, -4.76862478172]],
    ),
}


@pytest.mark.parametrize("name", PUBLISHED_LOGITS)
def test_logits_are_those_of_the_published_layout(name: str) -> None:
    size, expected = PUBLISHED_LOGITS[name]
    model = build(name).double().eval()
    fill(model)
    with torch.no_grad():
        logits = model(images(2, size))
    torch.testing.assert_close(logits[:, :3], torch.tensor(expected, dtype=torch.float64), rtol=1e-9, atol=1e-9)


@pytest.mark.parametrize("name", PARAMETERS)
def test_network_has_as_many_parameters_as_published(name: str) -> None:
    with torch.device("meta"):
        model = timm.create_model(name)
    assert sum(parameter.numel() for parameter in model.parameters()) == PARAMETERS[name]


@pytest.mark.parametrize("name", ["wrn34_10_cifar", "wrn22_6_cifar", "wrn34_20_cifar", "wrn70_16_cifar"])
def test_wide_network_follows_trades_or_gowal(name: str) -> None:
    with torch.device("meta"):
        model = timm.create_model(name)
    trades = name == "wrn34_10_cifar"
    assert hasattr(model, "normalize") is not trades
    assert isinstance(model.act, nn.ReLU if trades else nn.SiLU)
    assert model.layer2[0].conv1.padding == ((1, 1) if trades else (0, 0))


@pytest.mark.parametrize("name", PARAMETERS)
def test_network_takes_raw_pixels_and_has_the_classes_of_its_data_set(name: str) -> None:
    assert timm.list_models(name) == [name]
    cfg = timm.get_pretrained_cfg(name)
    assert (cfg.mean, cfg.std) == ((0.0, 0.0, 0.0), (1.0, 1.0, 1.0))
    assert (cfg.num_classes, cfg.input_size) == ((200, (3, 64, 64)) if name.endswith("_tiny") else (10, (3, 32, 32)))
    assert (cfg.first_conv, cfg.classifier) == ("conv1", "linear")


@pytest.mark.parametrize("name", ["resnet8_cifar", "narrow_trades", "narrow_gowal"])
def test_convolutions_start_as_he_et_al_propose(name: str) -> None:
    model = build(name)
    weight = model.layer3[-1].conv2.weight
    assert weight.std().item() == pytest.approx((2 / (9 * weight.shape[0])) ** 0.5, rel=0.05)
    norm = model.layer3[-1].bn2
    assert norm.weight.eq(1).all() and norm.bias.eq(0).all()


@pytest.mark.parametrize("name", ["resnet18_cifar", "mobilenetv2_cifar", "preactresnet18_tiny"])
def test_students_start_with_the_default_initialisation_of_the_authors_code(name: str) -> None:
    bound = 27**-0.5
    weight = timm.create_model(name).conv1.weight
    assert 0.9 * bound < weight.abs().max().item() <= bound


def test_wide_networks_start_with_a_zero_classifier_bias() -> None:
    assert narrow_trades().linear.bias.eq(0).all()


@pytest.mark.parametrize("name", LIGHT)
@pytest.mark.parametrize(("channels", "classes", "size"), [(3, 100, 32), (1, 7, 48)])
def test_channels_classes_and_image_size_are_free(name: str, channels: int, classes: int, size: int) -> None:
    model = timm.create_model(name, num_classes=classes, in_chans=channels).eval()
    assert model(images(1, size, channels).float()).shape == (1, classes)


def test_statistics_of_another_channel_count_are_the_average_colour() -> None:
    with pytest.raises(ValueError, match="in_chans=1"):
        narrow_gowal(in_chans=1)
    grey = timm.create_model("wrn22_6_cifar", in_chans=1)
    assert grey.normalize.mean.item() == pytest.approx(sum(CIFAR10_MEAN) / 3)


@pytest.mark.parametrize("name", LIGHT)
def test_features_and_head_make_up_the_forward_pass(name: str) -> None:
    model = timm.create_model(name).eval()
    pixels = images(2, 16).float()
    features = model.forward_features(pixels)
    pooled = model.forward_head(features, pre_logits=True)
    assert features.shape == (2, model.num_features, 2 if name != "resnet8_cifar" else 4, features.shape[-1])
    torch.testing.assert_close(pooled, features.mean(dim=(2, 3)))
    torch.testing.assert_close(model.get_classifier()(pooled), model(pixels))
    assert model.head_hidden_size == model.num_features == pooled.shape[1]


def test_reset_classifier_replaces_only_the_last_layer() -> None:
    model = timm.create_model("resnet8_cifar").double().eval()
    before = copy.deepcopy(model.state_dict())
    model.reset_classifier(5)
    assert model(images(2, 8)).shape == (2, 5)
    assert all(torch.equal(value, before[key]) for key, value in model.state_dict().items() if "linear" not in key)
    model.reset_classifier(0, global_pool="max")
    assert model.get_classifier()(1) == 1
    torch.testing.assert_close(model(images(2, 8)), model.forward_features(images(2, 8)).amax(dim=(2, 3)))


def test_dropout_acts_before_the_classifier_in_training_only() -> None:
    model = timm.create_model("resnet8_cifar", drop_rate=0.5)
    features = torch.ones(1, 64, 2, 2)
    assert set(model.forward_head(features, pre_logits=True).unique().tolist()) == {0.0, 2.0}
    assert model.eval().forward_head(features, pre_logits=True).eq(1).all()


@pytest.mark.parametrize("name", PARAMETERS)
def test_feature_maps_have_the_announced_channels_and_reduction(name: str) -> None:
    with torch.device("meta"):
        backbone = timm.create_model(name, features_only=True)
        maps = backbone(torch.empty(1, 3, 32, 32))
    info = backbone.feature_info
    expected = [(1, c, 32 // r, 32 // r) for c, r in zip(info.channels(), info.reduction(), strict=True)]
    assert [tuple(feature.shape) for feature in maps] == expected
    assert len(maps) == (
        3 if name.startswith("wrn") or name in {"resnet8_cifar", "resnet20_cifar", "resnet56_cifar"} else 4
    )


@pytest.mark.parametrize("name", ["resnet8_cifar", "preactresnet18_tiny", "wrn22_6_cifar"])
def test_last_feature_map_is_what_the_classifier_pools(name: str) -> None:
    pixels = images(1, 8).float()
    backbone = timm.create_model(name, features_only=True).eval()
    model = timm.create_model(name).eval()
    names = {key.replace("linear", ""): value for key, value in model.state_dict().items()}
    backbone.load_state_dict({key: names[key] for key in backbone.state_dict()})
    torch.testing.assert_close(backbone(pixels)[-1], model.forward_features(pixels))


@pytest.mark.parametrize("name", ["resnet8_cifar", "mobilenetv2_cifar", "narrow_trades", "narrow_gowal"])
def test_two_forward_passes_share_one_backward_pass(name: str) -> None:
    model = build(name).train()
    first, second = images(2, 16).float(), 1 - images(2, 16).float()
    first.requires_grad_()
    (model(first).logsumexp(1) + model(second).square().sum(1)).sum().backward()
    assert all(parameter.grad is not None for parameter in model.parameters())
    assert first.grad is not None and first.grad.abs().sum() > 0


@pytest.mark.parametrize("name", ["resnet8_cifar", "mobilenetv2_cifar", "narrow_gowal"])
def test_memory_format_does_not_change_the_logits(name: str) -> None:
    model = build(name).double().eval()
    pixels = images(2, 16)
    expected = model(pixels)
    turned = copy.deepcopy(model).to(memory_format=torch.channels_last)
    torch.testing.assert_close(turned(pixels.contiguous(memory_format=torch.channels_last)), expected)


@pytest.mark.parametrize("name", ["resnet8_cifar", "narrow_gowal"])
def test_bfloat16_autocast_stays_near_full_precision(name: str) -> None:
    model = build(name).eval()
    pixels = images(2, 16).float()
    with torch.no_grad():
        expected = model(pixels)
        with torch.autocast("cpu", dtype=torch.bfloat16):
            logits = model(pixels)
    assert logits.dtype == torch.bfloat16
    torch.testing.assert_close(logits.float(), expected, rtol=0.05, atol=0.05)


@pytest.mark.parametrize("name", ["resnet8_cifar", "mobilenetv2_cifar", "narrow_gowal"])
def test_network_compiles_without_graph_breaks(name: str) -> None:
    model = build(name).eval()
    pixels = images(1, 8).float()
    compiled = torch.compile(model, backend="eager", fullgraph=True)
    torch.testing.assert_close(compiled(pixels), model(pixels))


def test_wide_network_rejects_settings_that_make_no_network() -> None:
    with pytest.raises(ValueError, match=r"depth=35 is not 6n \+ 4"):
        WideResNet(depth=35, width=1)
    with pytest.raises(ValueError, match="pass both or none"):
        WideResNet(depth=10, width=1, inner_mean=0.5)
    with pytest.raises(ValueError, match="must be positive"):
        WideResNet(depth=10, width=1, inner_mean=0.5, inner_std=0.0)
