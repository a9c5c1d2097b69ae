import functools
import json
import random

import numpy as np
import pytest
import torch
import torchattacks
from conftest import sharp_net, tiny_net

from bmtard_hooks.attacks import attack_mode
from bmtard_hooks.attacks.base import Draws, Target
from bmtard_hooks.attacks.foreign import Foreign
from bmtard_hooks.randomness import keyed_generator

TARGET = Target(lambda images: pytest.fail("a foreign attack brings its own model"))


@pytest.fixture
def net():
    net = sharp_net(0, batch_norm=True, dropout=0.5).train()
    net.norm.eval()
    net.conv.bias.requires_grad_(False)
    net.conv.weight.grad = torch.ones_like(net.conv.weight)
    return net


@pytest.fixture
def batch():
    generator = torch.Generator().manual_seed(1)
    return (
        torch.rand(4, 3, 8, 8, generator=generator),
        torch.randint(0, 4, (4,), generator=generator),
        Draws([7, 8, 9, 10], 0),
    )


def trace(net):
    python, numbers = random.getstate(), np.random.get_state()
    return (
        [module.training for module in net.modules()],
        [parameter.requires_grad for parameter in net.parameters()],
        [None if parameter.grad is None else parameter.grad.clone() for parameter in net.parameters()],
        [buffer.clone() for buffer in net.buffers()],
        [torch.get_rng_state(), python, numbers[1].tolist(), numbers[2:]],
    )


def same(before, after):
    return all(
        torch.equal(a, b) if isinstance(a, torch.Tensor) else a == b
        for left, right in zip(before, after, strict=True)
        for a, b in zip(left, right, strict=True)
    )


def test_torchattacks_pgd_is_itself(net, batch):
    run = torchattacks.PGD(net, eps=0.1, alpha=0.02, steps=5)
    found = Foreign(run=run)(TARGET, *batch).images
    with torch.random.fork_rng(), attack_mode(net):
        torch.manual_seed(keyed_generator(0, "foreign", 7).initial_seed())
        direct = run(*batch[:2])
    assert torch.equal(found, direct)
    assert torch.equal(found, Foreign(run=run)(TARGET, *batch).images)  # repeatable
    images, labels, _ = batch
    assert not torch.equal(found, Foreign(run=run)(TARGET, images, labels, Draws([1, 2, 3, 4], 0)).images)


@pytest.mark.parametrize(
    "make",
    [
        lambda net: torchattacks.PGD(net, steps=2),
        lambda net: torchattacks.FAB(net, steps=2, n_classes=4, multi_targeted=True),  # fills .grad, reseeds
        lambda net: torchattacks.Square(net, n_queries=5),
        lambda net: torchattacks.APGD(net, steps=3),
    ],
)
def test_nothing_is_left_behind(net, batch, make):
    attack = Foreign(run=make(net))
    assert attack.attacked_model is net
    kept, before = batch[0].clone(), trace(net)
    with torch.no_grad():
        found = attack(TARGET, batch[0].to(memory_format=torch.channels_last), *batch[1:]).images
    assert same(before, trace(net))
    assert torch.equal(batch[0], kept)
    assert found.shape == kept.shape and not found.requires_grad
    assert (found - kept).abs().max() <= attack.eps + 1e-6


def test_fab_would_have_leaked_gradients(net, batch):
    net.zero_grad()
    torchattacks.FAB(net, steps=2, n_classes=4, seed=0)(*batch[:2])
    assert net.conv.weight.grad is not None


def test_an_exception_leaves_nothing_behind(net, batch):
    class Failing:
        eps, model = 0.1, net

        def __call__(self, images, labels):
            torch.manual_seed(0), random.seed(0), np.random.seed(0)
            net.train().requires_grad_(True)(images).sum().backward()
            net.conv.weight.grad.add_(1)
            raise KeyboardInterrupt

    before = trace(net)
    with pytest.raises(KeyboardInterrupt):
        Foreign(run=Failing())(TARGET, *batch)
    after = trace(net)
    assert same(before[:1] + before[2:], after[:1] + after[2:])


