import math

import pytest
import torch
from conftest import tiny_net

from bmtard_hooks.attacks import square
from bmtard_hooks.attacks.base import Draws, Target, distance
from bmtard_hooks.attacks.square import SQUARE_100, SQUARE_100_LITERAL, SQUARE_5000, Square
from bmtard_hooks.attacks.square_moves import L2Moves, LinfMoves, bump

NORMS = [("linf", 0.03), ("l2", 0.4)]


def attacked(num_classes=10, count=12):
    net = tiny_net(0, num_classes=num_classes).eval().requires_grad_(False)
    images = torch.rand(count, 3, 8, 8, generator=torch.Generator().manual_seed(1))
    return net, images, net(images).argmax(1)


def lead(net, image, label):
    logits = net(image[None])[0]
    return logits[label] - torch.cat([logits[:label], logits[label + 1 :]]).max()


class Rows:
    """Hands out an image's numbers one by one, in the order the plain search below takes them."""

    def __init__(self, numbers):
        self.numbers = iter(numbers.flatten().tolist())

    def corner(self, size, side):
        return int(next(self.numbers) * (size - side))

    def signs(self, *shape):
        drawn = torch.tensor([next(self.numbers) for _ in range(math.prod(shape))])
        return torch.sign(2 * drawn - 1).view(shape)


