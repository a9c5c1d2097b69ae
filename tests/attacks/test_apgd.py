import logging

import pytest
import torch
from conftest import tiny_net

from bmtard_hooks.attacks import apgd
from bmtard_hooks.attacks.apgd import APGD, APGD_CE, APGD_DLR, APGD_T, checkpoints
from bmtard_hooks.attacks.base import Draws, Target, distance
from bmtard_hooks.attacks.losses import cross_entropy, dlr, dlr_targeted, margin_targeted
from bmtard_hooks.randomness import keyed_generator

NORMS = [("linf", 0.02), ("l2", 0.2)]
LOSSES = ["ce", "dlr", "dlr_targeted"]


def attacked(num_classes=10, count=12):
    net = tiny_net(0, num_classes=num_classes).eval().requires_grad_(False)
    images = torch.rand(count, 3, 8, 8, generator=torch.Generator().manual_seed(1))
    return net, images, net(images).argmax(1)


class SameForAll(Draws):
    """Numbers that depend on the purpose alone, so that another implementation can be given the same ones."""

    def subset(self, chosen):
        return SameForAll(super().subset(chosen).indices)

    def __call__(self, sample, *purpose):
        return torch.stack([sample(keyed_generator(*purpose))] * len(self))


class Recorder(torch.nn.Module):
    """Keeps what was evaluated."""

    def __init__(self, net):
        super().__init__()
        self.net, self.calls = net, []

    def forward(self, images):
        self.calls.append(images.detach().clone())
        return self.net(images)


def oracle(monkeypatch, net, attack):
    """torchattacks' port of the reference with the start noise of ``SameForAll``."""
    import torchattacks

    options = dict(norm={"linf": "Linf", "l2": "L2"}[attack.norm], eps=attack.eps, steps=attack.steps, rho=attack.rho)
    if attack.loss == "dlr_targeted":
        other = torchattacks.APGDT(net, n_classes=net.net.num_classes, **options)
    else:
        other = torchattacks.APGD(net, loss=attack.loss, **options)
    runs, draw = iter(range(100)), torch.rand if attack.norm == "linf" else torch.randn

    def same_noise(shape):
        return draw(shape[1:], generator=keyed_generator("start", next(runs))).expand(shape)

    monkeypatch.setattr(torch, draw.__name__, same_noise)
    return other


@pytest.mark.parametrize("norm, eps", NORMS)
@pytest.mark.parametrize("loss", LOSSES)
@pytest.mark.parametrize("steps", [3, 40])
def test_outcomes_match_torchattacks(monkeypatch, norm, eps, loss, steps):
    net, images, labels = attacked(5 if loss == "dlr_targeted" else 10)
    attack = APGD(norm=norm, eps=eps, loss=loss, steps=steps)
    ours = attack(Target(net), images, labels, SameForAll(range(12))).images
    with torch.random.fork_rng():
        theirs = oracle(monkeypatch, Recorder(net), attack)(images, labels)
    robust = net(ours).argmax(1) == labels
    assert 1 <= robust.sum() <= 11
    assert torch.equal(robust, net(theirs).argmax(1) == labels)


@pytest.mark.parametrize("norm, eps", NORMS)
@pytest.mark.parametrize("loss", ["ce", "dlr"])
def test_every_point_matches_torchattacks(monkeypatch, norm, eps, loss):
    net, images, labels = attacked()
    attack = APGD(norm=norm, eps=eps, loss=loss)
    mine, reference = Recorder(net), Recorder(net)
    ours = attack(Target(mine), images, labels, SameForAll(range(12))).images
    with torch.random.fork_rng():
        oracle(monkeypatch, reference, attack)(images, labels)
    left = torch.arange(12)
    assert len(mine.calls) == 101
    for points, expected in zip(mine.calls, reference.calls[1:102], strict=True):  # its first call is the clean images
        torch.testing.assert_close(points, expected[left], atol=1e-6, rtol=0)
        broken = net(points).argmax(1) != labels[left]
        assert torch.equal(ours[left[broken]], points[broken])  # the first misclassified point is the answer
        left = left[~broken]
    objective = {"ce": cross_entropy, "dlr": dlr}[loss]
    path = torch.stack([objective(labels[left])(net(call[left])) for call in reference.calls[1:102]])
    torch.testing.assert_close(objective(labels[left])(net(ours[left])), path.amax(0))


