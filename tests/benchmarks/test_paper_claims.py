"""Verdicts on the paper's claims follow from the outcomes, and the page of the archive from its files."""

import json
import sys
from pathlib import Path

import numpy as np
import pytest

ROOT = Path(__file__).parents[2]
sys.path.insert(0, str(ROOT / "benchmarks"))

from claims.archive import Archive, load  # noqa: E402
from claims.verdicts import FAILS, HOLDS, NOISE, OPEN, differences, judge, retraining  # noqa: E402

from bmtard_hooks import create_model  # noqa: E402
from bmtard_hooks.compare.identity import fingerprint_classifier  # noqa: E402
from bmtard_hooks.evaluation.report import AttackOutcome, RobustnessReport  # noqa: E402
from bmtard_hooks.plots.runs import Run  # noqa: E402

ARCHIVE = ROOT / "benchmarks" / "results" / "cifar10_small"
IMAGES = 2000


def report(clean, robust, seed):
    """A model that is right on a share of the images, and stays right on a share."""
    order = np.random.default_rng([seed, round(1000 * clean)]).permutation(IMAGES)
    right, left = order < clean * IMAGES, order < robust * IMAGES
    return RobustnessReport(
        model="m",
        dataset="d",
        labels=np.zeros(IMAGES, dtype=int),
        predictions=np.where(right, 0, 1),
        num_classes=2,
        label_names=None,
        outcomes={"pgd_trades": AttackOutcome({"norm": "linf", "eps": 8 / 255}, right, right & ~left)},
        columns={"pgd_trades": ["pgd_trades"]},
    )


def archive(shares, logs=None):
    """Label to (clean, robust) of a row with two seeds."""
    rows = [{"label": label, "method": label.split("+")[0], "options": {}} for label in shares]
    reports = {label: {seed: report(*pair, seed) for seed in (0, 1)} for label, pair in shares.items()}
    return Archive(Path("."), {"rows": rows, "columns": ["pgd_trades"]}, reports, logs or {})


def verdict_of(found, words):
    return next(verdict for verdict in found if words in verdict.claim)


def log(entropies, losses, temperatures=True):
    entries = []
    for step, (gap, apart) in enumerate(zip(entropies, losses, strict=True)):
        entries.append(
            {"step": step, "entropy_clean": 1.0, "entropy_robust": 1.0 + gap, "relative_loss_clean": 0.5,
             "relative_loss_robust": 0.5 + apart, "loss_clean": 1.0, "loss_robust": 1.0}
        )  # fmt: skip
    return entries


@pytest.mark.parametrize("bmtard, mtard, expected", [(0.60, 0.50, HOLDS), (0.50, 0.60, FAILS), (0.505, 0.50, NOISE)])
def test_difference_decides_only_if_it_is_sure(bmtard, mtard, expected):
    found = judge(archive({"bmtard": (bmtard, 0.2), "mtard": (mtard, 0.2)}))
    verdict = verdict_of(found, "above MTARD's")
    assert verdict.verdict == expected and "(2 seeds)" in verdict.numbers
    assert f"{50 * (bmtard - mtard):+.2f}" in verdict.numbers


def test_one_better_rival_refutes_and_own_ablations_are_no_rivals():
    shares = {
        "bmtard": (0.6, 0.3),
        "sat": (0.4, 0.2),
        "rslad": (0.65, 0.4),
        "mtard": (0.9, 0.9),
        "baseline": (0.9, 0.9),
    }
    verdict = verdict_of(judge(archive(shares)), "every method but MTARD")
    assert verdict.verdict == FAILS
    assert (
        verdict.numbers.index("rslad -7.50") < verdict.numbers.index("sat +15.00") and "mtard" not in verdict.numbers
    )


def test_what_training_again_changes_counts_also_for_rows_with_one_seed():
    found = archive({"bmtard": (0.60, 0.30), "mtard": (0.55, 0.30), "sat": (0.50, 0.30)})
    del found.reports["sat"][1]
    calm = differences(found, "pgd_trades", "bmtard", ["sat"])[0]
    assert calm.seeds == 1 and calm.freedom == np.inf and calm.p < 1e-3
    for label in ("bmtard", "mtard"):
        clean = {"bmtard": 0.60, "mtard": 0.55}[label]
        found.reports[label][1] = report(round(clean - 0.08, 2), 0.30, 1)  # W-Robust moves by 0.04: sd 0.04 / sqrt 2
    again = retraining(found, "pgd_trades")
    assert again.deviation == pytest.approx(0.04 / 2**0.5) and again.freedom == 2
    shaken = differences(found, "pgd_trades", "bmtard", ["sat"])[0]
    assert shaken.value == pytest.approx(calm.value)
    assert shaken.error == pytest.approx(np.hypot(calm.error, 0.04)) and shaken.p > 0.2
    assert shaken.freedom == pytest.approx(2 * (shaken.error / 0.04) ** 4)


