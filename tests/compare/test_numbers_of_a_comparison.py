import math

import numpy as np
import pytest
from scipy import stats

from bmtard_hooks.compare.numbers import (
    against_first,
    best_and_second,
    mean_over_seeds,
    outcomes,
    paired,
    training_again,
)
from bmtard_hooks.evaluation.report import AttackOutcome, RobustnessReport
from bmtard_hooks.evaluation.statistics import holm, mcnemar

LABELS = np.arange(12) % 3


def report(clean, robust, name="a model", **settings):
    """A report with 0 and 1 per image, as text."""
    clean, robust = (np.array([letter == "1" for letter in text]) for text in (clean, robust))
    outcome = AttackOutcome({"norm": "linf", "eps": 0.03, **settings}, clean.copy(), clean & ~robust)
    predictions = np.where(clean, LABELS, (LABELS + 1) % 3)
    return RobustnessReport(name, "images", LABELS, predictions, 3, None, {"pgd": outcome}, {"pgd": ["pgd"]})


A = {0: report("111111110000", "111100000000"), 1: report("111111000000", "110000000000")}
B = {0: report("111111111000", "100000000000"), 1: report("111111111100", "110010000000")}


def test_mean_and_both_errors_over_two_seeds():
    found = mean_over_seeds(A, "pgd")
    assert found["w_robust"] == pytest.approx((6 / 12 + 4 / 12) / 2)
    assert found["w_robust_error_seeds"] == pytest.approx((6 / 12 - 4 / 12) / 2)  # |difference| / 2 for two
    per_image = (outcomes(A[0], "pgd")["w_robust"] + outcomes(A[1], "pgd")["w_robust"]) / 2
    assert found["w_robust_error_images"] == pytest.approx(per_image.std() / math.sqrt(12))


def test_one_seed_has_no_error_over_seeds():
    found = mean_over_seeds({0: A[0]}, "pgd")
    assert found["robust_error_seeds"] is None
    assert found["robust_error_images"] == pytest.approx(math.sqrt(1 / 3 * 2 / 3 / 12))


def test_paired_difference_uses_the_same_images():
    found = paired({0: A[0]}, {0: B[0]}, "pgd")
    differences = outcomes(A[0], "pgd")["w_robust"] - outcomes(B[0], "pgd")["w_robust"]
    assert found["w_robust"] == pytest.approx(differences.mean())
    assert (
        found["w_robust_error"] == found["w_robust_error_images"] == pytest.approx(differences.std() / math.sqrt(12))
    )
    assert found["p"] == pytest.approx(2 * stats.norm.sf(abs(found["w_robust"]) / found["w_robust_error"]))
    assert found["freedom"] is None
    test = found["tests"][0]
    assert (test["only_row"], test["only_other"]) == (3, 0)
    assert test["p"] == mcnemar(A[0].robust("pgd"), B[0].robust("pgd")).p_value


def test_errors_of_images_and_seeds_add_up_in_squares():
    found = paired(A, B, "pgd")
    by_seed = [paired({seed: A[seed]}, {seed: B[seed]}, "pgd")["w_robust"] for seed in (0, 1)]
    assert found["w_robust"] == pytest.approx(sum(by_seed) / 2)
    own = [np.var([outcomes(row[seed], "pgd")["w_robust"].mean() for seed in (0, 1)], ddof=1) for row in (A, B)]
    squares = np.mean(own) + found["w_robust_error_images"] ** 2  # twice the pooled variance over two seeds
    assert found["w_robust_error"] == pytest.approx(math.sqrt(squares))


def test_all_rows_together_say_what_training_again_does():
    rows = {"a": A, "b": B, "c": {0: A[0]}, "teacher": {None: B[0]}, "none": {}}
    again = training_again(rows, "pgd")["w_robust"]
    assert again == training_again({"a": A, "b": B}, "pgd")["w_robust"] and again.freedom == 2
    single = paired({0: A[0]}, {0: B[0]}, "pgd", {"w_robust": again})
    squares = single["w_robust_error_images"] ** 2 + 2 * again.variance
    assert single["w_robust_error"] == pytest.approx(math.sqrt(squares))
    with_teacher = paired({0: A[0]}, {None: B[0]}, "pgd", {"w_robust": again})
    assert with_teacher["w_robust_error"] == pytest.approx(math.sqrt(squares - again.variance))
    two_teachers = paired({None: A[0]}, {None: B[0]}, "pgd", {"w_robust": again})
    assert two_teachers["w_robust_error"] == pytest.approx(single["w_robust_error_images"])


def test_only_seeds_that_both_rows_have_are_paired():
    assert paired({1: A[1], 5: A[0]}, B, "pgd")["seeds"] == [1]


def test_teacher_is_paired_with_every_seed():
    assert paired({None: B[0]}, A, "pgd")["seeds"] == [0, 1]
    assert paired(A, {None: B[0]}, "pgd")["seeds"] == [0, 1]


def test_equal_models_differ_by_chance():
    found = paired({0: A[0]}, {0: A[0]}, "pgd")
    assert found["p"] == 1 and found["w_robust"] == 0 and found["tests"][0]["p"] == 1


def test_p_values_are_adjusted_over_the_rows_of_a_seed():
    rows = {"first": A, "b": B, "c": {0: B[1]}, "unfinished": {}}
    entries = against_first(rows, "first", "pgd")
    assert [entry["row"] for entry in entries] == ["b", "c"]
    assert [entry["p_holm"] for entry in entries] == holm([entry["p"] for entry in entries])
    at_zero = [test for entry in entries for test in entry["tests"] if test["seed"] == 0]
    assert [test["p_holm"] for test in at_zero] == holm([test["p"] for test in at_zero])
    at_one = [test for entry in entries for test in entry["tests"] if test["seed"] == 1]
    assert len(at_one) == 1 and at_one[0]["p_holm"] == at_one[0]["p"]


def test_nothing_is_compared_with_a_first_row_that_is_not_finished():
    assert against_first({"first": {}, "b": B}, "first", "pgd") == []


def test_best_row_is_compared_with_the_second():
    rows = {"low": {0: report("1" * 6 + "0" * 6, "0" * 12)}, "b": {0: B[1]}, "a": {0: A[0]}}
    best, second, found = best_and_second(rows, "pgd")
    assert (best, second) == ("b", "a") and found["w_robust"] == pytest.approx(6.5 / 12 - 6 / 12)
    assert best_and_second({"a": A}, "pgd") is None


def test_nothing_is_said_of_a_best_row_that_is_behind_on_the_seeds_it_shares_with_the_second():
    good, fair, poor = (report("1" * count + "0" * (12 - count), "0" * 12) for count in (12, 9, 4))
    rows = {"a": {0: fair, 1: good, 2: good}, "b": {0: good, 3: fair}}
    assert paired(rows["a"], rows["b"], "pgd")["w_robust"] < 0
    assert best_and_second(rows, "pgd") is None
    assert best_and_second({"a": {0: good}, "b": {0: poor}}, "pgd") is not None


def test_other_radius_is_not_compared():
    with pytest.raises(ValueError, match="same radius"):
        paired({0: A[0]}, {0: report("1" * 12, "0" * 12, eps=0.06)}, "pgd")
