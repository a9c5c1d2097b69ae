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
    DatasetDict({"test": Dataset.from_dict(rows, features=features)})["test"].to_parquet(
        root / "data" / "test.parquet"
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
        (["evaluate", "--model", "x", "--output_dir", "y", "--dataset", "{data}", "--eps", "wide"], "8/255"),
        (["evaluate", "--model", "resnet9_cifar", "--output_dir", "{tmp}", "--dataset", "{data}"], "resnet8_cifar"),
        (
            ["evaluate", "--model", "{clean}", "--output_dir", "{tmp}", "--dataset", "{data}", "--attacks", "pgdd"],
            "unknown attack",
        ),
        (["preview", "--clean_teacher", "x"], "missing --robust_teacher"),
        (["report", "nowhere.json", "--output_dir", "{tmp}"], "nowhere.json"),
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
    assert all(command in shown for command in ("evaluate", "report", "preview"))
