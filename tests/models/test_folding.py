import copy
import logging

import pytest
import torch
import torch.nn.functional as F
from conftest import tiny_net
from torch import nn

from bmtard_hooks import PixelClassifier, attack_mode, create_model
from bmtard_hooks.models.folding import FoldedClassifier

IMAGES = torch.rand(3, 3, 32, 32, generator=torch.Generator().manual_seed(0))


def used(model):
    """Give BatchNorm layers numbers as training leaves them."""
    generator = torch.Generator().manual_seed(1)
    with torch.no_grad():
        for module in model.modules():
            if isinstance(module, nn.BatchNorm2d):
                module.running_mean.normal_(0, 0.3, generator=generator)
                module.running_var.uniform_(0.5, 2, generator=generator)
                module.weight.uniform_(0.5, 1.5, generator=generator)
                module.bias.normal_(0, 0.2, generator=generator)
    return model


def network(name="resnet8_cifar", **options):
    with torch.random.fork_rng():
        torch.manual_seed(0)
        return used(create_model(name, 10, **options))


def gradient(forward, images):
    pixels = images.clone().requires_grad_(True)
    loss = F.cross_entropy(forward(pixels), torch.tensor([1, 2, 3]), reduction="sum")
    return torch.autograd.grad(loss, pixels)[0]


@pytest.mark.parametrize("name", ["resnet8_cifar", "mobilenetv2_cifar"])
@pytest.mark.parametrize("normalisation", [{}, {"mean": [0.5, 0.4, 0.3], "std": [0.2, 0.3, 0.2]}])
def test_logits_and_gradients_are_the_classifiers(name, normalisation):
    model = network(name, **normalisation)
    forward = FoldedClassifier.checked(model, IMAGES[:2])
    with attack_mode(model):
        expected, expected_gradient = model(IMAGES), gradient(model, IMAGES)
    torch.testing.assert_close(forward(IMAGES), expected, rtol=1e-5, atol=1e-5)
    torch.testing.assert_close(gradient(forward, IMAGES), expected_gradient, rtol=1e-3, atol=1e-5)


def test_a_plain_network_is_folded_too():
    model = PixelClassifier(used(tiny_net(batch_norm=True, dropout=0.5)))
    images = IMAGES[:, :, :8, :8].contiguous()
    forward = FoldedClassifier.checked(model, images)
    torch.testing.assert_close(forward(images), model.eval()(images))


def test_layers_are_fewer_and_weights_ask_for_no_gradient():
    module = FoldedClassifier.checked(network(), IMAGES).module
    assert not any(isinstance(layer, nn.BatchNorm2d) for layer in module.modules())
    assert not any(parameter.requires_grad for parameter in module.parameters())
    assert not any(layer.training for layer in module.modules())


def test_the_classifier_is_left_as_it_was():
    model = network()
    model.backbone.timm_model.layer1.eval()
    model.backbone.timm_model.conv1.weight.requires_grad_(False)
    state = copy.deepcopy(model.state_dict())
    modes = [module.training for module in model.modules()]
    FoldedClassifier.checked(model, IMAGES)
    assert all(torch.equal(value, state[name]) for name, value in model.state_dict().items())
    assert modes == [module.training for module in model.modules()]
    frozen = [name for name, parameter in model.named_parameters() if not parameter.requires_grad]
    assert frozen == ["backbone.timm_model.conv1.weight"]
    assert all(parameter.grad is None for parameter in model.parameters())


def test_the_copy_keeps_its_weights_until_it_is_refreshed():
    model = network(mean=[0.5, 0.4, 0.3], std=[0.2, 0.3, 0.2])
    folded = FoldedClassifier.checked(model, IMAGES)
    before = folded(IMAGES)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    F.cross_entropy(model.train()(IMAGES), torch.tensor([1, 2, 3])).backward()  # moves the statistics too
    optimizer.step()
    assert torch.equal(folded(IMAGES), before)
    folded.refresh()
    torch.testing.assert_close(folded(IMAGES), model.eval()(IMAGES), rtol=1e-5, atol=1e-5)
    assert not torch.allclose(folded(IMAGES), before, atol=1e-3)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bool, torch.int64])
