"""Verdicts on the paper's claims follow from the outcomes, and the page of the archive from its files."""

import json

import numpy as np
import pytest

from small_archives import ROOT, archive, report, verdict_of  # isort: skip  # first, it makes claims importable
from claims.archive import load
from claims.document import stronger_attacks
from claims.verdicts import (
    FAILS,
    FEW_RUNS,
    HOLDS,
    NEEDED,
    NOISE,
    OPEN,
    READING,
    differences,
    judge,
    relative_gap,
)

from bmtard_hooks import create_model
from bmtard_hooks.compare.identity import fingerprint_classifier
from bmtard_hooks.compare.numbers import paired, training_again
from bmtard_hooks.evaluation.report import CheckResult
from bmtard_hooks.plots.runs import Run

ARCHIVES = sorted(path.parent for path in (ROOT / "benchmarks" / "results").glob("*/comparison.json"))


def log(entropies, losses, temperatures=True):
    entries = []
    for step, (gap, apart) in enumerate(zip(entropies, losses, strict=True)):
        entries.append(
            {"step": step, "entropy_clean": 1.0, "entropy_robust": 1.0 + gap, "relative_loss_clean": 0.5,
             "relative_loss_robust": 0.5 + apart, "loss_clean": 1.0, "loss_robust": 1.0 + apart * (step > 0)}
        )  # fmt: skip
    return entries


@pytest.mark.parametrize("bmtard, mtard, expected", [(0.60, 0.50, HOLDS), (0.50, 0.60, FAILS), (0.505, 0.50, NOISE)])
def test_difference_decides_only_if_it_is_sure(bmtard, mtard, expected):
    found = judge(archive({"bmtard": (bmtard, 0.2), "mtard": (mtard, 0.2), "sat": (0.3, 0.2)}))
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
    assert calm.seeds == 1 and calm.freedom == 2 and calm.p < 1e-3
    for label in ("bmtard", "mtard"):
        clean = {"bmtard": 0.60, "mtard": 0.55}[label]
        found.reports[label][1] = report(round(clean - 0.08, 2), 0.30, 1)  # W-Robust moves by 0.04: sd 0.04 / sqrt 2
    assert training_again(found.reports, "pgd_trades")["w_robust"].variance == pytest.approx(0.04**2 / 2)
    shaken = differences(found, "pgd_trades", "bmtard", ["sat"])[0]
    assert shaken.value == pytest.approx(calm.value)
    images = paired(found.reports["bmtard"], found.reports["sat"], "pgd_trades")["w_robust_error_images"]
    assert shaken.error == pytest.approx(np.hypot(images, 0.04)) and shaken.p > 0.2
    assert verdict_of(judge(found), "every method but MTARD").verdict == NOISE


def test_error_is_that_of_the_images_alone_while_nothing_was_trained_twice():
    found = archive({"bmtard": (0.60, 0.30), "sat": (0.50, 0.30)})
    for reports in found.reports.values():
        del reports[1]
    assert differences(found, "pgd_trades", "bmtard", ["sat"])[0].freedom == 0
    assert verdict_of(judge(found), "every method but MTARD").verdict == "holds (one run each)"


def test_verdict_says_that_the_spread_is_known_from_few_runs():
    found = archive({"bmtard": (0.60, 0.30), "sat": (0.50, 0.30)})
    del found.reports["sat"][1]
    assert verdict_of(judge(found), "every method but MTARD").verdict == HOLDS + FEW_RUNS


def test_rivals_that_were_not_measured_are_named_and_leave_the_claim_half_open():
    found = archive({label: (0.5, 0.2) for label in ("sat", "rslad", "iad")} | {"bmtard": (0.6, 0.3)})
    found.reports["rslad"], found.reports["iad"] = {}, {7: report(0.9, 0.9, 7)}  # the second shares no seed
    verdict = verdict_of(judge(found), "every method but MTARD")
    assert verdict.verdict.startswith("holds for 1 of 3") and verdict.numbers.endswith("not measured: rslad, iad")
    found.reports["rslad"] = {0: report(0.9, 0.9, 0)}
    assert verdict_of(judge(found), "every method but MTARD").verdict.startswith(FAILS)


def test_ablations_are_judged_under_autoattack_on_the_first_images_too():
    found = archive({"bmtard": (0.6, 0.3), "mtard": (0.5, 0.2), "sat": (0.3, 0.2)})
    column = "autoattack:images=2000"
    found.content["columns"].append(column)
    for reports in found.reports.values():
        for one in reports.values():
            one.outcomes["aa"], one.columns[column] = one.outcomes["pgd_trades"], ["aa"]
    lines = [verdict for verdict in judge(found) if "balanced weights (B-MTARD above MTARD)" in verdict.claim]
    assert [line.verdict for line in lines] == [HOLDS, HOLDS] and lines[1].claim.endswith("AutoAttack on 2000 images")


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
    assert verdict_of(found, "entropies meet").verdict == HOLDS + READING
    assert "1.000 → 0.020" in verdict_of(found, "entropies meet").numbers
    assert verdict_of(found, "relative losses").verdict == HOLDS + READING
    runs["mtard"], runs["bmtard"] = log(apart, large), log(apart, large)
    found = judge(archive({}, {label: Run(label, entries) for label, entries in runs.items()}))
    assert {verdict_of(found, words).verdict for words in ("entropies meet", "relative losses")} == {FAILS + READING}


