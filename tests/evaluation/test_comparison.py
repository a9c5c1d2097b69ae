import math
from dataclasses import replace

import numpy as np
import pytest
from scipy import stats

from bmtard_hooks.attacks.gradient import CW_INF, PGD_SAT
from bmtard_hooks.evaluation.comparison import compare, compare_runs, images_needed
from bmtard_hooks.evaluation.report import WORST_CASE, AttackOutcome, CheckResult, RobustnessReport


def report(model, seed, images=600, attacks=None, environment=None, **options):
    """A made-up report: 90 % clean, half of that robust, the seed decides about which images."""
    generator = np.random.default_rng(seed)
    labels = np.arange(images) % 4
    predictions = np.where(generator.random(images) < 0.9, labels, (labels + 1) % 4)
    outcomes = {}
    for name, attack in (attacks or {"pgd_sat": PGD_SAT, "cw_inf": CW_INF}).items():
        correct = predictions == labels
        broken = correct & (generator.random(images) < 0.5)
        outcomes[name] = AttackOutcome(attack.settings(), correct, broken)
    columns = {**{name: [name] for name in outcomes}, WORST_CASE: list(outcomes)}
    environment = {"seed": 0, "images": "f00d"} if environment is None else environment
    return RobustnessReport(
        model, "digits/test", labels, predictions, 4, None, outcomes, columns, environment=environment, **options
    )


def with_bits(model, clean, robust):
    labels = np.zeros(len(clean), dtype=int)
    outcome = AttackOutcome(PGD_SAT.settings(), clean, clean & ~robust)
    predictions = np.where(clean, 0, 1)
    return RobustnessReport(model, "digits", labels, predictions, 2, None, {"pgd": outcome}, {"pgd": ["pgd"]})


def test_every_number_follows_from_the_bits():
    first, second = report("ours", 1), report("theirs", 2)
    comparison = compare(first, second)
    assert [entry.column for entry in comparison.columns] == ["pgd_sat", "cw_inf", WORST_CASE]
    assert comparison.warnings == []
    for entry in comparison.columns:
        rows = first.row(entry.column), second.row(entry.column)
        assert entry.images == 600
        for name in ("clean", "robust", "w_robust"):
            assert getattr(entry, name).value == pytest.approx(getattr(rows[0], name) - getattr(rows[1], name))
        robust = first.robust(entry.column), second.robust(entry.column)
        assert entry.robust_test.only_first == (robust[0] & ~robust[1]).sum()
        assert entry.robust_test.only_second == (robust[1] & ~robust[0]).sum()
        assert entry.clean_test.only_first == (first.correct & ~second.correct).sum()
        weighted = [(one.correct.astype(float) + bits) / 2 for one, bits in zip((first, second), robust, strict=True)]
        assert entry.w_robust.error == pytest.approx((weighted[0] - weighted[1]).std() / math.sqrt(600))
        assert entry.spread == pytest.approx((weighted[0] - weighted[1]).std())
        assert entry.w_robust.low < entry.w_robust.value < entry.w_robust.high
    smallest = min(comparison.columns, key=lambda entry: entry.robust_test.p_value)
    assert smallest.robust_p == pytest.approx(min(1, 3 * smallest.robust_test.p_value))
    assert comparison.columns[0].clean_p == pytest.approx(min(1, 3 * comparison.columns[0].clean_test.p_value))


def test_an_example_worked_out_by_hand():
    clean = np.ones(600, dtype=bool)
    robust = np.repeat([True, True, False, False], (300, 42, 18, 240))
    others = np.repeat([True, False, True, False], (300, 42, 18, 240))
    (entry,) = compare(with_bits("ours", clean, robust), with_bits("theirs", clean, others)).columns
    assert entry.robust.value == pytest.approx(0.04) and entry.w_robust.value == pytest.approx(0.02)
    assert entry.clean.value == entry.clean.error == 0 and entry.clean_p == 1
    assert entry.robust_test.p_value == entry.robust_p == pytest.approx(0.0027, abs=5e-5)
    assert entry.w_robust.error == pytest.approx(math.sqrt(60 / 600 / 4 - 0.02**2) / math.sqrt(600))


def test_markdown_has_points_and_says_what_is_significant():
    text = compare(report("ours", 1), report("theirs", 2)).to_markdown()
    assert text.startswith("ours minus theirs on digits/test, percent points")
    rows = [line for line in text.splitlines() if line.startswith("| ") and " ± " in line]
    assert len(rows) == 3 and all(line.count("|") == 9 for line in rows)
    assert "its 95 % interval leaves out 0" in text and "below 0.05" in text
    assert "Holm's adjustment for 3 columns" in text
    assert "To show a difference of 0.5 points in W-Robust with 80 % power takes" in text


def test_markdown_of_a_model_with_itself_has_no_sample_size():
    text = compare(report("ours", 1), report("ours", 1)).to_markdown()
    assert "+0.00 ± 0.00" in text and "do not differ in W-Robust on single images" in text


def test_chosen_columns_only_and_an_unknown_one():
    first, second = report("ours", 1), report("theirs", 2)
    assert [entry.column for entry in compare(first, second, ["cw_inf"]).columns] == ["cw_inf"]
    with pytest.raises(KeyError, match="no column 'square'.*pgd_sat"):
        compare(first, second, ["square"])


