import json
from dataclasses import replace

import pytest
import torch
from conftest import sharp_net, tiny_net
from torch import nn

from bmtard_hooks.attacks import attack_mode
from bmtard_hooks.attacks.base import Draws, NonFiniteLogits, Target
from bmtard_hooks.attacks.foreign import Foreign
from bmtard_hooks.attacks.gradient import CW_INF, PGD, PGD_TRADES
from bmtard_hooks.attacks.transfer import Transfer


@pytest.fixture
def surrogate():
    net = sharp_net(2, batch_norm=True, dropout=0.5).train()
    net.norm.eval()
    net.conv.bias.requires_grad_(False)
    net.head.weight.grad = torch.ones_like(net.head.weight)
    return net


@pytest.fixture
def batch():
    generator = torch.Generator().manual_seed(1)
    return (
        torch.rand(6, 3, 8, 8, generator=generator),
        torch.randint(0, 4, (6,), generator=generator),
        Draws(range(6), 0),
    )


def refused(_):
    raise AssertionError("the target must not be asked")


@pytest.mark.parametrize("attack", [PGD_TRADES, CW_INF, PGD(steps=3, restarts=2)])
def test_it_is_the_attack_on_the_surrogate(surrogate, batch, attack):
    found = Transfer(surrogate=surrogate, attack=attack)(Target(refused), *batch)
    with attack_mode(surrogate):
        direct = attack(Target(surrogate), *batch)
    assert torch.equal(found.images, direct.images)
    assert found.queries is None and found.broken_on_the_way is None


def test_the_wrapper_sets_radius_norm_and_sample(surrogate, batch):
    attack = Transfer(surrogate=surrogate, attack=PGD(steps=3), eps=0.5, norm="l2", images=5)
    assert (attack.attack.eps, attack.attack.norm, attack.attack.images) == (0.5, "l2", 5)
    moved = (attack(Target(refused), *batch).images - batch[0]).flatten(1).norm(dim=1)
    assert moved.max() <= 0.5 + 1e-6
    assert attack.replace(eps=0.1).attack.eps == 0.1


@pytest.mark.parametrize("raises", [False, True])
def test_the_surrogate_is_left_as_it_was(surrogate, batch, raises):
    def trace():
        modes = [module.training for module in surrogate.modules()]
        gradients = [None if p.grad is None else p.grad.clone() for p in surrogate.parameters()]
        return (
            modes,
            [p.requires_grad for p in surrogate.parameters()],
            gradients,
            [b.clone() for b in surrogate.buffers()],
        )

    def stop(count):
        if raises:
            raise KeyboardInterrupt

    before = trace()
    try:
        with torch.no_grad():
            Transfer(surrogate=surrogate, attack=PGD(steps=2))(Target(refused, stop), *batch)
    except KeyboardInterrupt:
        assert raises
    for old, new in zip(before, trace(), strict=True):
        assert all(torch.equal(a, b) if isinstance(a, torch.Tensor) else a == b for a, b in zip(old, new, strict=True))


def test_passes_are_reported_but_are_no_queries(surrogate, batch):
    seen = []
    target = Target(refused, seen.append)
    attack = Transfer(surrogate=surrogate, attack=PGD(steps=4))
    attack(target, *batch)
    assert len(seen) == 4 and target.forwards == target.backwards == 0
    assert attack.passes(4) == PGD(steps=4).passes(4) and attack.access == "transfer"


def test_settings_are_plain_and_attacks_compare(surrogate):
    attack = Transfer(surrogate=surrogate, surrogate_name="robust teacher", attack=CW_INF, eps=4 / 255)
    settings = json.loads(json.dumps(attack.settings()))
    assert settings["surrogate"] == "robust teacher" and settings["eps"] == 4 / 255
    assert settings["attack"] == json.loads(json.dumps(replace(CW_INF, eps=4 / 255).settings()))
    assert Transfer(surrogate=surrogate).settings()["surrogate"] == "TinyNet"
    assert attack == attack.replace() and hash(attack) == hash(attack.replace())
    assert attack != attack.replace(surrogate=tiny_net(1)) and attack != attack.replace(images=3)
    assert "Conv2d" not in repr(attack)


def test_what_cannot_transfer_is_refused(surrogate, batch):
    with pytest.raises(TypeError, match="surrogate is function: expected a module from pixels to logits"):
        Transfer(surrogate=refused)
    with pytest.raises(ValueError, match="attack=Foreign attacks a model of its own"):
        Transfer(surrogate=surrogate, attack=Foreign(run=lambda x, y: x, eps=0.1))
    with pytest.raises(ValueError, match="attack=Transfer attacks a model of its own"):
        Transfer(surrogate=surrogate, attack=Transfer(surrogate=surrogate))

    class Output(nn.Module):
        def forward(self, x):
            return {"logits": x.flatten(1)}

    with pytest.raises(TypeError, match="surrogate Output returned dict: expected a tensor of logits, wrap"):
        Transfer(surrogate=Output())(Target(refused), *batch)
    broken = tiny_net()
    with torch.no_grad():
        broken.head.weight.fill_(torch.nan)
    with pytest.raises(NonFiniteLogits, match="surrogate teacher: the model gave logits"):
        Transfer(surrogate=broken, surrogate_name="teacher")(Target(refused), *batch)
