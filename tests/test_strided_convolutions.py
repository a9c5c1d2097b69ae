"""A user is told of the convolutions that torch's CPU library cannot differentiate safely."""

import logging

import pytest
import torch
from conftest import tiny_data
from torch import nn


class Strided(nn.Module):
    num_classes = 4

    def __init__(self, channels, stride, frozen=False):
        super().__init__()
        self.stem = nn.Conv2d(3, channels, 3, padding=1)
        self.shortcut = nn.Conv2d(channels, 16, 1, stride=stride)
        self.shortcut.requires_grad_(not frozen)
        self.head = nn.Linear(16, 4)

    def forward(self, pixel_values):
        return self.head(self.shortcut(self.stem(pixel_values)).mean(dim=(2, 3)))


@pytest.mark.parametrize(
    "channels, stride, frozen, told",
    [(6, 2, False, True), (16, 2, False, False), (6, 1, False, False), (6, 2, True, False)],
)
def test_few_channels_under_a_stride_are_warned_about(make_trainer, caplog, channels, stride, frozen, told):
    trainer = make_trainer(Strided(channels, stride, frozen), tiny_data(8), method="natural", max_steps=1)
    with caplog.at_level(logging.WARNING), torch.backends.mkldnn.flags(enabled=False):
        trainer.train()
    assert ("shortcut is a 1x1 convolution with stride 2 and 6 input channels" in caplog.text) == told
