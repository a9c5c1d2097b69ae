import sys
from io import BytesIO

import numpy as np
import pytest
from PIL import Image
from sample_report import sample_report, worst_case_report

from bmtard_hooks.evaluation.report import Example
from bmtard_hooks.reporting.drawing import plain
from bmtard_hooks.reporting.example_figure import magnification, magnified
from bmtard_hooks.reporting.figures import MOST_CLASSES, draw_figures, write_figures
from bmtard_hooks.reporting.model_figures import draw_scatter

SMALL = 40


def bare_report(name="A", **changes):
    return sample_report(name, **{"attacks": ("fgsm",), "sweeps": {}, "examples": [], "count": 100, **changes})


def colours(png):
    with Image.open(BytesIO(png)) as image:
        return {colour for _, colour in image.convert("RGB").getcolors(2**24)}


def example(change):
    clean = np.full((3, 4, 4), 100, dtype=np.uint8)
    return Example(0, "fgsm", 0, 1, clean, (clean.astype(int) + change).astype(np.uint8))


def test_one_model_with_everything_gives_legible_pngs(tmp_path):
    paths = write_figures([sample_report()], tmp_path / "new")
    names = ["accuracy_against_eps", "accuracy_against_steps", "per_class", "examples"]
    assert [path.name for path in paths] == [f"{name}.png" for name in names]
    for path in paths:
        with Image.open(path) as image:
            assert image.format == "PNG" and image.width >= 800


def test_several_models_share_curves_and_have_a_scatter():
    reports = [sample_report("A"), bare_report("B", failed=True)]
    pictures = {picture.name: picture for picture in draw_figures(reports, SMALL)}
    expected = {"clean_and_robust", "accuracy_against_eps", "accuracy_against_steps", "per_class_1", "per_class_2"}
    assert set(pictures) == expected | {"examples_1"}
    assert "A clean" in pictures["clean_and_robust"].alt and "⚠ B clean" in pictures["clean_and_robust"].alt
    assert {(0x00, 0x72, 0xB2), (0xD5, 0x5E, 0x00)} <= colours(pictures["clean_and_robust"].png)
    assert (0xD5, 0x5E, 0x00) not in colours(pictures["accuracy_against_eps"].png)  # B has no curve
    assert pictures["per_class_2"].title.startswith("⚠ B")


def test_only_figures_with_data_are_drawn():
    assert [picture.name for picture in draw_figures([bare_report()], SMALL)] == ["per_class"]
    assert [picture.name for picture in draw_figures([bare_report(columns={})], SMALL)] == ["per_class"]
    assert draw_figures([worst_case_report(sweeps={}, examples=[])], SMALL)[0].alt.startswith("ResNet-18")


def test_of_many_classes_the_least_robust_are_shown():
    labels = np.arange(200) % 100
    report = bare_report(count=200, num_classes=100, labels=labels, predictions=labels.copy(), label_names=None)
    (picture,) = draw_figures([report], SMALL)
    assert f"the {MOST_CLASSES} of 100 classes with the lowest robust accuracy" in picture.title


def test_equal_models_and_perfect_accuracies_are_drawn():
    reports = [bare_report("A"), bare_report("B")]
    for report in reports:
        report.predictions[:] = report.labels
        report.outcomes["fgsm"].broken[:] = False
    assert draw_scatter(reports, SMALL).name == "clean_and_robust"


@pytest.mark.parametrize("clean_weight", [0.0, 1.0])
def test_lines_of_equal_w_robust_exist_for_extreme_weights(clean_weight):
    reports = [bare_report(name, seed=seed, clean_weight=clean_weight) for seed, name in enumerate("AB")]
    assert draw_scatter(reports, SMALL).name == "clean_and_robust"


def test_names_are_neither_formulas_nor_hidden_nor_endless():
    names = ["$\\frac{", "_hidden", "x" * 500, "模型 🐸"]
    assert draw_scatter([bare_report(name, seed=seed) for seed, name in enumerate(names)], SMALL).png
    assert draw_figures([bare_report(label_names=names * 3)], SMALL)
    assert plain("$a_b$") == r"\$a_b\$" and plain("_a") == " _a" and len(plain("x" * 500)) < 50


def test_perturbation_is_magnified_around_grey_by_a_whole_factor():
    weak, strong = example(1), example(-8)
    assert magnification([weak, strong]) == 15
    assert magnification([example(0)]) == 1 and magnification([example(150)]) == 1
    np.testing.assert_array_equal(magnified(strong, 15), np.full((3, 4, 4), 128 - 120, dtype=np.uint8))
    np.testing.assert_array_equal(magnified(weak, 15), np.full((3, 4, 4), 128 + 15, dtype=np.uint8))


def test_grey_examples_are_drawn_and_described():
    grey = np.zeros((1, 4, 4), dtype=np.uint8)
    report = bare_report(examples=[Example(3, "pgd_sat", 6, 2, grey, grey + np.uint8(4))])
    picture = draw_figures([report], SMALL)[-1]
    assert "image 3 frog → bird under PGD-SAT" in picture.alt and "31 times as strong" in picture.alt


def test_the_users_backend_is_left_alone(monkeypatch):
    monkeypatch.delitem(sys.modules, "matplotlib.pyplot", raising=False)
    draw_figures([bare_report()], SMALL)
    assert "matplotlib.pyplot" not in sys.modules


def test_missing_matplotlib_is_named_with_its_extra(tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "matplotlib.figure", None)
    with pytest.raises(ImportError, match=r"pip install 'bmtard_hooks\[recipes\]'"):
        write_figures([bare_report()], tmp_path)
    assert not list(tmp_path.iterdir())


def test_no_reports_are_refused(tmp_path):
    with pytest.raises(ValueError, match="at least one"):
        write_figures([], tmp_path)