def test_buffers_of_every_type_are_refreshed(dtype):
    class Masked(nn.Module):
        num_classes = 4

        def __init__(self):
            super().__init__()
            self.net = used(tiny_net(batch_norm=True))
            self.register_buffer("mask", (torch.arange(96) < 48).to(dtype))

        def forward(self, pixels):
            features = torch.relu(self.net.norm(self.net.conv(pixels)))
            return self.net.head(features.flatten(1) * self.mask)

    model, images = PixelClassifier(Masked()), IMAGES[:, :, :8, :8].contiguous()
    folded = FoldedClassifier.checked(model, images)
    before = folded(images)
    model.backbone.mask.copy_(model.backbone.mask.roll(30))
    folded.refresh()
    torch.testing.assert_close(folded(images), model.eval()(images), rtol=1e-5, atol=1e-5)
    assert not torch.allclose(folded(images), before, atol=1e-3)


@pytest.mark.parametrize("name", ["mobilenetv3_small_050", "regnetx_002", "preactresnet18_tiny"])
def test_timm_layers_that_normalise_and_activate_are_folded_too(name):
    model = network(name, image_size=32)
    folded = FoldedClassifier.checked(model, IMAGES)
    assert count(folded.module) <= (count(model) + 1) / 2  # pre-activation networks keep the norms after an addition
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.mul_(1.1)
    folded.refresh()
    torch.testing.assert_close(folded(IMAGES), model.eval()(IMAGES), rtol=1e-4, atol=1e-4)


def count(module):
    return sum(isinstance(layer, nn.modules.batchnorm._BatchNorm) for layer in module.modules())


@pytest.mark.parametrize("affine", [True, False])
@pytest.mark.parametrize("bias", [True, False])
def test_every_kind_of_convolution_and_norm_is_folded_right(affine, bias):
    class Plain(nn.Module):
        def __init__(self):
            super().__init__()
            self.first = nn.Conv2d(3, 4, 3, stride=2, padding=1, bias=bias)
            self.norm = nn.BatchNorm2d(4, affine=affine)
            self.second = nn.Conv1d(4, 6, 3, groups=2, bias=bias)
            self.other = nn.BatchNorm1d(6, affine=affine, eps=0.1)
            self.num_classes = 6

        def forward(self, pixels):
            maps = torch.relu(self.norm(self.first(pixels))).flatten(2)
            return self.other(self.second(maps)).mean(dim=2)

    with torch.random.fork_rng():
        torch.manual_seed(0)
        model = PixelClassifier(Plain())
        for norm in (model.backbone.norm, model.backbone.other):
            norm.running_mean.normal_()
            norm.running_var.uniform_(0.5, 2)
    folded = FoldedClassifier.checked(model, IMAGES)
    assert count(folded) == 0
    torch.testing.assert_close(folded(IMAGES), model.eval()(IMAGES), rtol=1e-5, atol=1e-5)


def test_shared_convolutions_are_left_alone():
    class Shared(nn.Module):
        def __init__(self):
            super().__init__()
            self.conv = nn.Conv2d(3, 3, 3, padding=1)
            self.first, self.second = nn.BatchNorm2d(3), nn.BatchNorm2d(3)
            self.num_classes = 3

        def forward(self, pixels):
            return self.second(self.conv(self.first(self.conv(pixels)))).mean(dim=(2, 3))

    assert FoldedClassifier.checked(PixelClassifier(used(Shared())), IMAGES) is None


