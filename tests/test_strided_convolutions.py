"""A user is told of the convolutions that torch's CPU library cannot differentiate safely."""

import logging

import pytest
import torch
from conftest import tiny_data
from torch import nn

from bmtard_hooks import model_checks


def warned(caplog, *arguments, device="cpu", frozen=False, **options):
    network = nn.Sequential(nn.Conv2d(3, 6, 3), nn.Conv2d(*arguments, **options))
    network.requires_grad_(not frozen)
    with caplog.at_level(logging.WARNING):
        model_checks.warn_about_strided(network, torch.device(device))
    return "1 is a 1x1 convolution with stride 2 and 6 input channels" in caplog.text


def test_few_channels_under_a_stride_are_warned_about(caplog):
    assert warned(caplog, 6, 8, 1, stride=2)


@pytest.mark.parametrize(
    "arguments, options",
    [
        ((16, 8, 1), {"stride": 2}),
        ((6, 8, 1), {"stride": 1}),
        ((6, 8, 3), {"stride": 2}),
        ((6, 6, 1), {"stride": 2, "groups": 6}),
        ((6, 8, 1), {"stride": 2, "frozen": True}),
        ((6, 8, 1), {"stride": 2, "device": "meta"}),
    ],
)
def test_others_are_not(caplog, arguments, options):
    assert not warned(caplog, *arguments, **options)


def test_it_is_said_before_the_first_backward(make_trainer, monkeypatch):
    seen = []
    monkeypatch.setattr(model_checks, "warn_about_strided", lambda student, device: seen.append(device.type))
    monkeypatch.setattr(model_checks, "_require_gradients", lambda *args: seen.append("backward"))
    make_trainer(data=tiny_data(8), max_steps=1).train()
    assert seen == ["cpu", "backward"]
