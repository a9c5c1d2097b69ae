import math

import pytest
from sample_runs import CLASSES, ablation, sample_log, sat

from bmtard_hooks.plots import Run
from bmtard_hooks.plots.dynamics import (
    draw_balance,
    draw_knowledge_scales,
    draw_relative_losses,
    relative_losses,
    styles_of_runs,
)
from bmtard_hooks.plots.panels import running_mean
from bmtard_hooks.plots.total_loss import draw_total_loss


def lines_of(axes):
    return {line.get_label(): line for line in axes.lines if not line.get_label().startswith("_")}


def text_of(axes):
    return " | ".join([axes.get_title(), *(text.get_text() for text in axes.texts)])


def drawn(draw, runs, **options):
    figure, notes = draw(runs, styles_of_runs(runs), **options)
    return [axes for axes in figure.axes if axes.get_xlabel()], notes


def test_knowledge_scales_have_a_panel_per_run_and_show_how_the_gap_closed():
    panels, notes = drawn(draw_knowledge_scales, [*ablation(), sat()])
    assert len(panels) == 4
    without, with_balance = text_of(panels[0]), text_of(panels[3])
    assert without == "Baseline | temperatures constant, gap 1.2 → 1.2 nats"
    assert with_balance.startswith("B-MTARD | temperatures moved, gap 0.982 → 0.00988 nats")
    assert notes == ["not in figure_knowledge_scale, for want of a logged knowledge scale: SAT"]
    values = lines_of(panels[3])["clean"].get_ydata()
    assert list(values) == [entry["knowledge_scale_clean"] for entry in ablation()[3].log[:-1]]


def test_entropies_stand_on_the_right_at_ln_c_minus_the_knowledge_scale():
    panels, _ = drawn(draw_knowledge_scales, ablation()[:1])
    (right,) = panels[0].child_axes
    panels[0].figure.draw_without_rendering()
    for entropy in (0.8, 1.9):
        height = panels[0].transData.transform((0, math.log(CLASSES) - entropy))[1]
        assert right.transData.transform((0, entropy))[1] == pytest.approx(height, abs=0.1)  # pixels


def test_relative_losses_are_taken_from_the_log_where_the_balance_recorded_them():
    run = ablation()[2]
    lines, computed, _ = relative_losses(run)
    assert computed == set()
    assert lines["robust"].values[0] == run.log[0]["relative_loss_robust"] != 1


def test_relative_losses_of_other_runs_are_relative_to_the_first_logged_value_and_say_so():
    run = ablation()[0]
    lines, computed, _ = relative_losses(run)
    assert computed == {"clean", "robust"}
    logged = [entry["loss_robust"] for entry in run.log[:-1]]
    assert lines["robust"].values == pytest.approx([value / logged[0] for value in logged])
    panels, _ = drawn(draw_relative_losses, ablation())
    labels = [axes.get_ylabel() for axes in panels]
    assert labels == ["loss / first logged loss"] * 2 + ["loss / loss at first step"] * 2


def test_a_part_that_is_not_balanced_is_drawn_and_named_as_relative_to_the_log():
    run = Run("igdm", sample_log("clean", "robust", "robust_l2", loss_igdm=2.0, weight_igdm=1.0))
    (panel,), _ = drawn(draw_relative_losses, [run])
    assert sorted(lines_of(panel)) == ["clean", "igdm", "robust", "robust_l2"]
    assert "igdm: relative to the first logged value" in text_of(panel)


def test_runs_without_a_second_loss_part_or_with_a_first_loss_of_zero_are_left_out():
    zero = Run("zero", [{**entry, "loss_score": 0.0} for entry in sample_log("robust", balance_losses=False)])
    figure, notes = draw_relative_losses([sat(), zero], styles_of_runs([sat(), zero]))
    assert figure is None
    assert notes == [
        "zero: the first logged score loss is 0, nothing can be relative to it",
        "not in figure_relative_loss, for want of a second loss part: SAT, zero",
    ]


