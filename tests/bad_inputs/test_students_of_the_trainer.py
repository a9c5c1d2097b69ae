"""Students that transformers' Trainer could not handle are refused before it sees them."""

import types
from typing import NamedTuple

import pytest
import torch
from conftest import TinyNet, tiny_net
from test_refused_networks import small_vit

from bmtard_hooks import BMTARDConfig

OPTION = "activation_checkpointing" if hasattr(BMTARDConfig, "activation_checkpointing") else "gradient_checkpointing"


class Settings(NamedTuple):
    width: int


@pytest.mark.parametrize("config, kind", [({"width": 6}, "dict"), (Settings(6), "Settings"), ("small", "str")])
def test_config_that_takes_no_attribute_is_refused(make_trainer, config, kind):
    student = tiny_net(0)
    student.config = config
    message = (
        rf"the config of the student \(TinyNet\) is a {kind}, and transformers sets .*another name.*SimpleNamespace"
    )
    with pytest.raises(ValueError, match=message):
        make_trainer(student)


@pytest.mark.parametrize("config", [None, types.SimpleNamespace(width=6)])
def test_other_configs_train(make_trainer, config):
    student = tiny_net(0)
    student.config = config
    trainer = make_trainer(student, max_steps=1)
    trainer.train()
    trainer.evaluate()


class Checkpointed(TinyNet):
    """A student that could run its forward twice."""

    def activation_checkpointing_enable(self, **options):
        self.is_checkpointed = True

    gradient_checkpointing_enable = activation_checkpointing_enable  # its name in earlier releases

    def forward(self, pixel_values):
        if self.training and self.is_checkpointed:
            return torch.utils.checkpoint.checkpoint(super().forward, pixel_values, use_reentrant=False)
        return super().forward(pixel_values)

    is_checkpointed = False


@pytest.mark.parametrize(
    "student, message",
    [
        (
            lambda: tiny_net(0, batch_norm=True),
            r"the student's 1 BatchNorm layer\(s\) twice in every step: leave it off",
        ),
        (lambda: Checkpointed(batch_norm=True), r"the student's 1 BatchNorm layer\(s\) twice in every step"),
        (lambda: tiny_net(0), "a method activation_checkpointing_enable or .* and TinyNet has neither: leave it off"),
    ],
)
def test_activation_checkpointing_that_would_go_wrong_is_refused(make_trainer, student, message):
    with pytest.raises(ValueError, match=message):
        make_trainer(student(), **{OPTION: True})


def test_activation_checkpointing_of_an_architecture_without_it_is_refused(make_trainer):
    student = small_vit()
    student.supports_gradient_checkpointing = False
    with pytest.raises(ValueError, match="is not supported by ViTForImageClassification: leave it off"):
        make_trainer(student, **{OPTION: True})


def test_activation_checkpointing_without_batch_norm_trains_as_without_it(make_trainer):
    for make in (Checkpointed, small_vit):
        found = []
        for checkpointed in (False, True):
            torch.manual_seed(0)
            trainer = make_trainer(
                make(), overwrite_output_dir=True, activation_checkpointing=checkpointed, max_steps=2
            )
            trainer.train()
            found.append(trainer.model.state_dict())
        for name, value in found[0].items():
            torch.testing.assert_close(value, found[1][name], msg=name)
