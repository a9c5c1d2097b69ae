from dataclasses import replace

import pytest
import torch
from conftest import sharp_net

from bmtard_hooks.attacks import spsa as module
from bmtard_hooks.attacks.base import Draws, Target
from bmtard_hooks.attacks.spsa import NES_KWTA, SPSA, SPSA_PAPER

QUICK = SPSA(steps=4, pairs=8)


@pytest.fixture(scope="module")
def attacked():
    net = sharp_net(0, scale=2).eval().requires_grad_(False)
    images = torch.rand(8, 3, 8, 8, generator=torch.Generator().manual_seed(1))
    return net, images, net(images).argmax(1)


def run(attack, attacked, rows=slice(None), target=None):
    net, images, labels = attacked
    draws = Draws(range(len(images))[rows], 0, "spsa")
    return attack(target or Target(net), images[rows], labels[rows], draws)


@pytest.mark.parametrize("estimator", ["spsa", "nes"])
def test_the_estimate_of_a_linear_model_is_its_gradient(estimator):
    # One direction gives (w.v) v, whose mean over directions is w with a variance of about |w|^2 / pairs.
    weight = torch.randn(12, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    target = Target(lambda x: torch.stack([x.flatten(1) @ weight, torch.zeros(len(x), dtype=x.dtype)], 1))
    images = torch.rand(3, 3, 2, 2, dtype=torch.float64)
    attack = SPSA(estimator=estimator, pairs=20_000)
    estimate = attack._estimate(target, images, torch.zeros(3, dtype=torch.long), Draws(range(3), 0), 0)
    error = (estimate.flatten(1) - weight).abs().max() / weight.norm()
    assert error < 6 / 20_000**0.5
    assert target.forwards == 3 * 40_000


@pytest.mark.parametrize("shape", [(5, 3, 2, 2), (1, 1, 1, 3), (32, 3, 8, 8)])
def test_directions_are_fair_signs(shape):
    directions = QUICK._directions(Draws(range(40), 0), shape, torch.zeros(1), "directions", 0, 0)
    assert directions.shape == (40, *shape) and directions.dtype == torch.float32
    assert directions.abs().eq(1).all()
    assert directions.mean().abs() < 5 / directions.numel() ** 0.5
    assert len(directions.flatten(1)[:, :3].unique(dim=0)) > 1  # images differ


@pytest.mark.parametrize("attack", [QUICK, replace(QUICK, estimator="nes", probe=8 / 255)])
def test_batches_and_chunks_do_not_matter(attacked, attack, monkeypatch):
    attack = replace(attack, pairs=40)
    together = run(attack, attacked)
    for rows in (slice(0, 3), slice(3, 4), slice(4, 8)):
        apart = run(attack, attacked, rows)
        torch.testing.assert_close(apart.images, together.images[rows], atol=1e-5, rtol=0)
        assert torch.equal(apart.queries, together.queries[rows])
    sizes = []
    for limit in (64, 200, 100_000):
        monkeypatch.setattr(module, "QUERIES_AT_ONCE", limit)
        target = Target(attacked[0], lambda count: sizes.append(count))
        torch.testing.assert_close(run(attack, attacked, target=target).images, together.images, atol=1e-5, rtol=0)
    assert max(sizes) == 8 * 64


def test_forwards_are_bounded(attacked):
    sizes = []
    run(replace(QUICK, steps=1, pairs=300), attacked, target=Target(attacked[0], sizes.append))
    assert max(sizes) == 512 and sum(sizes) == 8 * 601


def test_queries_count_until_an_image_is_broken(attacked):
    net, _, labels = attacked
    attack, target = replace(QUICK, eps=0.05, learning_rate=0.02, steps=12), Target(net)
    found = run(attack, attacked, target=target)
    broken = net(found.images).argmax(1) != labels
    assert broken.any() and not broken.all()
    assert (found.queries[~broken] == 12 * 17).all() and attack.passes(4) == 12 * 17
    assert (found.queries % 17 == 0).all() and (found.queries > 0).all()
    assert found.queries.dtype == torch.int64 and found.queries.sum() == target.forwards
    for row in broken.nonzero().flatten().tolist():  # one step less, and it would not have been broken
        before = replace(attack, steps=int(found.queries[row]) // 17 - 1)
        if before.steps:
            shorter = run(before, attacked, slice(row, row + 1)).images
            assert net(shorter).argmax(1) == labels[row]


@pytest.mark.parametrize("estimator", ["spsa", "nes"])
def test_points_stay_in_the_ball_and_probes_are_not_clipped(attacked, estimator):
    net, images, _ = attacked
    kept, seen = images.clone(), []

    def spy(x):
        seen.append(x)
        return net(x)

    found = run(replace(QUICK, estimator=estimator, learning_rate=0.1), attacked, target=Target(spy)).images
    assert (found - images).abs().max() <= 8 / 255 + 1e-6 and found.min() >= 0 and found.max() <= 1
    assert torch.cat(seen).min() < 0 and torch.cat(seen).max() > 1
    assert torch.equal(images, kept)


@pytest.mark.parametrize("estimator", ["spsa", "nes"])
def test_it_breaks_what_can_be_broken_and_nothing_else(estimator):
    # A linear model: eps can take eps * |w|_1 off the margin and not more.
    generator = torch.Generator().manual_seed(0)
    weight = torch.randn(192, generator=generator)
    images = 0.3 + 0.4 * torch.rand(8, 3, 8, 8, generator=generator)
    share = torch.tensor([0.1, 0.2, 0.3, 0.4, 1.01, 1.2, 1.5, 3.0])
    within_reach = 0.1 * weight.abs().sum()
    clean = images.flatten(1) @ weight

    for row in range(8):
        offset = share[row] * within_reach - clean[row]
        target = Target(lambda x, offset=offset: torch.stack([x.flatten(1) @ weight + offset, x.new_zeros(len(x))], 1))
        attack = SPSA(estimator=estimator, eps=0.1, steps=30, pairs=32)
        found = attack(target, images[row : row + 1], torch.tensor([0]), Draws([row], 0))
        assert (target.scores(found.images).argmax(1).item() == 1) is (row < 4)
        assert (found.queries.item() == attack.passes(2)) is (row >= 4)


def test_no_gradient_is_needed(attacked):
    net, _, labels = attacked
    attack = replace(QUICK, eps=0.3, steps=20, pairs=32, probe=0.1, learning_rate=0.05)

    def rounded(x):
        return net((x * 15).round() / 15)  # zero gradient everywhere

    target = Target(rounded)
    with torch.no_grad():
        found = run(attack, attacked, target=target)
    assert (rounded(found.images).argmax(1) != labels).any()
    assert target.backwards == 0 and not found.images.requires_grad


def test_adam_is_that_of_torch():
    parameter = torch.nn.Parameter(torch.zeros(2, 1, 2, 2, dtype=torch.float64))
    optimizer = torch.optim.Adam([parameter], lr=0.01)
    moments = torch.zeros_like(parameter.data), torch.zeros_like(parameter.data)
    position = torch.zeros_like(parameter.data)
    for step in range(1, 6):
        gradient = torch.randn(2, 1, 2, 2, dtype=torch.float64)
        parameter.grad = gradient.clone()
        optimizer.step()
        position -= 0.01 * module._adam(moments, torch.arange(2), gradient, step)
    torch.testing.assert_close(position, parameter.data)


def test_presets_and_settings():
    assert (SPSA_PAPER.steps, SPSA_PAPER.pairs, SPSA_PAPER.probe, SPSA_PAPER.images) == (100, 128, 0.01, 1000)
    assert (NES_KWTA.estimator, NES_KWTA.probe, NES_KWTA.learning_rate) == ("nes", 8 / 255, 0.01)
    assert SPSA_PAPER.passes(10) == 100 * 257 and SPSA_PAPER.access == "scores"


@pytest.mark.parametrize(
    "options, message",
    [
        ({"estimator": "fd"}, "estimator='fd' is unknown: choose one of spsa, nes"),
        ({"steps": 0}, "steps=0: pass a whole number, 1 or more"),
        ({"pairs": 1.5}, "pairs=1.5: pass a whole number, 1 or more"),
        ({"probe": 0}, "probe=0 must be a positive number"),
        ({"learning_rate": float("inf")}, "learning_rate=inf must be a positive number"),
    ],
)
def test_bad_settings_are_refused(options, message):
    with pytest.raises(ValueError, match=message):
        SPSA(**options)
