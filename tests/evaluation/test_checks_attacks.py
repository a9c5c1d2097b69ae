"""The checks that run further attacks, on fabricated outcomes, and the attacks that they bring along."""

import numpy as np
import pytest
from conftest import tiny_net
from fabricated import BY_ID, COUNT, EPS, FakeRunner, look, outcome_of, report_of, runner_of

from bmtard_hooks.attacks.gradient import PGD_SAT
from bmtard_hooks.evaluation.checks.attacks import Noise, TimedPGD, large_radii
from bmtard_hooks.evaluation.checks.context import Context


def test_a4_wants_nothing_left_at_large_radii():
    assert look("A4", runner=FakeRunner(lambda attack, name: 0.0)).status == "pass"
    assert look("A4", runner=FakeRunner(lambda attack, name: 0.1 if attack.eps < 0.3 else 0.0)).status == "pass"
    for robust in (lambda attack, name: 0.11 if attack.eps < 0.3 else 0.0, lambda attack, name: 0.01):
        result = look("A4", runner=FakeRunner(robust))
        assert (result.status, result.severity) == ("fail", "error")


def test_large_radii_exceed_the_evaluation_by_far():
    assert large_radii(8 / 255, "linf", 3072) == (64 / 255, 128 / 255)
    assert large_radii(0.2, "linf", 3072) == (128 / 255,)
    assert large_radii(0.03, "l2", 400) == pytest.approx((20 * 64 / 255, 20 * 128 / 255))


def test_a5_wants_less_left_at_larger_radii():
    runner = FakeRunner(lambda attack, name: float(np.interp(attack.eps, [0, 2 * EPS], [1.0, 0.0])))
    context = Context(runner, report_of({}), images=COUNT, eps=EPS, norm="linf")
    assert BY_ID["A5"](context).status == "pass"
    curve = context.sweeps["accuracy against eps"]
    assert [x for x, _, _ in curve] == pytest.approx([0, 2, 4, 8, 16])
    assert [share for _, share, _ in curve] == pytest.approx([1, 0.875, 0.75, 0.5, 0])
    rising = FakeRunner(lambda attack, name: 0.6 if attack.eps > EPS else 0.5)
    result = look("A5", runner=rising)
    assert (result.status, result.severity) == ("fail", "warning")


@pytest.mark.parametrize("weak", [None, "pgd-100", "cw-100", "restarts=4"])
def test_a6_wants_longer_searches_to_find_no_more(weak):
    runner = FakeRunner(lambda attack, name: 0.46 if weak is not None and weak in name else 0.495)
    result = look("A6", report_of({"pgd_sat": 0.5}), runner)
    assert result.status == ("pass" if weak is None else "fail"), result
    assert result.severity == "warning"


def test_a7_wants_cross_entropy_near_the_margin():
    assert look("A7", report_of({"pgd_sat": 0.55, "cw_inf": 0.46})).status == "pass"
    result = look("A7", report_of({"pgd_sat": 0.9, "cw_inf": 0.1}))
    assert (result.status, result.severity) == ("fail", "warning")
    assert "90.0 %" in result.evidence and "of 1000 images" in result.evidence


def test_a8_wants_the_best_iterate_as_the_answer():
    assert look("A8", runner=FakeRunner(lambda attack, name: (0.5, 0.496))).status == "pass"
    result = look("A8", runner=FakeRunner(lambda attack, name: (0.5, 0.45)))
    assert (result.status, result.severity) == ("fail", "warning")


def test_a10_wants_noise_weaker_than_gradients():
    assert (
        look("A10", runner=FakeRunner(lambda attack, name: 0.9 if isinstance(attack, Noise) else 0.5)).status == "pass"
    )
    result = look("A10", runner=FakeRunner(lambda attack, name: 0.8 if isinstance(attack, Noise) else 0.9))
    assert (result.status, result.severity) == ("fail", "error")


def test_columns_of_the_evaluation_are_not_run_again():
    runner = FakeRunner()
    known = {name: outcome_of(0.5, settings=PGD_SAT.settings()) for name in ("pgd_sat", "cw_inf")}
    for name in ("A5", "A6", "A7", "A10"):
        look(name, report_of(known), runner)
    assert not any("evaluation" in name for name in runner.names)
    look("A5", report_of(known, mode="worst_case"), runner)
    assert "check:pgd_sat of the evaluation's radius" in runner.names


def test_timed_pgd_is_pgd_and_tells_when():
    runner = runner_of(tiny_net(0))
    indices = np.arange(24)
    plain = runner.run(PGD_SAT, "same", indices)
    timed = runner.run(TimedPGD(), "same", indices)
    np.testing.assert_array_equal(timed.broken, plain.broken)
    np.testing.assert_array_equal(timed.broken_on_the_way, plain.broken_on_the_way)
    assert 0 < timed.broken_on_the_way.sum() < 24
    for index in np.flatnonzero(timed.broken_on_the_way):
        needed = int(timed.queries[index]) - 1
        if needed < 20 - 1:
            assert needed == 0 or not _breaks_within(runner, index, needed - 1)
            assert _breaks_within(runner, index, needed)
    assert (timed.queries[~timed.broken_on_the_way] == 20).all()


def _breaks_within(runner, index, steps):
    runner._outcomes.pop("same")
    return bool(runner.run(PGD_SAT.replace(steps=steps), "same", np.array([index])).broken_on_the_way[index])


@pytest.mark.parametrize("norm", ["linf", "l2"])
def test_noise_reaches_the_surface_and_breaks_a_brittle_model(norm):
    runner = runner_of(tiny_net(0))
    few = runner.run(Noise(eps=0.5, norm=norm, tries=1), "few", np.arange(24))
    many = runner.run(Noise(eps=0.5 if norm == "linf" else 8.0, norm=norm, tries=20), "many", np.arange(24))
    assert few.forwards == 24
    assert many.broken.sum() > few.broken.sum()
