"""The checks of a report's columns, and all checks in one call."""

import numpy as np
import pytest
import torch
from fabricated import COUNT, EPS, Changed, look, outcome_of, report_of, runner_of, survivors

from bmtard_hooks.attacks.base import NonFiniteLogits
from bmtard_hooks.evaluation.checks import forward, run_checks
from bmtard_hooks.evaluation.checks.context import listed, strays_allowed, tolerance

HONEST = {"fgsm": 0.6, "pgd_sat": 0.5, "cw_inf": 0.48, "square": 0.7, "rays": 0.75, "transfer_pgd": 0.7}


def autoattack(gradients=0.45, square=0.45, **attacked):
    parts = [
        ("apgd_ce", outcome_of(gradients + 0.05)),
        ("apgd_t", outcome_of(gradients)),
        ("square_5000", outcome_of(square)),
    ]
    for part, outcome in parts:
        outcome.attacked[:] = attacked.get(part, True)
    return parts


def test_p1_passes_if_autoattack_is_strongest():
    result = look("P1", report_of({**HONEST, "autoattack": autoattack()}))
    assert (result.status, result.severity) == ("pass", "error"), result
    assert "45.0 % of 1000 images" in result.evidence


@pytest.mark.parametrize(
    ("change", "severity", "says"),
    [
        ({"autoattack": autoattack(apgd_t=False)}, "error", "apgd_t did not see 450"),
        ({"cw_inf": 0.42}, "error", "cw_inf leaves only 42.0 %"),
        ({"autoattack": autoattack(square=0.4)}, "error", "broke 5.0 %"),
        ({"cw_inf": 0.58}, "warning", "CW leaves 58.0 %"),
        ({"autoattack": autoattack(0.1, 0.1), "cw_inf": 0.11}, "warning", "no better than guessing"),
    ],
)
def test_p1_fails_with_an_error_unless_autoattack_itself_can_be_believed(change, severity, says):
    result = look("P1", report_of({**HONEST, "autoattack": autoattack(), **change}))
    assert (result.status, result.severity) == ("fail", severity), result
    assert says in result.evidence


def test_p2_compares_strong_and_weak_attacks():
    assert look("P2", report_of(HONEST)).status == "pass"
    for change in ({"fgsm": 0.4}, {"pgd_sat": 0.7}, {"cw_inf": 0.7}, {"autoattack": autoattack(0.55, 0.55)}):
        result = look("P2", report_of({**HONEST, **change}))
        assert (result.status, result.severity) == ("fail", "error"), (change, result)


def test_p3_fails_if_a_black_box_attack_is_stronger():
    assert look("P3", report_of(HONEST)).status == "pass"
    result = look("P3", report_of({**HONEST, "square": 0.3}))
    assert (result.status, result.severity) == ("fail", "error")
    assert (
        "200" not in result.evidence.split("only: ")[1]
        and "180 (images 300, 301, 302, 303, 304, …)" in result.evidence
    )


def test_p3_finds_images_that_only_a_weaker_black_box_attack_breaks():
    for strays, status in ((2, "pass"), (3, "fail")):
        square = survivors(0.7)
        square[:strays] = False
        result = look("P3", report_of({**HONEST, "square": square}))
        assert result.status == status, result
        assert f"only: {strays} (images 0, 1" in result.evidence


def test_p3_does_not_count_square_within_autoattack_as_white_box():
    hidden = {"pgd_sat": 0.9, "autoattack": autoattack(0.9, 0.1), "square": 0.5}
    assert look("P3", report_of(hidden)).status == "fail"


def test_p3_compares_columns_of_different_sizes_on_the_same_images():
    rays = outcome_of(survivors(0.6), settings={"images": 100})  # the first 100 images are robust to all
    assert look("P3", report_of({"pgd_sat": 0.5, "rays": rays})).status == "pass"
    weak = outcome_of(survivors(0.05), settings={"images": 100})
    result = look("P3", report_of({"pgd_sat": 0.5, "rays": weak}))
    assert result.status == "fail" and "of 100 images" in result.evidence


def estimation(final, half, queries=1000):
    """Gradient estimation that leaves ``half`` after half of its queries and ``final`` at the end."""
    spent = np.full(COUNT, queries)
    spent[~survivors(half)] = queries // 4
    return outcome_of(final, queries=spent)


def test_p4_wants_estimated_gradients_weaker_for_good():
    result = look("P4", report_of({**HONEST, "spsa:images=200": estimation(0.6, 0.62)}))
    assert (result.status, result.severity) == ("pass", "error"), result
    assert "fell by 2.0 points" in result.evidence
    result = look("P4", report_of({**HONEST, "nes": estimation(0.4, 0.42)}))
    assert (result.status, result.severity) == ("fail", "error")
    result = look("P4", report_of({**HONEST, "spsa": estimation(0.55, 0.7)}))
    assert (result.status, result.severity) == ("fail", "warning")
    assert "give it more" in result.evidence


@pytest.mark.parametrize(
    ("name", "columns", "missing"),
    [
        ("P1", HONEST, "autoattack"),
        ("P2", {"fgsm": 0.6, "pgd_sat": 0.5}, "cw_inf"),
        ("P3", {"pgd_sat": 0.5}, "rays"),
        ("P3", {"fgsm": 0.5, "rays": 0.7}, "pgd_sat"),
        ("P4", HONEST, "spsa"),
    ],
)
def test_paper_checks_name_the_column_they_miss(name, columns, missing):
    result = look(name, report_of(columns))
    assert result.status == "not run" and missing in result.evidence


