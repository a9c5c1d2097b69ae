import pytest
import torch
import torchattacks
from conftest import sharp_net, tiny_data
from torch import nn

from bmtard_hooks.attacks.base import Draws, Target, distance
from bmtard_hooks.attacks.fab import FAB, FAB_T


class Counter(nn.Module):
    """Counts images passed forward and backward."""

    def __init__(self, net):
        super().__init__()
        self.net = net
        self.passes = 0

    def forward(self, pixels):
        logits = self.net(pixels)
        self.passes += len(pixels) * (2 if logits.requires_grad else 1)
        return logits


def attacked(num_classes=4, seed=0, count=40):
    """A net and images that it classifies correctly by definition of the labels."""
    net = sharp_net(seed, num_classes=num_classes).eval().requires_grad_(False)
    images = tiny_data(count, seed=seed).images.float() / 255
    return net, images, net(images).argmax(1)


def run(attack, net, images, labels):
    target = Target(net)
    found = attack(target, images, labels, Draws(range(len(images)), 0)).images
    return found, net(found).argmax(1) != labels, target


def theirs(net, images, labels, attack, num_classes):
    norm = {"linf": "Linf", "l2": "L2"}[attack.norm]
    options = dict(norm=norm, eps=attack.eps, steps=attack.steps, multi_targeted=True, n_classes=num_classes)
    net = Counter(net)
    net.weight = nn.Parameter(torch.zeros(1), requires_grad=False)  # it looks for a parameter to learn the device
    found = torchattacks.FAB(net.eval(), **options)(images, labels)
    moved = distance(found, images, attack.norm)
    return found, (net.net(found).argmax(1) != labels) & (moved <= attack.eps), net.passes


@pytest.mark.parametrize("norm", ["linf", "l2"])
@pytest.mark.parametrize("seed, num_classes", [(0, 4), (1, 6), (2, 2)])
def test_verdicts_equal_torchattacks_image_by_image(norm, seed, num_classes):
    net, images, labels = attacked(num_classes, seed, count=24)
    wide = FAB(norm=norm, eps=1.0 if norm == "linf" else 50.0, steps=12)
    sizes = distance(theirs(net, images, labels, wide, num_classes)[0], images, norm).sort().values[8:16]
    gaps = sizes.diff()  # rounding may move a point that lies on the radius, so put that where no point lies
    attack = wide.replace(eps=(sizes[gaps.argmax()] + gaps.max() / 2).item())
    _, expected, _ = theirs(net, images, labels, attack, num_classes)
    assert 5 < expected.sum() < len(images) - 5  # a radius that separates the images
    _, broken, _ = run(attack, net, images, labels)
    assert torch.equal(broken, expected)


@pytest.mark.parametrize("norm", ["linf", "l2"])
def test_walk_passes_through_the_points_of_torchattacks(norm):
    net, images, labels = attacked(3, 4, count=6)
    walks = ([], [])
    attack = FAB(norm=norm, eps=1e-6, steps=12)  # nothing is that close, so no walk ends early

    def note(walk):
        def forward(pixels):
            walk.append(pixels.detach().clone())
            return net(pixels)

        return forward

    run(attack, note(walks[0]), images, labels)
    spy = nn.Module()
    spy.weight = nn.Parameter(torch.zeros(1), requires_grad=False)
    spy.forward = note(walks[1])
    norm = {"linf": "Linf", "l2": "L2"}[norm]
    torchattacks.FAB(spy.eval(), norm=norm, eps=1e-6, steps=12, multi_targeted=True, n_classes=3)(images, labels)
    ours = torch.stack(walks[0][1:-1])
    per_target = 3 + 2 * attack.steps
    one_by_one = torch.stack([torch.stack(walks[1][1 + per_target * k :][2 : per_target - 1]) for k in range(2)])
    torch.testing.assert_close(ours, one_by_one.flatten(0, 1), atol=1e-4, rtol=0)
    assert (ours - images).abs().max() > 0.01


