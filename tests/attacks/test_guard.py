import pytest
import torch
from conftest import tiny_net

from bmtard_hooks.attacks import attack_mode


def trace(model):
    return (
        [module.training for module in model.modules()],
        [parameter.requires_grad for parameter in model.parameters()],
        [None if parameter.grad is None else parameter.grad.clone() for parameter in model.parameters()],
        [buffer.clone() for buffer in model.buffers()],
        torch.get_rng_state(),
    )


def equal(before, after):
    return all(
        torch.equal(a, b) if isinstance(a, torch.Tensor) else a == b
        for left, right in zip(before, after, strict=True)
        for a, b in zip(left, right, strict=True)
    )


@pytest.fixture
def model():
    model = tiny_net(batch_norm=True, dropout=0.5).train()
    model.norm.eval()  # a frozen BatchNorm must stay frozen
    model.conv.bias.requires_grad_(False)
    model(torch.rand(4, 3, 8, 8)).sum().backward()
    return model


@pytest.mark.parametrize("raises", [False, True])
@pytest.mark.parametrize("foreign", [False, True])
def test_nothing_is_left_behind(model, raises, foreign):
    before = trace(model)
    try:
        with torch.no_grad(), attack_mode(model, foreign=foreign):
            assert not model.training and not any(p.requires_grad for p in model.parameters())
            assert torch.is_grad_enabled()
            if foreign:  # what torchattacks does: fills .grad, reseeds, moves statistics
                torch.manual_seed(0)
                model.conv.weight.grad = torch.ones_like(model.conv.weight)
                model.norm.running_mean.add_(1)
            if raises:
                raise KeyboardInterrupt
    except KeyboardInterrupt:
        assert raises
    assert equal(before, trace(model))


def test_train_mode_keeps_modes_and_lets_batch_statistics_move(model):
    model.norm.train()
    before = model.norm.running_mean.clone()
    with attack_mode(model, train_mode=True):
        assert model.training
        model(torch.rand(4, 3, 8, 8))
    assert not torch.equal(before, model.norm.running_mean)