def test_relative_losses_of_all_rows_are_relative_to_the_same_thing():
    """Rows with Normalization Loss Balance log losses relative to the first step, the others nothing."""
    entries = [
        {
            "step": step,
            "loss_clean": clean,
            "loss_robust": 1.0,
            "relative_loss_clean": 9.0,
            "relative_loss_robust": 1.0,
        }
        for step, clean in enumerate([2.0, 1.0, 1.0, 1.0])
    ]
    bare = [{name: value for name, value in entry.items() if "relative" not in name} for entry in entries]
    assert relative_gap(Run("bmtard", entries)) == relative_gap(Run("baseline", bare)) == pytest.approx(0.5)


def check(name, status="pass", severity="error"):
    return CheckResult(name, name, status, severity, "seen")


def test_gradients_are_judged_only_if_the_checks_that_matter_ran():
    found = archive({"bmtard": (0.6, 0.3)})
    names = sorted(NEEDED)
    for checks, expected in (
        ([], OPEN),
        ([check(name, "not run") for name in names], OPEN),
        ([check(name) for name in names[1:]], OPEN),
        ([check(name) for name in names], HOLDS),
        ([*map(check, names), check("A9", "fail", "warning")], HOLDS),
        ([*map(check, names), check("A9", "fail")], FAILS),
    ):
        found.strong = {"bmtard": report(0.6, 0.3, 0)}
        found.strong["bmtard"].checks = checks
        verdict = verdict_of(judge(found), "obfuscated")
        assert verdict.verdict == expected
        assert ("A9" in verdict.numbers) == any(entry.id == "A9" for entry in checks)


def test_students_that_met_more_attacks_are_tabled_and_compared():
    found = archive({})
    assert stronger_attacks(found) == []
    found.strong = {"bmtard": report(0.6, 0.3, 0), "mtard": report(0.5, 0.2, 0)}
    found.strong["bmtard"].checks = [check("P1")]
    text = "\n".join(stronger_attacks(found))
    assert "- P1, P1: pass. seen" in text and "60.00" not in text  # the comparison has this column for all rows
    for entry in found.strong.values():
        entry.columns["autoattack"] = ["pgd_trades"]
    text = "\n".join(stronger_attacks(found))
    assert "60.00" in text and "+10.00" in text and "PGD-TRADES" not in text


def test_autoattack_on_some_images_is_judged_among_those_who_met_it():
    found = archive({"bmtard": (0.6, 0.3), "mtard": (0.6, 0.3), "sat": (0.5, 0.2), "ard": (0.5, 0.2)})
    found.strong = {"bmtard": report(0.6, 0.3, 0), "mtard": report(0.5, 0.2, 0), "sat": report(0.5, 0.25, 0)}
    assert not [verdict for verdict in judge(found) if "AutoAttack" in verdict.claim]  # nobody met it
    for entry in found.strong.values():
        entry.columns["autoattack:images=500"] = ["pgd_trades"]
    verdicts = {
        verdict.claim: verdict for verdict in judge(found) if verdict.claim.endswith("AutoAttack on 500 images")
    }
    above, mtard = verdicts.values()
    assert above.verdict == "holds for 1 of 2 (one run each)" and above.numbers.endswith("not measured: ard")
    assert mtard.verdict == "holds (one run each)" and "+10.00" in mtard.numbers


@pytest.mark.parametrize("directory", ARCHIVES, ids=lambda path: path.name)
def test_page_of_an_archive_is_made_from_its_files(directory, tmp_path):
    import shutil

    import paper_claims

    shutil.copytree(directory, tmp_path / "archive")
    page = (tmp_path / "archive" / "README.md").read_text()
    (tmp_path / "archive" / "README.md").unlink()
    made = paper_claims.main(["--archive", str(tmp_path / "archive")])
    body, written = (text[: text.rindex("This page is made")] for text in (made.read_text(), page))
    assert body == written


@pytest.mark.parametrize("directory", ARCHIVES, ids=lambda path: path.name)
def test_every_archived_run_says_how_it_was_made(directory):
    found = load(directory)
    assert "--output_dir" in found.content["command"]
    for row in found.content["rows"]:
        for run in row["runs"]:
            if run["state"] == "finished" and "method" in row:
                record = json.loads((directory / run["directory"] / "run.json").read_text())
                assert record["identity"]["method"] == row["method"] and record["training"]["commit"]


STUDENTS = [path.parent for archive in ARCHIVES for path in sorted(archive.glob("runs/*/seed0/model.safetensors"))]


@pytest.mark.parametrize("directory", STUDENTS, ids=lambda path: path.parent.name)
def test_archived_student_is_the_one_that_was_measured(directory):
    record = json.loads((directory / "run.json").read_text())
    assert fingerprint_classifier(create_model(str(directory)).freeze()) == record["training"]["weights"]


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
        mean = {"clean": 0.5, "robust": 0.3, "w_robust": 0.4}
        row.update(method="bmtard", options=options[row["label"]], mean={"pgd_trades": mean})
    assert [row[0] for row in power_table(found).rows] == ["0.5", "1", "4"]
    assert power_table(found).rows[0][1:] == ["50.00", "30.00", "40.00"]


def test_archive_of_another_release_is_refused_with_the_way_to_renew_it(tmp_path):
    (tmp_path / "comparison.json").write_text(json.dumps({"schema_version": 1, "rows": []}))
    with pytest.raises(ValueError, match="schema_version 1, expected 2: run compare.py on a copy"):
        load(tmp_path)
