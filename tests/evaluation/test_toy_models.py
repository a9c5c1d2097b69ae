"""The checks tell six models apart: two honest ones, and four that hide gradients or spoil an attack."""

import numpy as np
import pytest
import torch
from toy_models import digits, fill, make_toys

from bmtard_hooks.attacks.apgd import APGD_CE, APGD_T
from bmtard_hooks.attacks.gradient import CW_INF, FGSM, PGD_SAT
from bmtard_hooks.attacks.rays import RAYS_100
from bmtard_hooks.attacks.spsa import SPSA
from bmtard_hooks.attacks.square import Square
from bmtard_hooks.attacks.transfer import Transfer
from bmtard_hooks.evaluation.checks import CHECKS, run_checks
from bmtard_hooks.evaluation.checks.context import Context
from bmtard_hooks.evaluation.report import RobustnessReport
from bmtard_hooks.evaluation.runner import AttackRunner

IMAGES = 60
EPS = 8 / 255

FLAGS = {
    "standard": set(),
    "AT": set(),
    "logits x200": {"A3", "A7"},
    "rounding": {"A3", "P3", "P4", "A4"},
    "noise": {"A1"},
    "softmax": {"A2"},
}
"""What every model must be caught by."""

ALSO = {
    "standard": set(),
    "AT": set(),
    "logits x200": {"A6", "A9", "A10"},
    "rounding": {"A9", "A10"},
    "noise": {"A6", "A8", "A9", "A12", "A13", "P2"},
    "softmax": set(),
}
"""What may speak up as well: dead gradients do not raise a loss, and noise moves verdicts and the global generator."""


@pytest.fixture(scope="session")
def toys():
    training, testing = digits()
    models, surrogate = make_toys(training)
    return models, surrogate, testing.subset(range(IMAGES))


@pytest.fixture(scope="session")
def measured(toys):
    """Every model's report with its checks, made when first asked for."""
    models, surrogate, data = toys
    reports = {}

    def measure(name):
        if name not in reports:
            with torch.random.fork_rng([]):
                torch.manual_seed(0)  # for the model that adds noise
                reports[name] = evaluate(name, models[name], surrogate, data)
        return reports[name]

    return measure


def evaluate(name, model, surrogate, data):
    attacks = {
        "fgsm": FGSM,
        "pgd_sat": PGD_SAT,
        "cw_inf": CW_INF,
        "transfer_pgd": Transfer(surrogate=surrogate),
        "square": Square(queries=300, rescale_schedule=True),
        "rays": RAYS_100,
        "spsa": SPSA(steps=12, pairs=16),
    }
    runner = AttackRunner(model, data)
    report = RobustnessReport(name, "digits", runner.labels, runner.predictions, runner.num_classes, None, {}, {})
    fill(report, runner, attacks)
    report.checks, report.sweeps = run_checks(runner, report, images=IMAGES, eps=EPS, norm="linf")
    return report


@pytest.mark.parametrize("name", FLAGS)
def test_each_model_raises_the_flags_it_should(measured, name):
    report = measured(name)
    failed = {check.id for check in report.checks if check.status == "fail"}
    evidence = "\n".join(f"{check.id} {check.status}: {check.evidence}" for check in report.checks)
    assert failed >= FLAGS[name], evidence
    assert failed <= FLAGS[name] | ALSO[name], evidence
    assert [check.id for check in report.checks if check.status == "not run"] == [
        "P1"
    ]  # there is no AutoAttack column


def test_honest_models_are_what_they_seem(measured):
    standard, robust = measured("standard"), measured("AT")
    assert standard.row("pgd_sat").clean > 0.9 and standard.row("pgd_sat").robust < 0.1
    assert robust.row("pgd_sat").clean > 0.9 and 0.25 < robust.row("pgd_sat").robust < 0.7
    assert not standard.failed_checks and not robust.failed_checks


def test_what_the_paper_looks_for_does_not_see_large_logits(measured):
    report = measured("logits x200")
    assert report.row("pgd_sat").robust > 0.85  # falsely: CW leaves next to nothing
    assert report.row("cw_inf").robust < 0.1
    status = {check.id: check.status for check in report.checks}
    assert status["P2"] == status["P3"] == status["P4"] == "pass"


def test_sweeps_follow_an_honest_model(measured):
    report = measured("AT")
    radii, steps = report.sweeps["accuracy against eps"], report.sweeps["accuracy against steps"]
    queries = report.sweeps["accuracy against queries"]
    assert [x for x, _, _ in radii] == pytest.approx([0, 2, 4, 8, 16])
    assert [x for x, _, _ in steps] == [0, 1, 5, 10, 20, 50, 100]
    assert queries[-1][0] == 12 * 33
    for curve in (radii, steps, queries):
        shares = np.array([share for _, share, _ in curve])
        assert shares[0] == report.row("pgd_sat").clean
        assert (np.diff(shares) <= 0).all()
        assert {images for _, _, images in curve} == {IMAGES}
    assert radii[3][1] == report.row("pgd_sat").robust
    assert queries[-1][1] == report.row("spsa").robust


@pytest.mark.parametrize(("name", "passes"), [("AT", True), ("rounding", False)])
def test_a_short_autoattack_is_trusted_if_its_gradient_attacks_did_the_work(toys, name, passes):
    models, _, data = toys
    runner = AttackRunner(models[name], data.subset(range(40)))
    report = RobustnessReport(name, "digits", runner.labels, runner.predictions, runner.num_classes, None, {}, {})
    fill(report, runner, {"cw_inf": CW_INF})
    parts = {
        "apgd_ce": APGD_CE.replace(steps=20),
        "apgd_t": APGD_T.replace(steps=20),
        "square_5000": Square(queries=400),
    }
    alive = runner.correct.copy()
    for part, attack in parts.items():
        report.outcomes[part] = runner.run(attack, part, np.flatnonzero(alive))
        alive &= ~report.outcomes[part].broken
    report.columns["autoattack"] = list(parts)
    (check,) = [check for check in CHECKS if check.id == "P1"]
    result = check(Context(runner, report, images=40, eps=EPS, norm="linf"))
    assert result.status == ("pass" if passes else "fail"), result.evidence
    assert result.severity == "error"
