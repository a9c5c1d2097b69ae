"""Synchronised BatchNorm: the same tensors under the same names, and in one process the same numbers."""

import pytest
import torch
from conftest import tiny_data, tiny_net
from timm.layers.norm_act import SyncBatchNormAct
from timm.layers.split_batchnorm import SplitBatchNorm2d
from torch import nn

from bmtard_hooks import create_model
from bmtard_hooks.checks import refuse_unsupported
from bmtard_hooks.models.sync_batch_norm import synchronise_batch_norm


def pair(name):
    torch.manual_seed(0)
    first = create_model(name, num_classes=4)
    torch.manual_seed(0)
    return first, create_model(name, num_classes=4)


@pytest.mark.parametrize("name", ["resnet8_cifar", "mobilenetv2_cifar", "lcnet_035"])
def test_conversion_keeps_names_tensors_and_numbers(name):
    plain, converted = pair(name)
    tensors = dict(converted.state_dict(keep_vars=True))
    layers = synchronise_batch_norm(converted)
    found = [m for m in converted.modules() if isinstance(m, nn.SyncBatchNorm)]
    assert layers == len(found) > 5
    assert (name == "lcnet_035") == any(
        isinstance(m, SyncBatchNormAct) for m in found
    )  # timm's norm and activation in one
    after = converted.state_dict(keep_vars=True)
    assert list(after) == list(plain.state_dict()) and all(after[key] is tensors[key] for key in tensors)
    images = torch.rand(8, 3, 32, 32)
    for network in (plain, converted):
        network.train()
        torch.manual_seed(1)  # of dropout
        network(images).square().sum().backward()
    for one, other in zip(plain.parameters(), converted.parameters(), strict=True):
        assert torch.equal(one.grad, other.grad)
    for one, other in zip(plain.buffers(), converted.buffers(), strict=True):
        assert torch.equal(one, other)
    assert torch.equal(plain.eval()(images), converted.eval()(images))


def test_saved_state_of_a_converted_network_loads_into_an_unconverted_one(tmp_path):
    plain, converted = pair("resnet8_cifar")
    synchronise_batch_norm(converted)
    converted.train()(torch.rand(4, 3, 32, 32))
    converted.backbone.save_pretrained(tmp_path)
    loaded = create_model(str(tmp_path))
    images = torch.rand(2, 3, 32, 32)
    assert torch.equal(loaded.eval()(images), converted.eval()(images))
    plain.load_state_dict(converted.state_dict())
    assert torch.equal(plain.eval()(images), converted(images))


def test_layers_with_a_forward_of_their_own_are_refused_by_name():
    network = nn.Sequential(nn.Conv2d(3, 4, 3), SplitBatchNorm2d(4))
    with pytest.raises(ValueError, match="cannot replace 1, a SplitBatchNorm2d"):
        synchronise_batch_norm(network)


def test_network_without_batch_norm_is_said_to_have_none(caplog):
    assert synchronise_batch_norm(tiny_net(0)) == 0
    assert "nothing to do" in caplog.text


def test_one_process_trains_alike_with_and_without(make_trainer):
    weights = []
    for sync in (False, True):
        trainer = make_trainer(tiny_net(0, batch_norm=True), tiny_data(8), sync_batch_norm=sync)
        trainer.train()
        weights.append([*trainer.model.parameters(), *trainer.model.buffers()])
    assert all(torch.equal(one, other) for one, other in zip(*weights, strict=True))


def test_several_processes_on_a_cpu_are_refused(make_config, monkeypatch):
    config = make_config(sync_batch_norm=True, use_cpu=True)
    monkeypatch.setattr(type(config), "world_size", 2)
    with pytest.raises(ValueError, match="sync_batch_norm=True needs GPUs"):
        refuse_unsupported(tiny_net(0), config, {})