def test_callables(batch):
    given = []

    def noise(images, labels, size=0.1):
        given.append(images)
        images += size * (2 * torch.rand_like(images) - 1)
        return images.clamp_(0, 1)

    kept, state = batch[0].clone(), torch.get_rng_state()
    attack = Foreign(run=noise, eps=0.1)
    first, second = attack(TARGET, *batch).images, attack(TARGET, *batch).images
    assert torch.equal(first, second) and not torch.equal(first, kept)
    assert torch.equal(batch[0], kept) and torch.equal(state, torch.get_rng_state())
    assert given[0].is_contiguous() and given[0].dtype == torch.float32
    assert attack.name == "noise" and attack.attacked_model is None and attack.norm == "linf"
    half = Foreign(run=functools.partial(noise, size=0.05), eps=0.05, name="half")
    assert (half(TARGET, *batch).images - kept).abs().max() <= 0.05 + 1e-6


def test_normalisation_is_refused(net, batch):
    run = torchattacks.PGD(net)
    attack = Foreign(run=run)
    run.set_normalization_used(mean=[0.5] * 3, std=[0.5] * 3)
    message = "PGD has set_normalization_used.*put the normalisation into the model"
    with pytest.raises(ValueError, match=message):
        Foreign(run=run)
    with pytest.raises(ValueError, match=message):
        attack(TARGET, *batch)


def test_radius_and_norm_are_the_objects_own():
    net = tiny_net()
    assert Foreign(run=torchattacks.PGD(net, eps=4 / 255)).eps == 4 / 255
    assert Foreign(run=torchattacks.PGDL2(net, eps=2.0)).norm == "l2"
    assert Foreign(run=torchattacks.Square(net, norm="L2", eps=1.5)).norm == "l2"
    assert Foreign(run=torchattacks.APGD(net)).norm == "linf"
    assert Foreign(run=torchattacks.CW(net), eps=1.0, norm="l2").eps == 1.0
    assert Foreign(run=torchattacks.PGD(net)).replace(images=3).images == 3
    with pytest.raises(ValueError, match="CW has no eps, so its answers could not be checked: pass Foreign"):
        Foreign(run=torchattacks.CW(net))
    with pytest.raises(ValueError, match=r"eps=0.1, but the attack has eps=0.2: make it with the radius"):
        Foreign(run=torchattacks.PGD(net, eps=0.2), eps=0.1)
    with pytest.raises(ValueError, match=r"eps=8.0 is outside \(0, 1\]"):
        Foreign(run=torchattacks.PGD(net, eps=8), norm="linf")
    with pytest.raises(TypeError, match="run is int: expected a callable"):
        Foreign(run=3)


def test_another_device_is_refused(batch):
    run = torchattacks.PGD(tiny_net())
    run.set_device("meta")
    with pytest.raises(ValueError, match="PGD was made for meta, the images are on cpu: move the model first"):
        Foreign(run=run)(TARGET, *batch)


@pytest.mark.parametrize(
    "answer, message",
    [
        (lambda x, y: x[:1], r"returned shape \(1, 3, 8, 8\) for images \(4, 3, 8, 8\)"),
        (lambda x, y: x * torch.nan, "returned pixels that are NaN or infinite"),
        (lambda x, y: (x * 255).byte(), "returned torch.uint8: expected a float tensor"),
        (lambda x, y: (x, y), "returned tuple: expected a float tensor"),
    ],
)
def test_bad_answers_are_refused(batch, answer, message):
    with pytest.raises(ValueError, match=message):
        Foreign(run=answer, eps=0.1, name="mine")(TARGET, *batch)


def test_settings_are_plain(net):
    attack = Foreign(run=torchattacks.PGD(net, eps=0.1, alpha=0.02, steps=5), name="their PGD")
    settings = json.loads(json.dumps(attack.settings()))
    assert settings["class"] == "Foreign" and settings["name"] == "their PGD"
    assert settings["run"] == "torchattacks.attacks.pgd.PGD" and (settings["eps"], settings["norm"]) == (0.1, "linf")
    assert {"alpha": 0.02, "steps": 5, "random_start": True}.items() <= settings["options"].items()
    assert attack.passes(4) == 10 and Foreign(run=torchattacks.Square(net, n_queries=9)).passes(4) == 9
    assert json.dumps(Foreign(run=lambda x, y: x, eps=0.1).settings()).count("lambda") == 2
    assert hash(attack) == hash(attack.replace()) and attack == attack.replace()
    assert "TinyNet" not in repr(attack)
