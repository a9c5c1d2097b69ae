import json

import pytest
import torch
from datasets import ClassLabel, Dataset, DatasetDict, Features, Image
from PIL import Image as PillowImage

from bmtard_hooks import create_model
from bmtard_hooks.cli import main


@pytest.fixture(scope="module")
def files(tmp_path_factory):
    """Two saved models and a data set in the hub's layout."""
    root = tmp_path_factory.mktemp("cli")
    names = ["ant", "bee", "cat"]
    generator = torch.Generator().manual_seed(0)
    with torch.random.fork_rng():
        torch.manual_seed(0)
        for name in ("clean", "robust"):
            model = create_model("resnet8_cifar", 3, mean=[0.5] * 3, std=[0.25] * 3)
            model.backbone.save_pretrained(root / name)
    images = [torch.randint(0, 256, (32, 32, 3), generator=generator, dtype=torch.uint8).numpy() for _ in range(12)]
    features = Features({"img": Image(), "label": ClassLabel(names=names)})
    rows = {"img": [PillowImage.fromarray(image) for image in images], "label": [index % 3 for index in range(12)]}
    (root / "data").mkdir()
    for split in ("train", "test"):
        DatasetDict({split: Dataset.from_dict(rows, features=features)})[split].to_parquet(
            root / "data" / f"{split}.parquet"
        )
    return root


def run(*words):
    return main([str(word) for word in words])


def evaluate(files, output, *more, model="clean"):
    return run(
        "evaluate", "--model", files / model, "--dataset", files / "data", "--output_dir", output, "--device", "cpu",
        "--check_images", "4", *more,
    )  # fmt: skip


def test_evaluate_writes_a_report_and_goes_on_where_it_was(files, tmp_path, capsys):
    assert evaluate(files, tmp_path / "a", "--attacks", "fgsm", "square:queries=8", "--eps", "4/255") == 0
    shown = capsys.readouterr().out
    assert "FGSM" in shown and "W-Robust" in shown
    content = json.loads((tmp_path / "a" / "report.json").read_text())
    assert content["schema_version"] == 1
    for name in ("report.md", "report.html", "figures", "state"):
        assert (tmp_path / "a" / name).exists()
    assert "4/255" in (tmp_path / "a" / "report.md").read_text()
    kept = {path: path.stat().st_mtime_ns for path in (tmp_path / "a" / "state").glob("*.npz")}
    assert kept and evaluate(files, tmp_path / "a", "--attacks", "fgsm", "square:queries=8", "--eps", "4/255") == 0
    assert kept == {path: path.stat().st_mtime_ns for path in (tmp_path / "a" / "state").glob("*.npz")}


def test_report_puts_models_side_by_side_and_compares_them(files, tmp_path, capsys):
    for model in ("clean", "robust"):
        words = ("--attacks", "fgsm", "--checks", "false", "--name", f"the {model} one")
        assert evaluate(files, tmp_path / model, *words, model=model) == 0
    capsys.readouterr()
    assert (
        run("report", tmp_path / "clean", tmp_path / "robust" / "report.json", "--output_dir", tmp_path / "both") == 0
    )
    shown = capsys.readouterr().out
    assert "the clean one" in shown and "the robust one" in shown and "McNemar" in shown
    assert "the robust one" in (tmp_path / "both" / "report.html").read_text()


def test_preview_prints_the_knowledge_scales_of_two_teachers(files, capsys):
    words = ("--dataset", files / "data", "--split", "test", "--device", "cpu")
    assert run("preview", "--clean_teacher", files / "clean", "--robust_teacher", files / "robust", *words) == 0
    assert "knowledge scale" in capsys.readouterr().out


def test_train_then_plot(files, tmp_path, capsys):
    words = (
        "train", "--student", "resnet8_cifar", "--dataset", files / "data", "--validation_images", "4", "--method",
        "baseline", "--clean_teacher", files / "clean", "--robust_teacher", files / "robust", "--output_dir",
        tmp_path / "student", "--steps", "1", "--eval_attack_steps", "1", "--num_train_epochs", "1", "--logging_steps",
        "1", "--per_device_train_batch_size", "4", "--eval_strategy", "epoch", "--disable_tqdm", "true", "--report_to",
        "none",
    )  # fmt: skip
    assert run(*words) == 0
    shown = capsys.readouterr().out
    assert "| clean teacher " in shown and "| baseline " in shown
    assert (tmp_path / "student" / "config.json").is_file()
    assert run("plot", tmp_path / "student", "--output_dir", tmp_path / "figures", "--format", "svg") == 0
    shown = capsys.readouterr().out
    assert "| student | clean " in shown and "first logged value" in shown
    names = ["ablation", "balance", "knowledge_scale", "relative_loss", "total_loss"]
    assert sorted(path.name for path in (tmp_path / "figures").iterdir()) == [f"figure_{name}.svg" for name in names]
    assert run(*words) == 2
    assert "bmtard train: " in capsys.readouterr().err


def write_log(directory, name, **numbers):
    entry = {"loss": 1.0, "loss_clean": 1.0, "epoch": 1.0, "step": 5, **numbers}
    (directory / name).mkdir(parents=True)
    (directory / name / "trainer_state.json").write_text(json.dumps({"global_step": 5, "log_history": [entry]}))
    return directory / name


MEASURED = {"eval_clean_accuracy": 0.6, "eval_robust_accuracy": 0.3, "eval_w_robust": 0.45}


