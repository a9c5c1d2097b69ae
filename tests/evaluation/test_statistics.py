import math

import numpy as np
import pytest
from scipy import stats

from bmtard_hooks.evaluation.statistics import (
    accuracy_error,
    holm,
    mcnemar,
    paired_difference,
    per_class_accuracy,
    weighted_error,
    weighted_outcomes,
    wilson_interval,
)


def bits(*counts):
    """Clean and robust bits with so many images (right, right), (right, wrong), (wrong, wrong)."""
    clean = np.repeat([True, True, False], counts)
    return clean, np.repeat([True, False, False], counts)


def paired_bits(both, only_first, only_second, neither):
    counts = (both, only_first, only_second, neither)
    return np.repeat([True, True, False, False], counts), np.repeat([True, False, True, False], counts)


def test_error_of_an_accuracy():
    assert accuracy_error(0.5, 10_000) == pytest.approx(0.005)
    assert accuracy_error(1.0, 7) == 0


@pytest.mark.parametrize(("correct", "images"), [(0, 50), (3, 200), (50, 100), (200, 200)])
def test_wilson_interval_follows_its_formula(correct, images):
    z, share = stats.norm.ppf(0.975), correct / images
    middle = (share + z**2 / (2 * images)) / (1 + z**2 / images)
    half = z * math.sqrt(share * (1 - share) / images + z**2 / (4 * images**2)) / (1 + z**2 / images)
    assert wilson_interval(correct, images) == pytest.approx((middle - half, middle + half), abs=1e-12)


def test_wilson_interval_widens_with_confidence():
    narrow, wide = wilson_interval(5, 100, 0.9), wilson_interval(5, 100, 0.99)
    assert wide[0] < narrow[0] < 0.05 < narrow[1] < wide[1]


def test_weighted_outcomes_average_to_w_robust():
    clean, robust = bits(2, 1, 1)
    np.testing.assert_allclose(weighted_outcomes(clean, robust, 0.3), [1, 1, 0.3, 0])
    assert weighted_outcomes(clean, robust).mean() == pytest.approx((0.75 + 0.5) / 2)


def test_error_of_w_robust_counts_that_clean_and_robust_go_together():
    # B-MTARD on CIFAR-10 under AutoAttack: 88.20 % clean, 47.44 % robust
    error = weighted_error(*bits(4744, 8820 - 4744, 10_000 - 8820))
    clean, robust = 0.8820, 0.4744
    by_hand = math.sqrt((robust + (clean - robust) / 4 - ((clean + robust) / 2) ** 2) / 10_000)
    as_if_independent = math.hypot(accuracy_error(clean, 10_000), accuracy_error(robust, 10_000)) / 2
    assert error == pytest.approx(by_hand)
    assert (round(100 * error, 2), round(100 * as_if_independent, 2)) == (0.34, 0.30)


def test_accuracy_per_class_and_a_class_without_images():
    labels = np.array([0, 0, 2, 2, 2])
    accuracies = per_class_accuracy(labels, np.array([True, False, True, True, False]), 4)
    np.testing.assert_allclose(accuracies, [0.5, np.nan, 2 / 3, np.nan])


def test_mcnemar_of_an_example():
    test = mcnemar(*paired_bits(300, 42, 18, 240))
    assert (test.only_first, test.only_second) == (42, 18)
    by_hand = 2 * sum(math.comb(60, wins) for wins in range(42, 61)) / 2**60
    assert test.p_value == pytest.approx(by_hand)
    assert test.p_value == pytest.approx(0.0027, abs=5e-5)


def test_mcnemar_of_equal_outcomes_is_one():
    same = np.array([True, False, True])
    assert mcnemar(same, same).p_value == 1.0


def test_paired_difference_agrees_with_scipys_paired_bootstrap():
    generator = np.random.default_rng(3)
    first = generator.choice([0.0, 0.5, 1.0], 400, p=[0.1, 0.4, 0.5])
    second = np.where(generator.random(400) < 0.7, first, generator.choice([0.0, 0.5, 1.0], 400))
    found = paired_difference(first, second, seed=1)
    scipys = stats.bootstrap(
        (first, second),
        lambda one, other, axis: (one - other).mean(axis=axis),
        paired=True,
        method="percentile",
        n_resamples=10_000,
        batch=1000,
        random_state=2,
    )
    assert found.value == pytest.approx((first - second).mean())
    assert found.error == pytest.approx((first - second).std() / 20)
    assert found.error == pytest.approx(scipys.standard_error, rel=0.05)
    assert (found.low, found.high) == pytest.approx(tuple(scipys.confidence_interval), abs=0.1 * found.error)


def test_paired_difference_can_be_repeated_and_turned_round():
    first, second = paired_bits(300, 42, 18, 240)
    forth, back = paired_difference(first, second), paired_difference(second, first)
    assert forth == paired_difference(first, second)
    assert forth.value == pytest.approx(24 / 600) and back.value == -forth.value
    assert (back.low, back.high) == pytest.approx((-forth.high, -forth.low), abs=0.1 * forth.error)
    narrow = paired_difference(first, second, confidence=0.5)
    assert forth.low < narrow.low < forth.value < narrow.high < forth.high


def test_paired_difference_without_spread_has_no_width():
    outcomes = np.array([1.0, 0.5, 0.0])
    found = paired_difference(outcomes, outcomes - 0.25)
    assert (found.value, found.error, found.low, found.high) == (0.25, 0.0, 0.25, 0.25)


def test_holm_of_an_example():
    assert holm([0.01, 0.04, 0.03, 0.005]) == pytest.approx([0.03, 0.06, 0.06, 0.02])
    assert holm([0.5, 0.9]) == [1.0, 1.0]
    assert holm([0.2]) == [0.2] and holm([]) == []


@pytest.mark.parametrize("compare", [mcnemar, paired_difference])
@pytest.mark.parametrize("shapes", [((3,), (4,)), ((2, 2), (2, 2)), ((0,), (0,))])
def test_outcomes_that_are_not_paired_are_refused(compare, shapes):
    with pytest.raises(ValueError, match="one number per image, the same images for both"):
        compare(*(np.zeros(shape, dtype=bool) for shape in shapes))