def test_weights_that_are_not_folded_can_be_shared():
    model = network("preactresnet18_tiny", image_size=32)
    folded, own = FoldedClassifier(model), dict(model.backbone.timm_model.named_parameters())
    before = folded(IMAGES)

    def shares():
        return [
            name
            for name, value in folded.module.named_parameters()
            if name in own and value.data_ptr() == own[name].data_ptr()
        ]

    folded.module.to(memory_format=torch.contiguous_format)  # the layout of this model
    assert not shares()
    folded.share()
    assert (
        "layer1.0.conv2.weight" in shares() and "linear.weight" in shares() and "layer1.0.conv1.weight" not in shares()
    )
    torch.testing.assert_close(folded(IMAGES), before)


def test_half_precision_weights_answer_like_autocast():
    model = network("resnet20_cifar")
    folded = FoldedClassifier.checked(model, IMAGES).to_precision(torch.bfloat16)
    assert folded.module.conv1.weight.dtype == folded.module.linear.weight.dtype == torch.bfloat16
    with torch.no_grad(), torch.autocast("cpu", torch.bfloat16):
        logits, expected = folded(IMAGES), model.eval()(IMAGES)
    exact = model(IMAGES)
    assert logits.dtype == torch.float32
    rounding = (expected - exact).norm()
    assert (logits - exact).norm() < 2 * rounding + 1e-3 * exact.norm()
    assert torch.equal(folded.in_float32()(IMAGES), FoldedClassifier(model)(IMAGES))
    assert folded.module.conv1.weight.dtype == torch.bfloat16


class Branching(nn.Module):
    """Looks at its values, as no trace can."""

    def __init__(self):
        super().__init__()
        self.net = tiny_net(batch_norm=True)

    def forward(self, pixels):
        return self.net(pixels) if pixels.mean() > 0 else -self.net(pixels)


class Random(Branching):
    """Answers at random even in eval mode."""

    def forward(self, pixels):
        return self.net(F.dropout(pixels, 0.5, training=True))


class Detached(Branching):
    """Passes no gradient to the pixels."""

    def forward(self, pixels):
        return self.net(pixels.detach())


def hooked():
    net = tiny_net(batch_norm=True)
    net.conv.register_forward_hook(lambda module, args, output: None)
    return net


def accelerated(net, part):
    part.forward = type(part).forward.__get__(part)
    return net


def test_mixed_precision_around_the_whole_network_is_passed_by():
    net = used(tiny_net(batch_norm=True))
    plain = PixelClassifier(copy.deepcopy(net)).eval()
    images = IMAGES[:, :, :8, :8].contiguous()
    net._original_forward = net.forward  # as Accelerate does
    net.forward = lambda pixels: type(net).forward(net, pixels.bfloat16().float())
    torch.testing.assert_close(FoldedClassifier.checked(PixelClassifier(net), images)(images), plain(images))
    assert "forward" in net.__dict__


@pytest.mark.parametrize(
    ("net", "reason"),
    [
        (tiny_net(), "no BatchNorm directly after a convolution"),
        (Branching(), "cannot be traced (TraceError"),
        (Random(), "folded logits differ"),
        (Detached(), "cannot be compared with its folded copy (RuntimeError"),
        (hooked(), "carries hooks"),
        (accelerated(net := tiny_net(batch_norm=True), net.conv), "forward of one of its modules was replaced"),
    ],
)
def test_none_with_the_reason_for_what_cannot_be_folded(net, reason, caplog):
    with caplog.at_level(logging.INFO, "bmtard_hooks.models.folding"):
        assert FoldedClassifier.checked(PixelClassifier(used(net)), IMAGES[:, :, :8, :8].contiguous()) is None
    assert reason in caplog.text


def test_a_copy_that_answers_otherwise_is_not_used(monkeypatch, caplog):
    refresh = FoldedClassifier.refresh

    def spoiled(self):
        refresh(self)
        with torch.no_grad():
            self.module.linear.bias += 0.01

    monkeypatch.setattr(FoldedClassifier, "refresh", spoiled)
    with caplog.at_level(logging.INFO, "bmtard_hooks.models.folding"):
        assert FoldedClassifier.checked(network(), IMAGES) is None
    assert "folded logits differ by" in caplog.text