@pytest.mark.parametrize("norm, eps", [("linf", 0.05), ("l2", 0.6)])
@pytest.mark.parametrize("num_classes", [2, 3, 4, 10, 100])
def test_ball_box_and_clean_answers_at_any_number_of_classes(norm, eps, num_classes):
    net, images, labels = attacked(num_classes, 3, count=20)
    before = images.clone()
    attack = FAB(norm=norm, eps=eps, steps=8)
    found, broken, target = run(attack, net, images, labels)
    assert broken.any()
    assert (distance(found, images, norm) <= eps).all()
    assert found.min() >= 0 and found.max() <= 1
    assert torch.equal(found[~broken], images[~broken])
    assert torch.equal(images, before)
    assert target.forwards + target.backwards <= attack.passes(num_classes) * len(images)


def test_costs_fewer_passes_than_torchattacks_even_where_nothing_breaks():
    net, images, labels = attacked(4)
    for eps in (1e-6, 0.02, 0.5):
        attack = FAB(eps=eps, steps=10)
        _, broken, target = run(attack, net, images, labels)
        _, expected, passes = theirs(net.requires_grad_(False), images, labels, attack, 4)
        assert torch.equal(broken, expected)
        assert target.forwards + target.backwards < passes
        if eps == 1e-6:
            assert target.forwards + target.backwards == attack.passes(4) * len(images)


def test_batch_size_and_order_change_nothing():
    net, images, labels = attacked(10)
    attack = FAB(eps=0.03, steps=10)
    whole, broken, _ = run(attack, net, images, labels)
    assert broken.any() and not broken.all()
    order = torch.randperm(len(images), generator=torch.Generator().manual_seed(0))
    parts = [run(attack, net, images[part], labels[part])[0] for part in order.split(7)]
    torch.testing.assert_close(torch.cat(parts), whole[order], atol=1e-4, rtol=0)


def test_misclassified_images_are_answered_unchanged_and_cost_one_pass():
    net, images, labels = attacked(4)
    wrong = (labels + 1) % 4
    found, broken, target = run(FAB(steps=5), net, images, wrong)
    assert broken.all() and torch.equal(found, images)
    assert target.forwards == len(images) and target.backwards == 0
    mixed = torch.where(torch.arange(len(images)) < 3, wrong, labels)
    found, broken, _ = run(FAB(steps=5, eps=0.5), net, images, mixed)
    assert torch.equal(found[:3], images[:3]) and broken.all()


def test_no_images_are_no_problem():
    net, images, labels = attacked(4)
    assert run(FAB(steps=2), net, images[:0], labels[:0])[0].shape == images[:0].shape


def test_channels_last_and_gradients_of_parameters():
    net, images, labels = attacked(4)
    net.requires_grad_(True)
    attack = FAB(eps=0.03, steps=10)
    plain, broken, _ = run(attack, net, images, labels)
    last, _, _ = run(attack, net, images.to(memory_format=torch.channels_last), labels)
    torch.testing.assert_close(last, plain, atol=1e-4, rtol=0)
    assert broken.any()
    assert all(parameter.grad is None for parameter in net.parameters())


def test_preset_is_the_one_of_autoattack():
    assert FAB(eps=8 / 255, steps=100, target_classes=9, alpha_max=0.1, eta=1.05, beta=0.9) == FAB_T
    assert FAB_T.passes(10) == FAB_T.passes(100) == 2701
    assert FAB_T.passes(3) == 601


@pytest.mark.parametrize(
    "options, message",
    [
        ({"steps": 0}, "steps=0: pass a whole number, 1 or more"),
        ({"target_classes": 0}, "target_classes=0: pass a whole number, 1 or more"),
        ({"alpha_max": 1.5}, r"alpha_max=1.5 is outside \[0, 1\]"),
        ({"eta": 0.5}, "eta=0.5 would stop short of the boundary"),
        ({"beta": 1.0}, r"beta=1.0 is outside \(0, 1\)"),
        ({"norm": "l1"}, "norm='l1': FAB knows linf, l2"),
    ],
)
def test_bad_settings_are_refused(options, message):
    with pytest.raises(ValueError, match=message):
        FAB(**options)
