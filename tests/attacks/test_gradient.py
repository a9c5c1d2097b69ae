import pytest
import torch
import torch.nn.functional as F
from conftest import tiny_data, tiny_net

from bmtard_hooks.attacks.base import Draws, Target
from bmtard_hooks.attacks.gradient import CW_INF, FGSM, FGSM_RANDOM_START, PGD, PGD_SAT, PGD_TRADES

EPS = 8 / 255


def sharp(seed=0):
    net = tiny_net(seed).eval()
    with torch.no_grad():
        net.head.weight.mul_(20)
    return net


@pytest.fixture(scope="module")
def scene():
    net = sharp()
    images = tiny_data(48, seed=3).pixels(slice(None))
    with torch.no_grad():
        labels = net(images).argmax(1)
    return net, images, labels


def attack(settings, scene, indices=None):
    net, images, labels = scene
    indices = list(range(len(images))) if indices is None else indices
    target = Target(net)
    found = settings(target, images[indices], labels[indices], Draws(indices, 0, "name"))
    return found, target


def reference(net, images, labels, steps, size, loss):
    """Plain PGD from the image itself, written from the protocol's description, one image after the other."""
    answers = []
    for image, label in zip(images, labels, strict=True):
        adversarial = image[None].clone()
        for _ in range(steps):
            adversarial.requires_grad_(True)
            logits = net(adversarial)[0]
            if loss == "ce":
                value = F.cross_entropy(logits[None], label[None])
            else:
                others = torch.cat([logits[:label], logits[label + 1 :]])
                value = -torch.relu(logits[label] - others.max() + 50)
            gradient = torch.autograd.grad(value, adversarial)[0]
            with torch.no_grad():
                adversarial = adversarial + size * gradient.sign()
                adversarial = torch.minimum(torch.maximum(adversarial, image - EPS), image + EPS).clamp(0, 1)
        answers.append(adversarial[0].detach())
    return torch.stack(answers)


@pytest.mark.parametrize(
    ("settings", "steps", "size", "loss"),
    [
        (FGSM, 1, 8 / 255, "ce"),
        (PGD_SAT.replace(start="zero"), 20, 2 / 255, "ce"),
        (PGD_TRADES.replace(start="zero"), 20, 0.003, "ce"),
        (CW_INF.replace(start="zero"), 30, 2 / 255, "margin"),
    ],
)
def test_attacks_without_random_numbers_equal_the_protocol_image_by_image(scene, settings, steps, size, loss):
    net, images, labels = scene
    found, target = attack(settings, scene)
    expected = reference(net, images, labels, steps, size, loss)
    assert torch.allclose(found.images, expected, atol=1e-6)
    verdicts = net(found.images).argmax(1) == labels
    assert torch.equal(verdicts, net(expected).argmax(1) == labels)
    assert 0 < verdicts.sum() < len(labels)  # or the comparison would say little
    assert (target.forwards, target.backwards) == (steps * len(images),) * 2


def test_the_margin_attack_does_not_care_for_a_shift_of_the_logits(scene):
    net, images, labels = scene
    found, _ = attack(CW_INF, scene)
    shifted = CW_INF(Target(lambda pixels: net(pixels) - 100), images, labels, Draws(range(48), 0, "name"))
    assert torch.equal(net(shifted.images).argmax(1), net(found.images).argmax(1))


@pytest.mark.parametrize("settings", [PGD_SAT, FGSM_RANDOM_START, CW_INF.replace(restarts=3), PGD(norm="l2", eps=0.3)])
def test_neither_batch_size_nor_order_changes_what_an_image_gets(scene, settings):
    whole, _ = attack(settings, scene)
    order = torch.randperm(48, generator=torch.Generator().manual_seed(1)).tolist()
    for position in range(0, 48, 7):
        indices = order[position : position + 7]
        part, _ = attack(settings, scene, indices)
        assert torch.allclose(part.images, whole.images[indices], atol=1e-5)


def test_the_paper_attacks_rank_as_their_steps_say(scene):
    net, _, labels = scene
    left = {
        name: int((net(attack(settings, scene)[0].images).argmax(1) == labels).sum())
        for name, settings in {"fgsm_rs": FGSM_RANDOM_START, "trades": PGD_TRADES, "sat": PGD_SAT}.items()
    }
    assert left["sat"] <= left["trades"] <= left["fgsm_rs"]


def test_restarts_only_ever_break_more_and_stop_when_nothing_is_left(scene):
    net, _, labels = scene
    once, _ = attack(PGD_SAT, scene)
    often, target = attack(PGD_SAT.replace(restarts=4), scene)
    broken_once, broken_often = (net(found.images).argmax(1) != labels for found in (once, often))
    assert torch.equal(broken_once & broken_often, broken_once)
    assert target.forwards < 4 * 20 * 48 + 3 * 48  # the broken ones rest
    assert (often.broken_on_the_way | ~broken_often).all()


def test_radius_of_fgsm_follows_eps(scene):
    found, _ = attack(FGSM.replace(eps=16 / 255), scene)
    assert (found.images - scene[1]).abs().max() == pytest.approx(16 / 255, abs=1e-6)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"eps": 8}, "pass 8/255"),
        ({"eps": float("nan")}, "positive"),
        ({"norm": "l1"}, "knows linf, l2"),
        ({"loss": "hinge"}, "ce, margin"),
        ({"start": "centre"}, "normal, uniform, zero"),
        ({"restarts": 0}, "1 or more"),
        ({"steps": -1}, "number of steps"),
        ({"images": 0}, "positive number of images"),
    ],
)
def test_settings_out_of_range_are_refused_with_the_fix(settings, message):
    with pytest.raises(ValueError, match=message):
        PGD(**settings)
