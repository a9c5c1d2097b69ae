import pytest
import torch
from torchattacks.attacks.fab import projection_l2, projection_linf

from bmtard_hooks.attacks.hyperplane import step_onto_plane

AUTHORS = {"linf": projection_linf, "l2": projection_l2}


def by_bisection(points, normal, height, norm):
    """The travel by bisection in float64: slow, and no sorting or Newton to share an error with."""
    points, normal, height = points.double(), normal.double(), height.double()
    downhill = -normal * torch.where(height < 0, -1.0, 1.0)[:, None]
    room = torch.where(downhill > 0, 1 - points, points)
    speed = (normal != 0).double() if norm == "linf" else normal.abs() * (normal.abs() > 1e-8)

    def travelled(time):
        return torch.minimum(time[:, None] * speed, room)

    low, high = torch.zeros_like(height), torch.full_like(height, 1e9)
    for _ in range(150):
        middle = (low + high) / 2
        short = (normal.abs() * travelled(middle)).sum(1) < height.abs()
        low, high = torch.where(short, middle, low), torch.where(short, high, middle)
    return travelled(high) * downhill.sign()


def random_case(reach, rows=12, pixels=200, seed=0):
    generator = torch.Generator().manual_seed(seed)
    points = torch.rand(rows, pixels, generator=generator)
    points[:, ::7] = points[:, ::7].round()  # pixels that lie on the wall already
    normal = torch.randn(rows, pixels, generator=generator) ** 3
    normal[:, ::5] = 0
    sign = torch.randn(rows, generator=generator).sign()
    downhill = -normal * sign[:, None]
    most = (normal.abs() * torch.where(downhill > 0, 1 - points, points)).sum(1)
    return points, normal, sign * most * reach


@pytest.mark.parametrize("norm", ["linf", "l2"])
@pytest.mark.parametrize("reach", [1e-4, 0.01, 0.3, 0.9, 0.999, 1.5])
def test_step_equals_bisection_and_the_authors_projection(norm, reach):
    points, normal, height = random_case(reach)
    step = step_onto_plane(points, normal, height, norm)
    torch.testing.assert_close(step, by_bisection(points, normal, height, norm).float(), atol=1e-5, rtol=1e-4)
    offset = (normal * points).sum(1) - height
    if reach != 0.999:  # so close to the corner their sums of all pixels in float32 answer with the corner
        torch.testing.assert_close(step, AUTHORS[norm](points, normal, offset), atol=1e-4, rtol=1e-3)
    assert (points + step).min() >= -1e-6 and (points + step).max() <= 1 + 1e-6
    left = height + (normal * step).sum(1)
    if reach < 1:
        assert (left.abs() <= 1e-4 * (1 + height.abs())).all()
    else:
        corner = (points + step)[normal.abs() > 1e-8]
        torch.testing.assert_close(corner, corner.round(), atol=1e-6, rtol=0)


@pytest.mark.parametrize("norm", ["linf", "l2"])
def test_step_is_the_shortest(norm):
    points, normal, height = random_case(0.2, rows=1, pixels=6)
    step = step_onto_plane(points, normal, height, norm)
    size = step.abs().max() if norm == "linf" else step.norm()
    tries = (torch.rand(20000, 6, generator=torch.Generator().manual_seed(1)) - 0.5) * 2
    tries = tries / (tries.abs().amax(1) if norm == "linf" else tries.norm(dim=1))[:, None] * size * 0.98
    reached = (points + tries).clamp(0, 1)
    assert (height.sign() * (height + ((reached - points) * normal).sum(1)) > 0).all()


@pytest.mark.parametrize("norm", ["linf", "l2"])
@pytest.mark.parametrize(
    "points, normal, height, expected",
    [
        ([0.5, 0.5], [1.0, 0.0], 0.0, [0.0, 0.0]),  # on the plane
        ([0.5, 0.5], [0.0, 0.0], 0.0, [0.0, 0.0]),
        ([0.5, 0.5], [0.0, 0.0], 3.0, [0.0, 0.0]),  # no direction at all
        ([0.5, 0.25], [1.0, 0.0], 0.25, [-0.25, 0.0]),
        ([0.5, 0.25], [-1.0, 0.0], 0.25, [0.25, 0.0]),
        ([0.5, 0.25], [1.0, 0.0], -0.25, [0.25, 0.0]),
        ([0.5, 0.25], [1.0, -1.0], 9.0, [-0.5, 0.75]),  # out of reach
        ([0.0, 0.25], [1.0, 1.0], 0.125, [0.0, -0.125]),  # the first pixel is on the wall
        ([0.0, 1.0], [1.0, -1.0], 0.5, [0.0, 0.0]),  # both are
        ([0.5, 0.25], [1e-30, 0.0], 1.0, {"linf": [-0.5, 0.0], "l2": [0.0, 0.0]}),
    ],
)
def test_corner_cases(norm, points, normal, height, expected):
    step = step_onto_plane(torch.tensor([points]), torch.tensor([normal]), torch.tensor([height]), norm)
    expected = expected[norm] if isinstance(expected, dict) else expected
    torch.testing.assert_close(step, torch.tensor([expected]))


@pytest.mark.parametrize("norm", ["linf", "l2"])
def test_rows_do_not_depend_on_each_other(norm):
    cases = [random_case(reach, rows=2, seed=seed) for seed, reach in enumerate((1e-3, 0.5, 2.0))]
    together = step_onto_plane(*(torch.cat(parts) for parts in zip(*cases, strict=True)), norm)
    assert torch.equal(together, torch.cat([step_onto_plane(*case, norm) for case in cases]))


def test_arguments_are_not_changed():
    case = random_case(0.3)
    copies = [part.clone() for part in case]
    step_onto_plane(*case, "linf")
    step_onto_plane(*case, "l2")
    assert all(torch.equal(part, copy) for part, copy in zip(case, copies, strict=True))


def test_nan_does_not_loop_forever():
    points, normal, height = random_case(0.3)
    normal[:, 1] = float("nan")
    assert step_onto_plane(points, normal, height, "linf").shape == points.shape
    assert step_onto_plane(points, normal, height * float("nan"), "l2").shape == points.shape


def test_unknown_norm_is_refused():
    with pytest.raises(ValueError, match="norm='l1' is unknown: choose one of linf, l2"):
        step_onto_plane(*random_case(0.3), "l1")