def test_plot_takes_names_and_reports_in_the_order_of_the_runs(files, tmp_path, capsys):
    for model in ("clean", "robust"):
        assert evaluate(files, tmp_path / f"of_{model}", "--attacks", "fgsm", "--checks", "false", model=model) == 0
    runs = [write_log(tmp_path, name) for name in ("one", "two")]
    capsys.readouterr()
    words = ("--output_dir", tmp_path / "figures", "--names", "B-MTARD", "SAT")
    reports = ("--reports", tmp_path / "of_clean", tmp_path / "of_robust" / "report.json", "--attack", "fgsm")
    assert run("plot", *runs, *words, *reports, "--format", "svg") == 0
    shown = capsys.readouterr().out
    assert f"Written: {tmp_path / 'figures' / 'figure_ablation.svg'}" in shown and "for want of" in shown
    assert "| B-MTARD | clean" in shown and "| SAT     | clean" in shown
    content = (tmp_path / "figures" / "figure_ablation.svg").read_text()
    assert all(word in content for word in ("<!-- B-MTARD -->", "<!-- SAT -->", "FGSM", "reports)"))
    assert run("plot", *runs, *words, "--reports", tmp_path / "of_clean", "-") == 2
    assert "nothing to draw" in capsys.readouterr().err


def test_plot_uses_no_report_where_several_name_one_model(files, tmp_path, capsys):
    words = ("--attacks", "fgsm", "--checks", "false", "--name", "one")
    for place in ("a", "b"):
        assert evaluate(files, tmp_path / place, *words) == 0
    drawn = ("plot", write_log(tmp_path, "one", **MEASURED), "--output_dir", tmp_path / "figures")
    assert run(*drawn) == 0
    shown = capsys.readouterr().out
    assert "- several reports name this model, and none is used: " in shown and "say which with --reports" in shown
    assert (tmp_path / "figures" / "figure_ablation.png").is_file()  # from the log
    assert run(*drawn, "--reports", tmp_path / "a") == 0
    assert "several reports" not in capsys.readouterr().out


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["nowhere"], "nowhere does not exist"),
        (["{a}", "--names", "x", "y"], "--names has 2 values for 1 runs"),
        (["{a}", "{b}", "--names", "x", "x"], "a name of its own"),
        (["{a}", "{a}"], "given twice"),
        (["{a}", "--attack", "rays"], "--attack rays: no report.json for a"),
        (["{a}", "--smooth", "0"], "smooth=0"),
        (["{b}"], "nothing to draw: b has no report.json"),
    ],
)
def test_mistakes_of_plot_end_in_one_line_and_status_2(tmp_path, capsys, words, message):
    places = {"a": write_log(tmp_path, "a", **MEASURED), "b": write_log(tmp_path, "b")}
    assert run("plot", *[word.format(**places) for word in words], "--output_dir", tmp_path / "figures") == 2
    assert message in capsys.readouterr().err
    assert not (tmp_path / "figures").exists()


def test_a_report_of_a_newer_version_is_refused_by_name(files, tmp_path, capsys):
    assert evaluate(files, tmp_path / "a", "--attacks", "fgsm", "--checks", "false") == 0
    path = tmp_path / "a" / "report.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), "schema_version": 99}))
    assert run("report", path, "--output_dir", tmp_path / "both") == 2
    assert "99" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["evaluate"], "missing --model, --output_dir"),
        (["evaluate", "--model", "{clean}", "--output_dir", "{tmp}", "--dataset", "{data}", "--eps", "8"], "8/255"),
        (["evaluate", "--model", "resnet9_cifar", "--output_dir", "{tmp}", "--dataset", "{data}"], "resnet8_cifar"),
        (
            ["evaluate", "--model", "resnet8_cifar", "--output_dir", "{tmp}", "--dataset", "none"],
            "pass --checkpoint FILE",
        ),
        (
            ["evaluate", "--model", "{clean}", "--surrogate", "resnet8_cifar", "--output_dir", "{tmp}"],
            "--surrogate resnet8_cifar is an architecture without weights: pass --surrogate_checkpoint FILE, or a saved",
        ),
        (
            ["preview", "--clean_teacher", "{clean}", "--robust_teacher", "resnet8_cifar", "--dataset", "none"],
            "pass --robust_teacher_checkpoint FILE, or a saved directory",
        ),
        (
            ["evaluate", "--model", "out_trainx", "--output_dir", "{tmp}", "--dataset", "{data}"],
            "is neither a directory",
        ),
        (
            ["evaluate", "--model", "{clean}", "--output_dir", "{tmp}", "--dataset", "{data}", "--attacks", "pgdd"],
            "unknown attack",
        ),
        (["preview", "--clean_teacher", "x"], "missing --robust_teacher"),
        (["report", "nowhere.json", "--output_dir", "{tmp}"], "nowhere.json"),
        (
            ["train", "--dataset", "{data}", "--output_dir", "{tmp}", "--validation_images", "4"],
            "missing: clean, robust. Pass clean_teacher=… and",
        ),
        (["measure"], "unknown command 'measure'"),
    ],
)
def test_mistakes_end_in_one_line_and_status_2(files, tmp_path, capsys, words, message):
    places = {"data": files / "data", "clean": files / "clean", "tmp": tmp_path / "out"}
    assert run(*[word.format(**places) for word in words]) == 2
    assert message in capsys.readouterr().err


def test_help_lists_the_commands(capsys):
    assert main([]) == 0 and main(["--help"]) == 0 and main(["--version"]) == 0
    shown = capsys.readouterr().out
    assert all(command in shown for command in ("train", "evaluate", "report", "plot", "preview"))