@pytest.mark.parametrize("norm, eps", NORMS)
@pytest.mark.parametrize("loss", LOSSES)
def test_batch_and_order_change_nothing(norm, eps, loss):
    net, images, labels = attacked(count=16)
    attack = APGD(norm=norm, eps=eps, loss=loss, steps=10, restarts=2, target_classes=3)

    def one_by_one(images):
        # the rounding of a convolution depends on the batch size, and whether a loss rose can depend on the rounding
        return torch.cat([net(image[None]) for image in images])

    def run(chosen):
        return attack(Target(one_by_one), images[chosen], labels[chosen], Draws(chosen.tolist(), 0, "apgd")).images

    whole = run(torch.arange(16))
    parts = torch.cat([run(chosen) for chosen in torch.arange(16).split(4)])
    order = torch.randperm(16, generator=torch.Generator().manual_seed(0))
    assert torch.equal(parts, whole)
    assert torch.equal(run(order), whole[order])


@pytest.mark.parametrize("norm, eps", [("linf", 8 / 255), ("l2", 0.5), ("linf", 0.005), ("l2", 0.05)])
@pytest.mark.parametrize("loss", LOSSES)
def test_answers_are_inside_and_images_stay_as_they_are(norm, eps, loss):
    net, images, labels = attacked()
    images[:4] = images[:4].round()  # on the box's corners
    before = images.clone()
    adversarial = APGD(norm=norm, eps=eps, loss=loss, steps=12)(
        Target(net), images, labels, Draws(range(12), 0)
    ).images
    assert torch.equal(images, before)
    assert adversarial.min() >= 0 and adversarial.max() <= 1
    assert distance(adversarial, images, norm).max() <= eps + 1e-6
    assert not adversarial.requires_grad


@pytest.mark.parametrize("norm, eps", [("linf", 0.002), ("l2", 0.02)])
def test_losses_rise(norm, eps):
    net, images, labels = attacked()
    adversarial = APGD(norm=norm, eps=eps, steps=10)(Target(net), images, labels, Draws(range(12), 0)).images
    assert (cross_entropy(labels)(net(adversarial)) > cross_entropy(labels)(net(images))).all()


def test_dlr_is_not_blinded_by_large_logits():
    net, images, labels = attacked()

    def robust(loss):
        attack = APGD(eps=0.02, loss=loss, steps=20)
        found = attack(Target(lambda pixels: 5000 * net(pixels)), images, labels, Draws(range(12), 0))
        return (net(found.images).argmax(1) == labels).sum()

    assert robust("dlr") < robust("ce")


@pytest.mark.parametrize("num_classes", [2, 3, 4, 5, 10, 100])
@pytest.mark.parametrize("loss", LOSSES)
def test_any_number_of_classes(num_classes, loss, caplog):
    net, images, labels = attacked(num_classes, count=6)
    attack = APGD(loss=loss, steps=5, eps=0.05)
    apgd._warn_once.cache_clear()
    target = Target(net)
    with caplog.at_level(logging.WARNING, logger=apgd.__name__):
        found = attack(target, images, labels, Draws(range(6), 0))
    assert found.images.shape == images.shape
    assert target.forwards + target.backwards <= 6 * attack.passes(num_classes)
    assert (net(found.images).argmax(1) != labels).any()
    note = attack.fallback(num_classes)
    assert [record.message for record in caplog.records] == ([] if note is None else [note])
    assert (note is None) == (num_classes >= {"ce": 0, "dlr": 3, "dlr_targeted": 4}[loss])


def test_fallback_names_what_was_used():
    assert APGD_DLR.fallback(2) == "the loss dlr needs 3 classes, the model has 2: the margin was used instead"
    assert "the model has 3: the targeted margin was used" in APGD_T.fallback(3)


@pytest.mark.parametrize("num_classes, runs", [(2, 1), (4, 3), (10, 9), (100, 9)])
def test_passes_are_the_most_that_an_image_costs(num_classes, runs):
    assert APGD_CE.passes(num_classes) == 201
    assert APGD_T.passes(num_classes) == 1 + runs * 201
    net, images, labels = attacked(num_classes, count=3)
    attack = APGD(eps=1e-6, loss="dlr_targeted", steps=4)
    target = Target(net)
    attack(target, images, labels, Draws(range(3), 0))
    assert target.forwards + target.backwards == 3 * attack.passes(num_classes)


