import math

import numpy as np
import pytest
import torch
from conftest import sharp_net

from bmtard_hooks.attacks.base import Draws, Target
from bmtard_hooks.attacks.rays import RAYS_100, RayS, nearest_on_rays


@pytest.fixture(scope="module")
def attacked():
    # In float32 a net's last bits depend on the batch size, and RayS lives on the boundary, where they matter.
    double = sharp_net(0, scale=2).eval().double().requires_grad_(False)
    images = torch.rand(8, 3, 8, 8, generator=torch.Generator().manual_seed(1))

    def net(pixels):
        return double(pixels.double())

    return net, images, net(images).argmax(1)


def run(attack, attacked, rows=slice(None), target=None):
    net, images, labels = attacked
    draws = Draws(range(len(images[rows])), 0)
    return attack(target or Target(net), images[rows], labels[rows], draws)


def one_image(oracle, image, budget, stop, tolerance=1e-3):
    """RayS as its description reads, for one image, in plain loops."""
    flat = image.flatten()
    size = len(flat)
    signs, radius, level, block, spent = [1.0] * size, np.float32(math.inf), 0, 0, 0
    answer, nearest = image, math.inf

    def ask(ray, distance):
        point = (flat + torch.tensor(distance) * torch.tensor(ray)).clamp(0, 1)
        return oracle(point.view_as(image)), point

    def keep(point):
        nonlocal answer, nearest
        answer, nearest = point.view_as(image), (point - flat).abs().max().item()

    def over():
        return spent == budget or (stop is not None and nearest <= stop)

    while not over():
        length = math.ceil(size / 2**level)
        ray = list(signs)
        for position in range(block * length, min(size, (block + 1) * length)):
            ray[position] = -ray[position]
        low, high = np.float32(0), min(radius, np.float32(1))
        fooled, point = ask(ray, high)
        spent += 1
        if fooled and high < radius:
            keep(point)
        while fooled and not over():
            middle = (low + high) / 2
            hit, point = ask(ray, middle)
            spent += 1
            if hit:
                high = middle
                keep(point)
            else:
                low = middle
            if (high - low) * math.sqrt(size) <= tolerance:
                if high < radius:
                    radius, signs = high, ray
                break
        block += 1
        if block * length >= size:
            level, block = level + 1, 0
    return answer, nearest, spent


@pytest.mark.parametrize("budget", [1, 9, 60, 300])
@pytest.mark.parametrize("stop", [None, 0.1])
def test_it_is_the_description_image_by_image(attacked, budget, stop):
    net, images, labels = attacked
    found = nearest_on_rays(Target(net), images, labels, budget, stop=stop)
    for row, image in enumerate(images):

        def oracle(point, row=row):
            return bool(net(point[None]).argmax(1) != labels[row])

        answer, nearest, spent = one_image(oracle, image, budget, stop)
        torch.testing.assert_close(found.images[row], answer, atol=1e-6, rtol=0)
        assert found.distances[row].item() == pytest.approx(nearest, abs=1e-6)
        assert found.queries[row].item() == spent


@pytest.mark.parametrize("budget", [1, 16, 17, 40])
def test_the_budget_is_strict_for_every_image(attacked, budget):
    attack, target = RayS(queries=budget, stop_at_eps=False, eps=0.02), Target(attacked[0])
    found = run(attack, attacked, target=target)
    assert found.queries.tolist() == [budget] * 8 and target.forwards == 8 * budget
    for row in range(8):
        target = Target(attacked[0])
        run(attack, attacked, slice(row, row + 1), target)
        assert target.forwards == budget


def test_it_stops_at_eps(attacked):
    eager, patient = RayS(eps=0.05), RayS(eps=0.05, stop_at_eps=False)
    target = Target(attacked[0])
    found = run(eager, attacked, target=target)
    broken = (found.images - attacked[1]).flatten(1).abs().amax(1) > 0
    assert broken.any() and not broken.all()
    assert (found.queries[broken] < 100).all() and (found.queries[~broken] == 100).all()
    assert target.forwards == found.queries.sum()
    assert found.queries.dtype == torch.int64 and found.queries.shape == (8,)
    later = run(patient, attacked)
    assert torch.equal(broken, (later.images - attacked[1]).flatten(1).abs().amax(1) > 0)


@pytest.mark.parametrize("eps", [0.01, 0.15, 1.0])
def test_the_answer_is_misclassified_inside_the_ball_or_clean(attacked, eps):
    net, images, labels = attacked
    kept = images.clone()
    found = run(RayS(eps=eps), attacked).images
    moved = (found - images).flatten(1).abs().amax(1)
    assert moved.max() <= eps and found.min() >= 0 and found.max() <= 1
    assert torch.equal(net(found).argmax(1) != labels, moved > 0)
    assert torch.equal(images, kept)


def test_batches_do_not_matter(attacked):
    together = run(RAYS_100, attacked)
    for rows in (slice(0, 3), slice(3, 4), slice(4, 8)):
        apart = run(RAYS_100, attacked, rows)
        torch.testing.assert_close(apart.images, together.images[rows], atol=0, rtol=0)
        assert torch.equal(apart.queries, together.queries[rows])


def test_only_labels_are_used(attacked):
    net = attacked[0]
    labels_only = Target(lambda x: torch.eye(4)[net(x).argmax(1)])
    hard = run(RayS(eps=0.15), attacked, target=labels_only)
    assert torch.equal(hard.images, run(RayS(eps=0.15), attacked).images)


def test_a_model_that_cannot_be_fooled_keeps_its_images(attacked):
    _, images, labels = attacked
    stubborn = Target(lambda x: torch.eye(4)[labels[:1]].expand(len(x), 4))
    rays = nearest_on_rays(stubborn, images[:1], labels[:1], 50)
    assert torch.equal(rays.images, images[:1]) and rays.distances.isinf().all()


def test_tiny_images_outlast_their_blocks():
    images = torch.full((1, 1, 1, 3), 0.5)
    target = Target(lambda x: torch.stack([x.flatten(1).sum(1), x.new_full((len(x),), 1.4)], 1))
    rays = nearest_on_rays(target, images, torch.tensor([0]), 400)  # levels run past 2**64
    assert rays.queries.item() == 400
    assert 0.1 / 3 < rays.distances.item() < 0.1 / 3 + 1e-3


def test_settings():
    assert RAYS_100.settings()["queries"] == 100 and RAYS_100.passes(10) == 100 and RAYS_100.access == "labels"
    with pytest.raises(ValueError, match="queries=0: pass a whole number, 1 or more"):
        RayS(queries=0)
    with pytest.raises(ValueError, match="tolerance=0 must be a positive number"):
        RayS(tolerance=0)
    with pytest.raises(ValueError, match="norm='l2': RayS knows linf"):
        RayS(norm="l2")