def test_error_is_that_of_the_images_alone_while_nothing_was_trained_twice():
    found = archive({"bmtard": (0.60, 0.30), "sat": (0.50, 0.30)})
    for reports in found.reports.values():
        del reports[1]
    assert retraining(found, "pgd_trades") is None
    assert differences(found, "pgd_trades", "bmtard", ["sat"])[0].freedom == np.inf
    assert verdict_of(judge(found), "every method but MTARD").verdict == "holds (one run each)"


def test_what_was_not_run_is_said_to_be_open():
    found = judge(archive({"sat": (0.4, 0.2)}))
    assert {verdict.verdict for verdict in found} == {OPEN}


def test_balances_are_judged_by_the_logs():
    met, apart = [1.0, 0.5, 0.05, 0.02], [1.0, 1.0, 1.0, 1.0]
    small, large = [0.1] * 4, [0.3] * 4
    runs = {
        "bmtard": log(met, small), "baseline+ebb": log(met, large),
        "mtard": log(apart, small), "baseline": log(apart, large),
    }  # fmt: skip
    found = judge(archive({}, {label: Run(label, entries) for label, entries in runs.items()}))
    assert verdict_of(found, "entropies meet").verdict == HOLDS
    assert "1.000 → 0.020" in verdict_of(found, "entropies meet").numbers
    assert verdict_of(found, "relative losses").verdict == HOLDS
    runs["mtard"], runs["bmtard"] = log(apart, large), log(apart, large)
    found = judge(archive({}, {label: Run(label, entries) for label, entries in runs.items()}))
    assert verdict_of(found, "entropies meet").verdict == verdict_of(found, "relative losses").verdict == FAILS


@pytest.mark.skipif(not (ARCHIVE / "comparison.json").is_file(), reason="the archive of runs is not there")
def test_page_of_the_archive_is_made_from_its_files(tmp_path):
    import shutil

    import paper_claims

    shutil.copytree(ARCHIVE, tmp_path / "archive")
    page = (tmp_path / "archive" / "README.md").read_text()
    (tmp_path / "archive" / "README.md").unlink()
    made = paper_claims.main(["--archive", str(tmp_path / "archive")])
    body, written = (text[: text.rindex("This page is made")] for text in (made.read_text(), page))
    assert body == written


@pytest.mark.skipif(not (ARCHIVE / "comparison.json").is_file(), reason="the archive of runs is not there")
def test_every_archived_run_says_how_it_was_made():
    found = load(ARCHIVE)
    assert "--output_dir" in found.content["command"]
    for row in found.content["rows"]:
        for run in row["runs"]:
            if run["state"] == "finished" and "method" in row:
                record = json.loads((ARCHIVE / run["directory"] / "run.json").read_text())
                assert record["identity"]["method"] == row["method"] and record["training"]["commit"]


@pytest.mark.skipif(not list(ARCHIVE.glob("runs/*/*/model.safetensors")), reason="the archive holds no students")
def test_archived_students_are_those_that_were_measured():
    """One of every row: its weights, as `create_model` loads them, have the fingerprint in the record of its evaluation."""
    for row in ARCHIVE.glob("runs/*"):
        for weights in sorted(row.glob("*/model.safetensors"))[:1]:
            record = json.loads((weights.parent / "run.json").read_text())
            assert fingerprint_classifier(create_model(str(weights.parent)).freeze()) == record["training"]["weights"]


def test_students_too_large_for_a_repository_are_left_out(tmp_path, monkeypatch):
    from claims import archive as archiving

    run = tmp_path / "outputs" / "runs" / "sat" / "seed0"
    run.mkdir(parents=True)
    for name in ("run.json", "report.json", "config.json", "model.safetensors"):
        (run / name).write_text("12345678")
    rows = [{"label": "sat", "runs": [{"name": "sat/seed0", "state": "finished", "directory": "runs/sat/seed0"}]}]
    (tmp_path / "outputs" / "comparison.json").write_text(json.dumps({"rows": rows}))
    for largest, kept in ((8, True), (7, False)):
        monkeypatch.setattr(archiving, "LARGEST", largest)
        target = tmp_path / f"archive{largest}"
        assert archiving.keep(tmp_path / "outputs", target) == ["sat/seed0"]
        assert (target / "runs/sat/seed0/report.json").is_file()
        assert (target / "runs/sat/seed0/model.safetensors").is_file() == kept
        assert (target / "runs/sat/seed0/config.json").is_file() == kept


def test_powers_are_tabled_beside_the_row_that_is_alike_but_for_the_power():
    from claims.document import power_table

    options = {
        "bmtard": {"temperature_rate": "0.005"},
        "half": {"temperature_rate": "0.005", "loss_balance_power": "0.5"},
        "slow": {},
        "four": {"loss_balance_power": "4", "temperature_rate": "0.005"},
    }
    found = archive({label: (0.5, 0.3) for label in options})
    for row in found.content["rows"]:
        mean = {"robust": 0.3, "w_robust": 0.4}
        row.update(method="bmtard", options=options[row["label"]], mean={"pgd_trades": mean})
    assert [row[0] for row in power_table(found).rows] == ["0.5", "1", "4"]
    assert power_table(found).rows[0][1:] == ["30.00", "40.00"]
