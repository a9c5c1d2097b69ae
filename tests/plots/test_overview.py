import sys

import pytest
from PIL import Image

from bmtard_hooks.plots import plot_balance


def balance_log(count=20, **extra):
    steps = [
        {
            "loss": 1.0,
            "temperature_clean": 1 + 0.1 * step,
            "temperature_robust": 1.0,
            "entropy_clean": 0.1 * step,
            "entropy_robust": 1.5,
            "weight_clean": 0.4,
            "weight_robust": 0.6,
            "relative_loss_clean": 1 / step,
            "relative_loss_robust": 1 / step**0.5,
            "epoch": step / 10,
            "step": step,
            **extra,
        }
        for step in range(1, count + 1)
    ]
    return [*steps, {"eval_loss": 1.0, "epoch": 2.0, "step": count}, {"train_runtime": 1.0, "step": count}]


def colours(path):
    with Image.open(path) as image:
        return {colour for _, colour in image.convert("RGB").getcolors(2**24)}


def test_picture_is_a_legible_png_with_one_colour_per_teacher(tmp_path):
    path = plot_balance(balance_log(), tmp_path / "new" / "balance.png", title="digits")
    assert path == tmp_path / "new" / "balance.png"
    with Image.open(path) as image:
        assert image.format == "PNG"
        assert image.width >= 1000 and image.height >= 700
    assert {(0x00, 0x72, 0xB2), (0xD5, 0x5E, 0x00)} <= colours(path)
    assert (0x00, 0x9E, 0x73) not in colours(path)


def test_a_third_teacher_has_a_third_colour(tmp_path):
    path = plot_balance(balance_log(temperature_texture=3.0, entropy_texture=0.7), tmp_path / "three.png")
    assert (0x00, 0x9E, 0x73) in colours(path)


@pytest.mark.parametrize("missing", ["temperature_", "relative_loss_"])
def test_panels_without_numbers_and_logs_without_epochs_are_drawn(tmp_path, missing):
    entries = [
        {key: value for key, value in entry.items() if not key.startswith(missing) and key != "epoch"}
        for entry in balance_log()
    ]
    assert plot_balance(entries, tmp_path / "part.png").is_file()


@pytest.mark.parametrize("log_history", [[], [{"loss": 1.0, "step": 1}, {"eval_loss": 2.0, "step": 1}]])
def test_a_log_without_balance_is_refused_with_the_methods_that_write_one(tmp_path, log_history):
    with pytest.raises(ValueError, match=rf"none of the {len(log_history)} entries.*bmtard, mtard or baseline"):
        plot_balance(log_history, tmp_path / "empty.png")
    assert not list(tmp_path.iterdir())


def test_trainers_own_log_is_drawn(make_trainer, tmp_path):
    trainer = make_trainer()
    trainer.train()
    assert plot_balance(trainer.state.log_history, tmp_path / "run.png").stat().st_size > 10_000


def test_the_users_backend_is_left_alone(tmp_path, monkeypatch):
    monkeypatch.delitem(sys.modules, "matplotlib.pyplot", raising=False)
    plot_balance([{"weight_clean": 0.5, "step": 1}], tmp_path / "one.png")
    assert "matplotlib.pyplot" not in sys.modules


def test_missing_matplotlib_is_named_with_its_extra(tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "matplotlib.figure", None)
    with pytest.raises(ImportError, match=r"pip install 'bmtard_hooks\[recipes\]'"):
        plot_balance(balance_log(), tmp_path / "none.png")