def test_targets_are_the_likely_classes_in_order():
    logits = torch.tensor([[3.0, 1.0, 2.0, 0.0], [0.0, 4.0, 1.0, 2.0]])
    rivals = APGD(loss="dlr_targeted", target_classes=2, restarts=2)._rivals(
        Target(lambda images: logits), torch.zeros(2, 3, 1, 1), torch.tensor([0, 1])
    )
    assert [run.tolist() for run in rivals] == [[2, 3], [2, 3], [1, 2], [1, 2]]


def test_restarts_try_the_survivors_from_another_start():
    net, images, labels = attacked()
    recorder = Recorder(net)
    attack = APGD(eps=0.02, steps=3)
    once = attack(Target(net), images, labels, Draws(range(12), 0)).images
    survivors = net(once).argmax(1) == labels
    twice = attack.replace(restarts=2)(Target(recorder), images, labels, Draws(range(12), 0)).images
    assert len(recorder.calls) == 8 and 0 < survivors.sum() < 12
    assert torch.equal(twice[~survivors], once[~survivors])
    assert recorder.calls[4].shape == images[survivors].shape
    assert not torch.equal(recorder.calls[4], recorder.calls[0][survivors])


def test_an_image_leaves_the_batch_when_it_is_broken():
    net, images, labels = attacked()

    def sizes(eps):
        recorder = Recorder(net)
        APGD(eps=eps, steps=30)(Target(recorder), images, labels, Draws(range(12), 0))
        return [len(call) for call in recorder.calls]

    some = sizes(0.02)
    assert some == sorted(some, reverse=True) and len(some) == 31 and some[0] == 12 and 0 < some[-1] < 12
    assert len(sizes(0.9)) < 10  # all are broken


def test_checkpoints():
    assert checkpoints(100) == {22: 22, 41: 19, 57: 16, 70: 13, 80: 10, 87: 7, 93: 6, 99: 6}
    assert checkpoints(10) == {2: 2, 3: 1, 4: 1, 5: 1, 6: 1, 7: 1, 8: 1, 9: 1}
    assert checkpoints(1) == {}


def test_dlr_values():
    logits = torch.tensor([[4.0, 1.0, 2.0, 0.5, -3.0], [1.0, 4.0, 2.0, 0.5, -3.0]])
    labels, targets = torch.tensor([0, 0]), torch.tensor([2, 3])
    torch.testing.assert_close(dlr(labels)(logits), torch.tensor([-2 / 3, 3 / 3]))
    torch.testing.assert_close(dlr_targeted(labels, targets)(logits), torch.tensor([-2 / 3.25, -0.5 / 3.25]))
    torch.testing.assert_close(margin_targeted(labels, targets)(logits), torch.tensor([-2.0, -0.5]))


@pytest.mark.parametrize("shift, scale", [(-100.0, 1.0), (0.0, 8.0), (64.0, 0.5)])
def test_dlr_does_not_see_shift_and_scale(shift, scale):
    logits, labels = torch.tensor([[4.0, 1.0, 2.0, 0.5], [0.5, 4.0, 1.0, 2.0]]), torch.tensor([0, 2])
    changed = scale * logits + shift
    torch.testing.assert_close(dlr(labels)(changed), dlr(labels)(logits))
    targets = torch.tensor([1, 3])
    torch.testing.assert_close(dlr_targeted(labels, targets)(changed), dlr_targeted(labels, targets)(logits))


@pytest.mark.parametrize("needed, make", [(3, dlr), (4, lambda labels: dlr_targeted(labels, labels - 1))])
def test_too_few_classes_are_named(needed, make):
    with pytest.raises(ValueError, match=f"the {needed} largest logits, the model has 2 classes: use the margin"):
        make(torch.tensor([1]))(torch.zeros(1, 2))


@pytest.mark.parametrize(
    "options, message",
    [
        ({"loss": "kl"}, "loss='kl' is unknown: choose one of ce, dlr, dlr_targeted"),
        ({"norm": "l1"}, "norm='l1': APGD knows linf, l2"),
        ({"steps": 0}, "steps=0: pass a whole number, 1 or more"),
        ({"restarts": 0}, "restarts=0"),
        ({"target_classes": 0}, "target_classes=0"),
        ({"rho": 0}, r"rho=0 is outside \(0, 1\]"),
    ],
)
def test_bad_settings_are_refused(options, message):
    with pytest.raises(ValueError, match=message):
        APGD(**options)