def plain_bump(side):
    halves = []
    for height in (side // 2, side - side // 2):
        half = torch.zeros(height, side)
        for ring in range(max(height // 2, side // 2) + 1):
            rows = slice(max(height // 2 - ring, 0), height // 2 + ring + 1)
            half[rows, max(side // 2 - ring, 0) : side // 2 + ring + 1] += 1 / (ring + 1) ** 2
        halves.append(half / half.norm())
    return torch.cat([halves[0], -halves[1]]) / math.sqrt(2)


def plain_linf(image, best, side, rows, eps):
    top, left = rows.corner(image.shape[1], side), rows.corner(image.shape[2], side)
    new = best.clone()
    new[:, top : top + side, left : left + side] += 2 * eps * rows.signs(3, 1, 1)
    return torch.minimum(torch.maximum(new, image - eps), image + eps).clamp(0, 1)


def plain_l2(image, best, side, rows, eps):
    delta = best - image
    into, out_of = (
        tuple(slice(corner, corner + side) for corner in [rows.corner(size, side) for size in image.shape[1:]])
        for _ in range(2)
    )
    both = torch.zeros(1, *image.shape[1:])
    both[:, into[0], into[1]] = both[:, out_of[0], out_of[1]] = 1
    old = delta[:, into[0], into[1]].clone()
    energy = (delta * both).square().sum((1, 2), keepdim=True)
    free = max(eps**2 - delta.norm().item() ** 2, 0)
    shape = plain_bump(side)
    shape = shape.T if next(rows.numbers) > 0.5 else shape
    new = shape * rows.signs(3, 1, 1) + old / (1e-12 + old.norm(dim=(1, 2), keepdim=True))
    new = new / new.norm(dim=(1, 2), keepdim=True) * (free / 3 + energy).sqrt()
    delta[:, out_of[0], out_of[1]] = 0
    delta[:, into[0], into[1]] = new
    return (image + eps * delta / delta.norm()).clamp(0, 1)


def plain_start(image, numbers, norm, eps):
    if norm == "linf":
        return (image + eps * Rows(numbers).signs(3, 1, 8)).clamp(0, 1)
    delta, tiles = torch.zeros_like(image), iter(numbers)  # 8x8 images have tiles of one pixel
    for row in range(8):
        for column in range(8):
            delta[:, row, column] = -Rows(next(tiles)[1:]).signs(3)
    return (image + eps * delta / delta.norm()).clamp(0, 1)


def plain_search(net, image, label, attack, draws):
    """The search for one image, written down step by step; returns the answer and the queries."""
    height, width = image.shape[1:]
    (start,) = draws(lambda generator: torch.rand(numbers_of(attack)[0], generator=generator), "start")
    best = plain_start(image, start, attack.norm, attack.eps)
    smallest, path = lead(net, best, label), [lead(net, best, label)]
    for attempt in range(attack.queries - 1):
        if smallest <= 0:
            break
        if attempt % square.BLOCK == 0:
            table = draw_table(draws, attack, attempt)
        side = round(math.sqrt(attack.share(attempt) * height * width))
        side = max(side, 1) if attack.norm == "linf" else max(side, 3) + (max(side, 3) + 1) % 2
        plain = plain_linf if attack.norm == "linf" else plain_l2
        new = plain(image, best, min(side, height), Rows(table[attempt % square.BLOCK]), attack.eps)
        path.append(lead(net, new, label))
        if path[-1] < smallest:
            best, smallest = new, path[-1]
    return best, len(path)


def draw_table(draws, attack, first):
    shape = (min(square.BLOCK, attack.queries - 1 - first), numbers_of(attack)[1])
    return draws(lambda generator: torch.rand(shape, generator=generator), "search", first)[0]


def numbers_of(attack):
    moves = (LinfMoves if attack.norm == "linf" else L2Moves)(attack.eps, 3, 8, 8)
    return moves.start_numbers, moves.try_numbers


@pytest.mark.parametrize("norm, eps", NORMS)
@pytest.mark.parametrize("rescale_schedule", [True, False])
def test_search_matches_a_plain_one(monkeypatch, norm, eps, rescale_schedule):
    monkeypatch.setattr(square, "BLOCK", 25)
    net, images, labels = attacked()
    attack = Square(norm=norm, eps=eps, queries=60, rescale_schedule=rescale_schedule)
    found = attack(Target(net), images, labels, Draws(range(12), 0, "square"))
    spent = []
    for index in range(12):
        best, queries = plain_search(net, images[index], labels[index], attack, Draws([index], 0, "square"))
        torch.testing.assert_close(found.images[index], best, atol=2e-5, rtol=0)
        spent.append(queries)
    assert found.queries.tolist() == spent
    assert 60 in spent and len(set(spent)) > 2


@pytest.mark.parametrize("norm, eps", NORMS)
def test_batch_and_order_change_nothing(monkeypatch, norm, eps):
    monkeypatch.setattr(square, "BLOCK", 30)
    net, images, labels = attacked(count=16)

    def run(chosen):
        found = Square(norm=norm, eps=eps, queries=80)(
            Target(lambda pixels: torch.cat([net(image[None]) for image in pixels])),
            images[chosen],
            labels[chosen],
            Draws(chosen.tolist(), 0),
        )
        return found.images, found.queries

    whole = run(torch.arange(16))
    parts = [torch.cat(part) for part in zip(*(run(chosen) for chosen in torch.arange(16).split(4)), strict=True)]
    order = torch.randperm(16, generator=torch.Generator().manual_seed(0))
    for result, part, shuffled in zip(whole, parts, run(order), strict=True):
        assert torch.equal(result, part)
        assert torch.equal(result[order], shuffled)


@pytest.mark.parametrize("norm, eps", NORMS)
@pytest.mark.parametrize("queries", [1, 2, 40])
def test_every_forward_is_counted(norm, eps, queries):
    net, images, labels = attacked()
    calls = []

    def counting(pixels):
        calls.append(pixels)
        return net(pixels)

    target = Target(counting)
    found = Square(norm=norm, eps=eps, queries=queries)(target, images, labels, Draws(range(12), 0))
    assert len(calls) == queries == found.queries.max() == Square(queries=queries).passes(10)
    assert sum(map(len, calls)) == target.forwards == found.queries.sum()
    assert target.backwards == 0
    assert found.queries.dtype == torch.int64
    assert (found.queries[net(found.images).argmax(1) == labels] == queries).all()


@pytest.mark.parametrize("norm, eps", [*NORMS, ("linf", 0.005), ("l2", 0.02)])
def test_answers_are_inside_and_images_stay_as_they_are(norm, eps):
    net, images, labels = attacked()
    images[:4] = images[:4].round()  # on the box's corners
    before = images.clone()
    adversarial = Square(norm=norm, eps=eps, queries=30)(Target(net), images, labels, Draws(range(12), 0)).images
    assert torch.equal(images, before)
    assert adversarial.min() >= 0 and adversarial.max() <= 1
    assert distance(adversarial, images, norm).max() <= eps + 1e-6


@pytest.mark.parametrize("norm, eps", [("linf", 0.004), ("l2", 0.04)])
def test_leads_only_shrink(norm, eps):
    net, images, labels = attacked()

    def leads(queries):
        found = Square(norm=norm, eps=eps, queries=queries)(Target(net), images, labels, Draws(range(12), 0))
        return torch.stack([lead(net, *pair) for pair in zip(found.images, labels, strict=True)])

    path = torch.stack([leads(queries) for queries in (1, 2, 5, 20, 60)])
    assert (path.diff(dim=0) <= 1e-6).all()
    assert (path[-1] < path[0] - 1e-4).all()


def test_a_tie_ends_the_search():
    net = torch.nn.Sequential(torch.nn.Flatten(), torch.nn.Linear(48, 3)).requires_grad_(False)
    torch.nn.init.zeros_(net[1].weight)
    torch.nn.init.zeros_(net[1].bias)
    found = Square(queries=5)(Target(net), torch.rand(2, 3, 4, 4), torch.tensor([0, 0]), Draws(range(2), 0))
    assert found.queries.tolist() == [1, 1]


@pytest.mark.parametrize(
    "attack, shares",
    [
        (SQUARE_5000, {0: 1, 10: 1, 11: 2, 50: 2, 51: 4, 201: 8, 501: 16, 1001: 32, 2001: 64, 4001: 128, 4998: 128}),
        (SQUARE_100_LITERAL, {0: 1, 10: 1, 11: 2, 50: 2, 51: 4, 98: 4}),
        (SQUARE_100, {0: 1, 1: 4, 2: 4, 3: 8, 6: 16, 11: 32, 20: 32, 21: 64, 41: 128, 61: 256, 81: 512, 98: 512}),
        (SQUARE_5000.replace(rescale_schedule=True), {5: 1, 6: 2, 25: 2, 26: 4, 101: 8, 2001: 128, 4001: 512}),
    ],
)
def test_schedule(attack, shares):
    assert {attempt: round(0.8 / attack.share(attempt), 9) for attempt in shares} == shares


def test_sides_on_cifar():
    linf, l2 = LinfMoves(8 / 255, 3, 32, 32), L2Moves(0.5, 3, 32, 32)
    assert [linf.side(SQUARE_100.share(attempt)) for attempt in (0, 20, 21, 98)] == [29, 5, 4, 1]
    assert [linf.side(SQUARE_100_LITERAL.share(attempt)) for attempt in (0, 11, 98)] == [29, 20, 14]
    assert [l2.side(share) for share in (1.0, 0.8, 0.4, 0.0001)] == [32, 29, 21, 3]
    assert LinfMoves(8 / 255, 3, 6, 24).side(0.8) == 6


@pytest.mark.parametrize("side, last", [(3, 4), (8, 0)])
def test_corners_are_the_references(side, last):
    moves = LinfMoves(0.1, 1, 8, 8)
    numbers = torch.linspace(0, 0.99, 100)
    corners = moves._window(side, numbers, torch.zeros(100))[:, 0, 0] // 8
    assert corners.unique().tolist() == list(range(last + 1))


@pytest.mark.parametrize("side", [1, 2, 3, 5, 8, 13])
def test_bumps(side):
    shape = bump(side)
    torch.testing.assert_close(shape.norm(), torch.tensor(1.0))
    if side > 1:
        torch.testing.assert_close(shape, plain_bump(side))


@pytest.mark.parametrize("norm, eps", NORMS)
@pytest.mark.parametrize("shape", [(3, 6, 24), (1, 9, 7), (4, 3, 3), (3, 14, 14)])
def test_any_shape_of_images(norm, eps, shape):
    images = torch.rand(2, *shape, generator=torch.Generator().manual_seed(0))
    weight = torch.randn(images[0].numel(), 3, generator=torch.Generator().manual_seed(1))

    def forward(pixels):
        return pixels.flatten(1) @ weight

    labels = forward(images).argmax(1)
    found = Square(norm=norm, eps=eps, queries=30, rescale_schedule=True)(
        Target(forward), images, labels, Draws(range(2), 0)
    )
    assert distance(found.images, images, norm).max() <= eps + 1e-6
    assert all(
        lead(forward, *after) < lead(forward, *before)
        for before, after in zip(zip(images, labels, strict=True), zip(found.images, labels, strict=True), strict=True)
    )


@pytest.mark.parametrize("num_classes", [2, 3, 4, 5, 10, 100])
@pytest.mark.parametrize("norm, eps", [("linf", 0.2), ("l2", 3.0)])
def test_any_number_of_classes(num_classes, norm, eps):
    net, images, labels = attacked(num_classes, count=6)
    found = Square(norm=norm, eps=eps, queries=20)(Target(net), images, labels, Draws(range(6), 0))
    assert (net(found.images).argmax(1) != labels).any()


@pytest.mark.parametrize("norm, eps", [("linf", 0.02), ("l2", 0.25)])
def test_as_strong_as_torchattacks(norm, eps):
    from torchattacks import Square as Reference

    net, images, labels = attacked(count=200)
    with torch.random.fork_rng():
        their_norm = {"linf": "Linf", "l2": "L2"}[norm]
        reference = Reference(net, norm=their_norm, eps=eps, n_queries=100, resc_schedule=False)
        theirs = (net(reference(images, labels)).argmax(1) == labels).float().mean()
    found = Square(norm=norm, eps=eps, queries=101)(Target(net), images, labels, Draws(range(200), 0))
    ours = (net(found.images).argmax(1) == labels).float().mean()
    assert 0.1 < ours < 0.9
    assert abs(ours - theirs) <= 0.05  # 2 standard errors of the difference of the same images' outcomes


@pytest.mark.parametrize(
    "options, message",
    [
        ({"queries": 0}, "queries=0: pass a whole number, 1 or more"),
        ({"p_init": 0}, r"p_init=0 is outside \(0, 1\]"),
        ({"p_init": 80}, r"p_init=80 is outside \(0, 1\]"),
        ({"norm": "l1"}, "norm='l1': Square knows linf, l2"),
    ],
)
def test_bad_settings_are_refused(options, message):
    with pytest.raises(ValueError, match=message):
        Square(**options)
