import pytest
from matplotlib.container import BarContainer
from PIL import Image
from sample_runs import ablation, evaluation, sample_log, sat

from bmtard_hooks.plots import Run, last_values, load_run, plot_runs
from bmtard_hooks.plots.ablation import draw_ablation
from bmtard_hooks.plots.accuracies import accuracies

FIGURES = ["figure_ablation", "figure_total_loss", "figure_knowledge_scale", "figure_relative_loss", "figure_balance"]


def test_five_figures_of_an_ablation_are_written(tmp_path):
    written = plot_runs(ablation()[::3], tmp_path / "new")
    assert [path.name for path in written.paths] == [f"{name}.png" for name in FIGURES]
    assert sorted(tmp_path.joinpath("new").iterdir()) == sorted(written.paths)
    for path in written.paths:
        with Image.open(path) as image:
            assert image.format == "PNG" and image.width > 1000
    assert written.notes == []


@pytest.mark.parametrize(("kind", "beginning"), [("pdf", b"%PDF"), ("svg", b"<?xml")])
def test_vector_formats_are_the_same_bytes_every_time(tmp_path, kind, beginning):
    first, second = (plot_runs([sat()], tmp_path / name, kind=kind).paths for name in "ab")
    assert [path.name for path in first] == [f"figure_ablation.{kind}"]
    assert first[0].read_bytes() == second[0].read_bytes() and first[0].read_bytes().startswith(beginning)


def test_what_a_run_lacks_is_left_out_with_a_note(tmp_path):
    written = plot_runs([sat(), Run("blind", sample_log("clean", "robust"))], tmp_path)
    assert len(written.paths) == 5
    assert len(written.notes) == 5 and written.notes[0].startswith("blind has no report.json")
    assert all("SAT" in note for note in written.notes[1:])


def test_nothing_to_draw_is_an_error_that_names_what_is_missing(tmp_path):
    with pytest.raises(ValueError, match="nothing to draw: .*knowledge scale: natural.*BMTARDTrainer"):
        plot_runs([Run("natural", [{"loss": 1.0, "loss_clean": 1.0, "epoch": 1.0, "step": 5}])], tmp_path / "out")
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize(("options", "message"), [({"kind": "gif"}, "png, pdf, svg"), ({"smooth": 0}, "smooth=0")])
def test_bad_options_are_refused(tmp_path, options, message):
    with pytest.raises(ValueError, match=message):
        plot_runs(ablation(), tmp_path, **options)


def test_bars_have_the_heights_and_the_errors_of_the_numbers():
    shown = accuracies([sat(), Run("no images", [evaluation(0.7, 0.4, eval_runtime=None)])], {})
    figure = draw_ablation(shown)
    (axes,) = figure.axes
    bars = [container for container in axes.containers if isinstance(container, BarContainer)]
    heights = [[round(bar.get_height(), 6) for bar in group.patches] for group in bars]
    assert heights == [[50, 70], [35, 40], [42.5, 55]]
    assert len(axes.containers) - len(bars) == 3  # errors those of the run whose images are known
    assert "where known" in axes.get_xlabel().replace("\n", " ")
    assert [label.get_text() for label in axes.get_xticklabels()] == ["SAT", "no images"]


def test_last_values_are_tabulated_and_say_which_are_relative_to_the_log():
    table = last_values([ablation()[0], ablation()[3], sat()])
    rows = {(row[0], row[1]): row[2:] for row in table.rows}
    assert rows["B-MTARD", "clean"][:4] == ["3.4", "0.5757", "1.89", "0.4125"]
    assert rows["Baseline", "clean"][4].endswith("*") and not rows["B-MTARD", "clean"][4].endswith("*")
    assert rows["SAT", "robust"] == ["—", "—", "—", "—", "1*"]
    assert "first logged value" in table.caption
    assert last_values([ablation()[3]]).caption == ""


def test_names_that_matplotlib_would_read_as_formulas_are_drawn(tmp_path):
    odd = [Run(name, sat().log) for name in ("_hidden", r"$\frac{", "x" * 80)]
    assert len(plot_runs(odd, tmp_path).paths) == 1


def test_runs_of_the_trainer_are_drawn(make_trainer, tmp_path):
    kinds = {
        "ebb": {"method": "baseline", "entropy_balance": True},
        "mtard": {"method": "mtard"},
        "sat": {"method": "sat"},
    }
    for name, options in kinds.items():
        trainer = make_trainer(
            output_dir=str(tmp_path / name),
            max_steps=2,
            eval_strategy="steps",
            eval_steps=2,
            save_strategy="steps",
            **options,
        )
        trainer.train()
    runs = [load_run(tmp_path / name) for name in kinds]
    written = plot_runs(runs, tmp_path / "figures")
    assert [path.stem for path in written.paths] == FIGURES
    assert len(written.notes) == 3 and all(note.endswith(": sat") for note in written.notes)
    assert [bar.images for bar in accuracies(runs, {}).bars] == [10] * 3
