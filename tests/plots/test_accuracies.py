import numpy as np
import pytest
from reports_of_runs import report_of
from sample_runs import ablation, evaluation, sample_log, sat

from bmtard_hooks.evaluation.statistics import weighted_error
from bmtard_hooks.plots import Run, find_report
from bmtard_hooks.plots.accuracies import accuracies
from bmtard_hooks.reporting.report_file import save_report


@pytest.mark.parametrize("clean_weight", [0.5, 0.3])
def test_errors_of_a_logged_evaluation_are_those_of_its_images(clean_weight):
    images = 500
    clean, robust = np.arange(images) < 301, np.arange(images) < 144
    (bar,) = accuracies([Run("a", [evaluation(clean.mean(), robust.mean(), clean_weight, images)])], {}).bars
    assert bar.images == images
    assert bar.clean == (pytest.approx(0.602), pytest.approx(clean.std() / images**0.5))
    assert bar.robust == (pytest.approx(0.288), pytest.approx(robust.std() / images**0.5))
    assert bar.w_robust[1] == pytest.approx(weighted_error(clean, robust, clean_weight))


def test_a_model_without_any_gap_between_clean_and_robust_has_errors_too():
    (bar,) = accuracies([Run("a", [evaluation(0.4, 0.4)])], {}).bars
    assert bar.w_robust[1] == pytest.approx(bar.clean[1]) and bar.clean[1] > 0.02


@pytest.mark.parametrize("changes", [{"eval_runtime": None}, {"eval_samples_per_second": 30.0}])
def test_without_a_sure_number_of_images_there_are_no_errors(changes):
    found = accuracies([Run("a", [evaluation(**changes)])], {})
    (bar,) = found.bars
    assert bar.images is None and bar.clean == (0.6, None)
    assert "a unknown" in found.notes[0]


def test_the_last_evaluation_of_the_log_counts():
    log = [evaluation(0.1, 0.05), evaluation(0.6, 0.3), sample_log("clean")[0]]
    found = accuracies([Run("a", log)], {})
    assert found.bars[0].clean[0] == 0.6
    assert "last evaluation in the log" in found.source and "500 images" in found.source


def test_runs_that_were_not_evaluated_are_left_out_with_a_note():
    found = accuracies([sat(), Run("blind", sample_log("clean"))], {})
    assert [bar.name for bar in found.bars] == ["SAT"]
    assert "blind has no report.json and no eval_robust_accuracy" in found.notes[0]
    assert accuracies([Run("blind", sample_log("clean"))], {}).bars == []


def test_reports_of_all_runs_are_used_and_the_strongest_shared_column_is_shown():
    runs = ablation()[:2]
    reports = {run.name: report_of(run.name, seed=seed) for seed, run in enumerate(runs)}
    found = accuracies(runs, reports)
    rows = {column: [report.row(column).robust for report in reports.values()] for column in ("fgsm", "pgd_sat")}
    assert sum(rows["pgd_sat"]) < sum(rows["fgsm"])
    assert [bar.robust[0] for bar in found.bars] == rows["pgd_sat"]
    assert found.bars[0].w_robust[1] == reports["Baseline"].row("pgd_sat").w_robust_error
    assert found.source == "robust under PGD-SAT, L∞ 8/255; 300 images of CIFAR-10 test (evaluation reports)"
    chosen = accuracies(runs, reports, "fgsm")
    assert [bar.robust[0] for bar in chosen.bars] == rows["fgsm"] and "FGSM" in chosen.source


def test_a_run_that_failed_a_check_is_marked():
    (run,) = ablation()[:1]
    found = accuracies([run], {run.name: report_of("x", failed=True)})
    assert found.bars[0].name == "⚠ Baseline"


def test_bars_never_mix_reports_and_logs():
    runs = ablation()[:2]
    found = accuracies(runs, {"Baseline": report_of("x")})
    assert "last evaluation in the log" in found.source
    assert found.notes == [
        "the reports of Baseline are not used, because all bars must mean the same: no report.json for +EBB"
    ]


@pytest.mark.parametrize(
    ("other", "message"),
    [
        ({"count": 200}, "labels"),
        ({"attacks": ("cw_inf",)}, "no column to compare"),
        ({"eps": 4 / 255}, "with the same radius"),
        ({"clean_weight": 0.3}, "clean_weight"),
    ],
)
def test_reports_that_may_not_be_compared_give_way_to_the_logs(other, message):
    runs = ablation()[:2]
    reports = {"Baseline": report_of("x"), "+EBB": report_of("y", seed=1, **other)}
    found = accuracies(runs, reports)
    assert "last evaluation" in found.source and message in found.notes[0]
    with pytest.raises(ValueError, match="--attack pgd_sat"):
        accuracies(runs, reports, "pgd_sat")


def test_attacks_with_other_settings_are_told():
    runs = ablation()[:2]
    reports = {"Baseline": report_of("x"), "+EBB": report_of("y", steps=50)}
    found = accuracies(runs, reports)
    assert "reports" in found.source and "steps 20 and 50" in found.notes[0]


def test_an_attack_that_no_report_has_is_refused_with_those_there_are():
    (run,) = ablation()[:1]
    with pytest.raises(ValueError, match="fgsm, pgd_sat"):
        accuracies([run], {run.name: report_of("x")}, "rays")


@pytest.mark.parametrize("place", ["report.json", "report/report.json", "evaluation/report.json"])
def test_a_report_in_the_runs_directory_is_found(tmp_path, place):
    save_report(report_of("anything"), tmp_path / "run" / place)
    assert find_report(Run("b", [], tmp_path / "run")).model == "anything"


def test_a_report_beside_the_run_is_found_by_the_models_name(tmp_path):
    (tmp_path / "student").mkdir()
    save_report(report_of("other"), tmp_path / "a" / "report.json")
    run = Run("as you like", [], tmp_path / "student")
    assert find_report(run) is None
    save_report(report_of("student"), tmp_path / "b" / "report.json")
    (tmp_path / "c").mkdir()
    (tmp_path / "c" / "report.json").write_text("{}")
    assert find_report(run).model == "student"
    save_report(report_of("student"), tmp_path / "d" / "report.json")
    with pytest.raises(ValueError, match="--reports"):
        find_report(run)
    assert find_report(Run("log alone", [])) is None
