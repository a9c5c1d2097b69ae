"""Files of options that are no YAML, hold something else, or lead nowhere."""

import pytest
from refusing import EXIT, Row, refused, table

from bmtard_hooks import BMTARDConfig
from bmtard_hooks.arguments import DataArguments, parse
from bmtard_hooks.cli import main


def yaml(name, content, received, allowed, fix):
    """A row with a file, read by `bmtard train`."""

    def do(scene):
        path = scene.path / "cwd" / "run.yaml"
        path.write_bytes(content if isinstance(content, bytes) else content.encode())
        try:
            return main(["train", "--config", str(path), "--output_dir", str(scene.run)])
        finally:
            path.unlink()

    return Row(name, do, received, allowed, fix, EXIT)


LINES = "`option: value` lines"
HELP = "--help says what each option takes"


@table(
    yaml("NaN", "eps: .nan", "eps=nan", "a finite number", "0.0313"),
    yaml("infinity", "learning_rate: .inf", "learning_rate=inf", "a finite number", "0.1"),
    yaml("infinity as a word", "learning_rate: inf", "learning_rate=inf", "a finite number", "0.1"),
    yaml("an option twice", "eps: 0.1\neps: 0.2", "line 2, column 1: option 'eps'", "expected once", "delete one"),
    yaml("a tab", "eps:\t0.1\n\tsteps: 3", "'\\t'", LINES, "indented with spaces"),
    yaml("bytes", bytes(range(256)), "byte 128 is 0x80", "UTF-8", "save it as UTF-8"),
    yaml("UTF-16", "steps: 1".encode("utf-16"), "byte 0 is 0xff", "UTF-8", "save it as UTF-8"),
    yaml(
        "a list for a number", "trades_beta: [1, 2]", "trades_beta is the list [1, 2]", "expected one value", "write"
    ),
    yaml("a mapping for a number", "trades_beta: {a: 1}", '{"a": 1}', "no number", HELP),
    yaml("nothing for a number", "trades_beta: ''", "''", "no number", HELP),
    yaml("words for numbers", "lr_milestones: [a]", "'a'", "no number", HELP),
    yaml("a date for a number", "seed: 2024-01-01", "2024-01-01", "int", HELP),
    yaml("a truth for a number", "seed: true", "'True'", "int", HELP),
    yaml("a fraction of nothing", "eps: 8/0", "8/0", "no number", HELP),
    yaml("a word for a truth", "eval_attack: maybe", "maybe", "yes/no, true/false", HELP),
    yaml("a list of lines", "- eps: 1", "it holds a list", LINES, "must hold"),
    yaml("a word", "eps", "it holds a str", LINES, "must hold"),
    yaml("an object", "!!python/object/apply:os.system [ls]", "python/object/apply", LINES, "Expected"),
    yaml("an open bracket", "lr_milestones: [1, 2", "<stream end>", "expected ',' or ']'", LINES),
    yaml("two documents", "steps: 1\n---\nsteps: 2", "another document", "line 2", LINES),
    yaml("an unknown option", "temprature_rate: 0.1", "'temprature_rate'", "did you mean", "temperature_rate"),
    yaml("a number as an option", "5: 1", "unknown option 5", "run.yaml", "unknown option"),
    yaml("a number to include", "include: 5", "include is 5", "a path or a list of paths", "relative to this file"),
    yaml("itself to include", "include: run.yaml", "in a circle", "run.yaml →", "include each other"),
    yaml(
        "no file to include",
        "include: other.yaml",
        "other.yaml does not exist",
        "run.yaml →",
        "an include leads to it",
    ),
    yaml(
        "a directory to include", "include: ../cwd", "is a directory", "expected a YAML file", "an include leads to it"
    ),
    yaml("numbers out of range", "per_device_train_batch_size: 0", "=0", "1 or more", "128"),
    yaml("milestones that fall", "lr_milestones: [3, 2]", "[3.0, 2.0]", "increasing", "215 260 285"),
)
def test_file_of_options_is_refused(row, request):
    refused(row, request)


def config(*words):
    return lambda scene: main(["train", *words, "--output_dir", str(scene.run)])


@table(
    Row("no file", config("--config", "none.yaml"), "none.yaml does not exist", "looked in", "pass the path", EXIT),
    Row("a directory", config("--config", "."), ". is a directory", "expected a YAML file", "pass the path", EXIT),
    Row(
        "two files",
        config("--config", "a", "--config=b"),
        "--config a --config b",
        "expected one file",
        "include: [a]",
        EXIT,
    ),
    Row("no value", config("--config"), "--config", "expected one argument", "--help", EXIT),
)
def test_config_option_is_refused(row, request):
    refused(row, request)


@pytest.mark.parametrize(
    "text", ["", "# nothing yet\n", "\ufeffsteps: 3", "run_name: --steps", "include: []\nsteps: 3"]
)
def test_unusual_but_right_files_are_read(text, tmp_path):
    path = tmp_path / "run.yaml"
    path.write_text(text, encoding="utf-8")
    _, parsed = parse([DataArguments, BMTARDConfig], ["--config", str(path), "--output_dir", str(tmp_path)])
    assert parsed.steps == (3 if "steps: 3" in text else 10)
    assert parsed.run_name != "" and (parsed.run_name == "--steps" or "run_name" not in text)