def test_losses_that_fell_far_have_a_logarithmic_axis():
    near = Run("near", sample_log("clean", "robust", count=8))
    assert drawn(draw_relative_losses, [near])[0][0].get_yscale() == "linear"
    far = Run("far", sample_log("clean", "robust", count=60))
    panels, _ = drawn(draw_relative_losses, [*ablation(), far])
    assert {axes.get_yscale() for axes in panels} == {"log"}


def test_balance_has_temperatures_on_the_left_and_weights_on_the_right():
    weights_only = Run("TRADES", [{"weight_clean": 1.0, "weight_robust": 6.0, "epoch": e, "step": e} for e in (1, 2)])
    panels, notes = drawn(draw_balance, [ablation()[3], weights_only, sat()])
    assert [axes.get_ylabel() for axes in panels] == ["temperature", "weight of the loss"] * 2
    assert lines_of(panels[0])["clean"].get_ydata()[-1] == pytest.approx(3.4)
    assert "not logged" in text_of(panels[2]) and lines_of(panels[3])["robust"].get_ydata()[0] == 6
    assert notes == ["not in figure_balance, for want of a logged temperature or weight: SAT"]


def test_series_per_class_are_drawn_as_a_band():
    classes = {f"temperature_robust_{label}": 1 + label / 10 for label in range(10)}
    panels, _ = drawn(draw_balance, [Run("ABSLD", sample_log("robust", **classes))])
    assert list(lines_of(panels[0])) == ["robust", "robust per class (mean, range)"]
    assert len(panels[0].collections) == 1


def test_a_teacher_keeps_its_style_whatever_else_is_drawn():
    few = styles_of_runs(ablation())
    many = styles_of_runs([Run("x", sample_log("aaa", "clean", "robust", "robust_l2", loss_igdm=1.0))])
    assert all(many[name] == few[name] for name in few)
    assert len(set(many.values())) == len(many) == 5


@pytest.mark.parametrize("count", [4, 24, 200])
def test_lines_that_lie_on_each_other_show_both_markers(count):
    still = sample_log("clean", "robust", count=count, move_temperatures=False, balance_losses=False)
    panels, _ = drawn(draw_balance, [Run("Baseline", still)])
    clean, robust = lines_of(panels[1]).values()
    assert list(clean.get_ydata()) == list(robust.get_ydata())
    assert clean.get_markevery() != robust.get_markevery()


def test_raw_points_are_drawn_unless_smoothing_is_asked_for():
    run = ablation()[2]
    (raw,), _ = drawn(draw_relative_losses, [run])
    (smooth,), _ = drawn(draw_relative_losses, [run], smooth=4)
    assert list(lines_of(raw)["clean"].get_ydata()) == relative_losses(run)[0]["clean"].values
    assert list(lines_of(smooth)["clean"].get_ydata()) == running_mean(relative_losses(run)[0]["clean"].values, 4)
    assert len(smooth.lines) == len(raw.lines) + 2


def test_running_mean_knows_nothing_of_what_comes_later():
    assert running_mean([2, 4, 6, 8], 2) == [2, 3, 5, 7]


def test_steps_are_on_the_axis_if_one_run_has_no_epochs():
    old = Run("old", [{key: value for key, value in entry.items() if key != "epoch"} for entry in ablation()[0].log])
    panels, _ = drawn(draw_balance, [ablation()[3], old])
    assert {axes.get_xlabel() for axes in panels} == {"optimizer step"}
    assert lines_of(panels[0])["clean"].get_xdata()[-1] == 240


def test_total_loss_is_a_line_per_run_without_evaluations_and_what_is_not_finite():
    log = [
        {"loss": 3.0, "epoch": 1.0},
        {"eval_loss": 9.0, "epoch": 1.0},
        {"loss": math.nan, "epoch": 2.0},
        {"loss": 1.5, "epoch": 3.0},
    ]
    runs = [Run("a", log), Run("b", [{**entry, "loss": 1.0} for entry in log]), Run("silent", log[:1])]
    figure, notes = draw_total_loss(runs, {})
    lines = {line.get_label(): (list(line.get_xdata()), list(line.get_ydata())) for line in figure.axes[0].get_lines()}
    assert lines["a"] == ([1, 3], [3.0, 1.5]) and lines["b"][1] == [1.0] * 4
    assert notes == ["not in figure_total_loss, for want of a logged loss: silent"]
