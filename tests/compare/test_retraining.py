"""The error of a difference over images and over training again is what repeated experiments show."""

import math

import numpy as np
import pytest

from bmtard_hooks.compare.retraining import ENOUGH, Retraining, Uncertainty, retraining, uncertainty

IMAGES, SEEDS, ROWS = 400, 2, 4


def experiment(rng, of_runs, of_methods=0.2):
    """Rows without any true difference: numbers ``(rows, S, n)`` with parts of the image, the pair, the run, and both."""
    image = rng.normal(size=IMAGES)
    method = of_methods * rng.normal(size=(ROWS, 1, IMAGES))
    run = of_runs * rng.normal(size=(ROWS, SEEDS, 1)) / math.sqrt(IMAGES)
    return image + method + run + 0.5 * rng.normal(size=(ROWS, SEEDS, IMAGES))


def compared(values):
    """Difference of the first two rows, and its uncertainty."""
    differences = (values[0] - values[1]).mean(axis=0)
    over_images = differences.std() / math.sqrt(IMAGES)
    return differences.mean(), uncertainty(over_images, retraining(values), SEEDS)


@pytest.mark.parametrize("of_runs", [0.0, 0.5, 2.0])
def test_stated_error_is_the_spread_of_repetitions_and_false_alarms_are_as_rare_as_said(of_runs):
    rng = np.random.default_rng(0)
    found = [compared(experiment(rng, of_runs)) for _ in range(1500)]
    spread = np.std([value for value, _ in found])
    stated = math.sqrt(np.mean([doubt.error**2 for _, doubt in found]))
    assert stated == pytest.approx(spread, rel=0.12)
    alarms = np.mean([doubt.p(value) < 0.05 for value, doubt in found])
    assert alarms < 0.075  # 5 % and three standard errors of 1,500 repetitions


def test_parts_of_the_variance_between_seeds():
    values = np.array([[1.0, 0, 0, 0], [1, 1, 1, 0]])
    again = retraining([values, values[:1]])
    assert again.freedom == 1 and again.variance == pytest.approx(2 * 0.25**2)
    flips = np.var(values - values.mean(axis=1, keepdims=True), axis=0, ddof=1).mean()
    assert again.of_images == pytest.approx(flips / 4)
    assert retraining([values[:1], values[1:]]) is None and retraining([]) is None


def test_single_images_are_taken_out_only_where_the_spread_is_known_well_enough():
    again = Retraining(variance=0.03, of_images=0.02, freedom=ENOUGH)
    assert uncertainty(0.1, again, 2).error == pytest.approx(math.sqrt(0.01 + 0.01))
    assert uncertainty(0.1, again, 2, trained=1).error == pytest.approx(math.sqrt(0.01 + 0.005))
    hardly = Retraining(variance=0.03, of_images=0.02, freedom=ENOUGH - 1)
    assert uncertainty(0.1, hardly, 2).error == pytest.approx(math.sqrt(0.01 + 0.03))
    less = Retraining(variance=0.01, of_images=0.02, freedom=ENOUGH)
    assert uncertainty(0.1, less, 2).error == pytest.approx(0.1)
    assert uncertainty(0.1, None, 2) == uncertainty(0.1, again, 1, trained=0) == Uncertainty(0.1)


def test_degrees_of_freedom_are_those_of_the_spread_between_seeds_where_it_dominates():
    again = Retraining(variance=1.0, of_images=0.0, freedom=4)
    assert uncertainty(1e-6, again, 2).freedom == pytest.approx(4)
    assert uncertainty(10.0, again, 2).freedom > 1e4
    assert Uncertainty(0.0).p(0.0) == 1 and Uncertainty(0.0).p(0.1) == 0