@pytest.mark.parametrize("name", ["P1", "P2", "P3", "P4"])
def test_paper_checks_are_not_run_where_attacks_saw_survivors_only(name):
    columns = {**HONEST, "autoattack": autoattack(), "spsa": 0.6}
    result = look(name, report_of(columns, mode="worst_case"))
    assert result.status == "not run" and "worst_case" in result.evidence


def evenly(share):
    """Survivors all over the data set."""
    return np.arange(COUNT) % 100 < 100 * share


def first_images(share, count=300, **settings):
    """An attack on the first images only."""
    outcome = outcome_of(evenly(share), settings={"images": count, **settings})
    outcome.attacked[count:], outcome.broken[count:] = False, False
    return outcome


def test_paper_checks_know_attacks_on_the_first_images():
    columns = {name: evenly(share) for name, share in HONEST.items()}
    parts = [("apgd_t", first_images(0.45)), ("square_5000", first_images(0.45))]
    known = {**columns, "autoattack:images=300": parts}
    result = look("P1", report_of(known))
    assert result.status == "pass" and "45.0 % of 300 images" in result.evidence
    assert "autoattack leaves 45.0 % of 300 images" in look("P2", report_of(known)).evidence
    assert look("P1", report_of({**known, "cw_inf": evenly(0.38)})).status == "fail"
    assert look("P1", report_of({**columns, "autoattack:steps=1": parts})).status == "not run"  # a weaker one


def test_columns_of_another_radius_are_not_compared():
    weaker = {**HONEST, "autoattack": autoattack(), "pgd_sat": 0.2}
    assert look("P1", report_of(weaker)).status == "fail"
    weaker["pgd_sat"] = outcome_of(0.2, eps=2 * EPS)
    assert look("P1", report_of(weaker)).status == "pass"
    assert "pgd_sat" in look("P2", report_of(weaker)).evidence


def test_all_checks_come_in_order_without_any_column_and_cost_no_more_when_repeated():
    runner = runner_of(Changed())
    report = report_of({}, count=24)
    results, sweeps = run_checks(runner, report, images=10, eps=EPS, norm="linf")
    assert [result.id for result in results] == [f"P{i}" for i in range(1, 5)] + [f"A{i}" for i in range(1, 14)]
    assert [result.id for result in results if result.status == "not run"] == ["P1", "P2", "P3", "P4"]
    assert set(sweeps) == {"accuracy against eps", "accuracy against steps"}
    assert not report.checks and not report.outcomes
    passes = {name: outcome.forwards for name, outcome in runner._outcomes.items()}
    assert all(name.startswith("check:") for name in passes)
    assert all(outcome.attacked.sum() <= 10 for outcome in runner._outcomes.values())
    again, _ = run_checks(runner, report, images=10, eps=EPS, norm="linf")
    assert again == results
    assert {name: outcome.forwards for name, outcome in runner._outcomes.items()} == passes


def test_checks_work_in_l2():
    results, sweeps = run_checks(runner_of(Changed()), report_of({}, count=24), images=8, eps=0.25, norm="l2")
    assert [result.id for result in results if result.status == "not run"] == ["P1", "P2", "P3", "P4"]
    assert [x for x, _, _ in sweeps["accuracy against eps"]] == pytest.approx([0, 15.9375, 31.875, 63.75, 127.5])


def test_a_check_that_crashes_does_not_take_the_others_with_it(monkeypatch):
    def refuse(tensors):
        raise OSError("no space left")

    monkeypatch.setattr(forward, "fingerprint_tensors", refuse)
    results, _ = run_checks(runner_of(Changed()), report_of({}, count=24), images=4, eps=EPS, norm="linf")
    assert results[-1].status == "not run" and results[-1].evidence == "OSError: no space left"
    assert all(result.status != "not run" for result in results[4:-1])


def test_logits_that_are_not_finite_stop_the_checks():
    def off_the_grid(pixels):
        return pixels + torch.where((pixels * 255 - (pixels * 255).round()).abs() > 1e-3, torch.nan, 0.0)

    with pytest.raises(NonFiniteLogits):
        run_checks(runner_of(Changed(off_the_grid)), report_of({}, count=24), images=4, eps=EPS, norm="linf")


def test_a_model_that_is_always_wrong_has_nothing_to_attack():
    runner = runner_of(Changed())
    runner.correct[:] = False
    results, _ = run_checks(runner, report_of({}, count=24), images=10, eps=EPS, norm="linf")
    idle = [result for result in results if "none of the first 10 images" in result.evidence]
    assert [result.id for result in idle] == ["A3", "A4", "A5", "A6", "A7", "A8", "A9", "A10", "A12", "A13"]


def test_tolerance_is_paired():
    same = survivors(0.5, 10_000)
    assert tolerance(same, same) == 0.005
    first, second = survivors(0.5, 100), survivors(0.42, 100)
    assert tolerance(first, second) == pytest.approx(2 * np.sqrt(0.08 * 0.92 / 100))
    assert [strays_allowed(count) for count in (100, 1000, 10_000)] == [1, 2, 20]
    assert listed(np.arange(7)) == "7 (images 0, 1, 2, 3, 4, …)"