def test_a_column_on_fewer_images_is_compared_on_those():
    first = report("ours", 1, attacks={"pgd_sat": PGD_SAT.replace(images=100)})
    comparison = compare(first, report("theirs", 2), ["pgd_sat"])
    assert comparison.columns[0].images == 100
    assert comparison.warnings == ["pgd_sat: 100 and 600 images, the first 100 are compared"]


def test_other_labels_and_other_images_are_refused():
    with pytest.raises(ValueError, match=r"labels of ours on digits/test \(600 images\).*\(500 images\) differ"):
        compare(report("ours", 1), report("theirs", 2, images=500))
    with pytest.raises(ValueError, match="fingerprints f00d and beef"):
        compare(report("ours", 1), report("theirs", 2, environment={"seed": 0, "images": "beef"}))
    assert compare(report("ours", 1), report("theirs", 2, environment={"seed": 0})).columns


@pytest.mark.parametrize(
    ("other", "message"),
    [
        (PGD_SAT.replace(eps=0.031), "linf eps=0.031373 for ours and linf eps=0.031000 for theirs"),
        (PGD_SAT.replace(norm="l2", eps=0.5, step_size=0.1), "linf eps=0.031373 for ours and l2 eps=0.500000"),
    ],
)
def test_another_radius_is_refused(other, message):
    first, second = (
        report(name, 1, attacks={"pgd": attack}) for name, attack in (("ours", PGD_SAT), ("theirs", other))
    )
    with pytest.raises(ValueError, match=message):
        compare(first, second)


def test_other_weights_modes_and_columns_are_refused():
    first = report("ours", 1)
    with pytest.raises(ValueError, match=r"clean_weight=0\.5 in one report and 0\.7"):
        compare(first, report("theirs", 2, clean_weight=0.7))
    survivors = report("theirs", 2, mode="worst_case")
    with pytest.raises(ValueError, match="pgd_sat was measured in mode columns and in mode worst_case"):
        compare(first, survivors, ["pgd_sat"])
    assert [entry.column for entry in compare(first, survivors).columns] == [WORST_CASE]
    with pytest.raises(ValueError, match="no column to compare"):
        compare(replace(first, columns={"pgd_sat": ["pgd_sat"]}), replace(survivors, columns={"cw_inf": ["cw_inf"]}))


def test_doubts_are_told():
    failed = [CheckResult("A1", "unbounded attacks succeed", "fail", "error", "3 % left")]
    second = report("theirs", 2, environment={"seed": 7}, checks=failed)
    warnings = compare(report("ours", 1), second, ["cw_inf"]).warnings
    assert len(warnings) == 2
    assert "theirs FAILED the checks" in warnings[0]
    assert "the seeds differ (0 and 7)" in warnings[1]
    assert "Warning: the seeds differ" in compare(report("ours", 1), second).to_markdown()


def test_other_settings_of_an_attack_and_other_parts_of_a_column_are_told():
    attacks = {"pgd_sat": PGD_SAT.replace(steps=50)}
    comparison = compare(report("ours", 1), report("theirs", 2, attacks=attacks))
    assert "pgd_sat: pgd_sat has steps 20 and 50" in comparison.warnings
    assert "worst_case is the union of pgd_sat, cw_inf in one report, of pgd_sat in the other" in comparison.warnings


def test_images_needed_for_eighty_percent_power():
    assert images_needed(0.18, 0.005) == 10_161
    assert images_needed(0.18, -0.005) == 10_161
    drawn = np.random.default_rng(0).normal(0.1, 1.0, size=(2000, images_needed(1.0, 0.1)))
    power = (stats.ttest_1samp(drawn, 0, axis=1).pvalue < 0.05).mean()
    assert power == pytest.approx(0.8, abs=0.03)
    for sd, difference in [(0, 0.1), (math.nan, 0.1), (0.1, 0)]:
        with pytest.raises(ValueError, match="positive spread"):
            images_needed(sd, difference)


def test_runs_are_compared_with_welchs_interval():
    first, second = [67.8, 68.1, 67.5, 67.9], [66.9, 67.6, 67.2]
    found = compare_runs(first, second)
    variances = np.var(first, ddof=1) / 4, np.var(second, ddof=1) / 3
    freedom = sum(variances) ** 2 / (variances[0] ** 2 / 3 + variances[1] ** 2 / 2)
    half = stats.t.ppf(0.975, freedom) * math.sqrt(sum(variances))
    assert found.runs == (4, 3) and found.warnings == []
    assert found.difference == pytest.approx(np.mean(first) - np.mean(second))
    assert (found.low, found.high) == pytest.approx((found.difference - half, found.difference + half))
    assert (found.p_value < 0.05) == (found.low > 0)


def test_few_runs_are_told_and_too_few_refused():
    assert "fewer than 3" in compare_runs([1.0, 2.0], [1.0, 1.5, 2.0]).warnings[0]
    with pytest.raises(ValueError, match="1 and 3 runs"):
        compare_runs([1.0], [1.0, 1.5, 2.0])
    with pytest.raises(ValueError, match="do not vary"):
        compare_runs([1.0, 1.0], [2.0, 2.0])
    with pytest.raises(ValueError, match="finite"):
        compare_runs([1.0, math.nan], [2.0, 2.0])
