"""Command lines of `bmtard evaluate`, `report`, `preview` and `plot` that cannot work, and files that are no results."""

import json

import pytest
from refusing import EXIT, Row, refused, table
from small_world import save_world

from bmtard_hooks.cli import main
from bmtard_hooks.evaluation.evaluator import evaluate_robustness


@pytest.fixture(scope="module")
def world(tmp_path_factory):
    return save_world(tmp_path_factory.mktemp("world"))


def line(name, words, received, allowed, fix):
    """A row for any command."""

    def do(scene):
        return main([word.format(files=scene.files, out=scene.path / "out") for word in words.split()])

    return Row(name, do, received, allowed, fix, EXIT)


EVALUATE = "evaluate --model {files}/clean --dataset {files}/data --output_dir {out} --device cpu --attacks fgsm --checks false "
SETTING = EVALUATE + "--attacks "
UNSET, HELP = "unset HF_HUB_OFFLINE", "--help"
LOAD = "is no directory here, nor a hub id that can be read"


@table(
    line("no options", "evaluate", "missing --model, --output_dir", "pass a value for each", HELP),
    line("unknown option", EVALUATE + "--atacks fgsm", "unknown option --atacks", "did you mean --attacks", HELP),
    line("eps of words", EVALUATE + "--eps wide", "'wide' is no number", "such as 0.031", "a fraction such as 8/255"),
    line("eps by 0", EVALUATE + "--eps 8/0", "'8/0' is no number", "such as 0.031", "a fraction such as 8/255"),
    line("eps of 8", EVALUATE + "--eps 8", "eps=8.0", "(0, 1]", "pass 8/255"),
    line("negative eps", EVALUATE + "--eps=-1/255", "eps=-0.0039", "a positive number", "8/255"),
    line("eps of NaN", EVALUATE + "--eps nan", "eps=nan", "a positive number", "8/255"),
    line("norm", EVALUATE + "--norm l7", "norm='l7'", "linf, l2", "choose one of"),
    line("mode", EVALUATE + "--mode fast", "mode='fast'", "columns, worst_case", "choose one of"),
    line("batch of none", EVALUATE + "--batch_size 0", "batch_size=0", "1 or more", "pass a whole number"),
    line("weight", EVALUATE + "--clean_weight 1.5", "clean_weight=1.5", "[0, 1]", "the robust weight is the rest"),
    line(
        "weight of NaN", EVALUATE + "--clean_weight nan", "clean_weight=nan", "[0, 1]", "the robust weight is the rest"
    ),
    line("no check images", EVALUATE + "--check_images 0", "check_images=0", "1 or more", "pass a whole number"),
    line("no such kind of device", EVALUATE + "--device tpu", "--device tpu", "cpu, cuda or cuda:0", "pass"),
    line("no such device", EVALUATE + "--device cuda:99", "--device cuda:99", "cpu, cuda or cuda:0", "pass"),
    line("no attacks", SETTING, "--attacks", "at least one argument", HELP),
    line("unknown attack", SETTING + "pgdd", "'pgdd'", "unknown attack", "did you mean apgd"),
    line("nothing like an attack", SETTING + "zzzz", "'zzzz'", "choose from fgsm", "unknown attack"),
    line("unknown setting", SETTING + "pgd_sat:stepz=3", "'stepz'", "did you mean steps", "pgd_sat"),
    line(
        "setting of a kind", SETTING + "pgd_sat:steps=many", "steps=many", "a whole number", "as in pgd_sat:steps=20"
    ),
    line("setting of a truth", SETTING + "square:rescale_schedule=so", "=so", "true or false", "as in square:"),
    line("setting without value", SETTING + "pgd_sat:steps", "'pgd_sat:steps'", "setting=value", "write settings as"),
    line("setting twice", SETTING + "pgd_sat:steps=1,steps=2", "steps is set twice", "expected once", "delete one"),
    line("setting out of range", SETTING + "pgd_sat:steps=-1", "steps=-1", "a number of steps", "pass 0"),
    line("setting of NaN", SETTING + "pgd_sat:eps=nan", "eps=nan", "a positive number", "8/255"),
    line("settings of a list", SETTING + "paper:steps=3", "'paper:steps=3'", "a list of attacks", "to each of them"),
    line("transfer from nothing", SETTING + "transfer_pgd", "transfer_pgd", "a model", "pass surrogate="),
    line("attack in another norm", SETTING + "rays --norm l2", "norm='l2'", "rays knows linf", "leave it out"),
    line("no such split", EVALUATE + "--split tset", "no split 'tset'", "train, test", "pass --split"),
    line("negative limit", EVALUATE + "--limit -3", "limit=-3", "a positive number", "or None for all"),
    line("size of 0", EVALUATE + "--image_size 0", "--image_size 0", "1 or more", "or leave it out"),
    line("negative size", EVALUATE + "--image_size -5", "--image_size -5", "1 or more", "or leave it out"),
    line("no such model", EVALUATE + "--model ./none", "./none", "a directory with a saved model", "config.json"),
    line("model of a hub", EVALUATE + "--model some/model", "'some/model'", LOAD, UNSET),
    line("surrogate of a hub", EVALUATE + "--surrogate some/model", "'some/model'", LOAD, UNSET),
    line("no checkpoint", EVALUATE + "--checkpoint none.pt", "none.pt does not exist", "checkpoint", "looked in"),
    line("no such data", EVALUATE + "--dataset ./none", "--dataset ./none", "a local directory", UNSET),
    line("output in a file", EVALUATE + "--output_dir {files}/note.txt", "is a file", "a directory", "pass another"),
    line(
        "output below a file", EVALUATE + "--output_dir {files}/note.txt/a", "is a file", "a directory", "pass another"
    ),
)
def test_line_of_bmtard_evaluate_is_refused(row, request, world):
    refused(row, request, world)


PREVIEW = "preview --dataset {files}/data --device cpu --clean_teacher {files}/clean --robust_teacher {files}/robust "


@table(
    line("unknown command", "evalute", "'evalute'", "did you mean", "bmtard evaluate"),
    line("nothing like a command", "zzzz", "'zzzz'", "the commands are train, evaluate", "usage: bmtard COMMAND"),
    line("no teachers", "preview", "missing --clean_teacher, --robust_teacher", "pass a value for each", HELP),
    line(
        "temperature of 0",
        PREVIEW + "--clean_temperature 0",
        "temperature 0.0",
        "[1.0, 10.0]",
        "move it or the bounds",
    ),
    line("temperature of NaN", PREVIEW + "--clean_temperature nan", "temperature nan", "[1.0, 10.0]", "move it"),
    line("preview on a tpu", PREVIEW + "--device tpu", "--device tpu", "cpu, cuda or cuda:0", "pass"),
    line("preview of none", PREVIEW + "--limit 0", "limit=0", "a positive number", "or None for all"),
    line("preview of a hub", PREVIEW + "--clean_teacher a/b", "clean teacher 'a/b'", LOAD, UNSET),
    line("plot of nothing", "plot --output_dir {out}", "RUN", "required", "usage: bmtard plot"),
    line("plot as a bitmap", "plot x --output_dir {out} --format bmp", "'bmp'", "choose from", "svg"),
    line("plot of words", "plot x --output_dir {out} --smooth a", "'a'", "int", "usage: bmtard plot"),
    line("plot of nowhere", "plot none --output_dir {out}", "none does not exist", "output_dir of a run", "pass the"),
    line(
        "plot of no run",
        "plot {files}/empty --output_dir {out}",
        "empty has neither",
        "trainer_state.json",
        "save_state()",
    ),
    line(
        "plot of a text", "plot {files}/note.txt --output_dir {out}", "note.txt", "not a JSON file", "or a damaged one"
    ),
    line("reports for runs", "plot x --output_dir {out} --reports a b", "2 values for 1 runs", "one per run", "pass"),
    line("plot into a file", "plot x --output_dir {files}/note.txt", "is a file", "a directory", "pass another"),
    line("report of nothing", "report --output_dir {out}", "reports", "required", "usage: bmtard report"),
    line("report to nowhere", "report x", "--output_dir", "required", "usage: bmtard report"),
    line(
        "report of nowhere", "report none.json --output_dir {out}", "none.json", "does not exist", "pass report.json"
    ),
    line(
        "report of no report", "report {files}/empty --output_dir {out}", "empty/report.json", "does not exist", "pass"
    ),
    line(
        "report of a text",
        "report {files}/note.txt --output_dir {out}",
        "note.txt",
        "not a JSON file",
        "evaluate again",
    ),
    line("report into a file", "report x --output_dir {files}/note.txt", "is a file", "a directory", "pass another"),
    line("report with more", "report x --output_dir {out} --foo", "--foo", "unrecognized", "usage: bmtard report"),
)
def test_line_of_another_command_is_refused(row, request, world):
    refused(row, request, world)


def written(name, content, received, allowed, fix, command="report"):
    """A row with a JSON file, which is put back into the row's directory only while it is read."""

    def do(scene):
        path = scene.path / "cwd" / "trainer_state.json"
        path.write_text(content if isinstance(content, str) else json.dumps(content))
        try:
            return main([command, str(path), "--output_dir", str(scene.path / "out")])
        finally:
            path.unlink()

    return Row(name, do, received, allowed, fix, EXIT)


REPORT = {"kind": "bmtard_hooks robustness report", "schema_version": 1}


@table(
    written("half a report", '{"kind": "bmtard', "trainer_state.json", "not a JSON file", "evaluate again"),
    written(
        "no report", {"kind": "other"}, "trainer_state.json", "expected a JSON object with kind", "robustness report"
    ),
    written("a list", [1, 2], "trainer_state.json", "expected a JSON object", "robustness report"),
    written(
        "version of words", {**REPORT, "schema_version": "1"}, "schema_version '1'", "from 1 to 1", "whole number"
    ),
    written(
        "version to come", {**REPORT, "schema_version": 99}, "schema_version 99", "reads up to 1", "pip install -U"
    ),
    written("an empty report", REPORT, "trainer_state.json", "damaged robustness report", "is missing"),
    written("NaN in a report", '{"kind": NaN}', "NaN", "not a JSON file", "evaluate again"),
    written("half a log", '{"log_history": [', "trainer_state.json", "not a JSON file", "damaged", "plot"),
    written("a log of words", {"log_history": "x"}, "trainer_state.json", "log_history", "", "plot"),
)
def test_file_that_is_no_result_is_refused(row, request):
    refused(row, request)


def test_settings_of_an_evaluation_are_refused_before_the_model_is_asked():
    def never(pixels):
        raise AssertionError("asked")

    with pytest.raises(ValueError, match=r"mode='fast' is unknown: choose one of columns, worst_case"):
        evaluate_robustness(never, [], "fgsm", mode="fast")
