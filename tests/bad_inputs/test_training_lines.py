"""Command lines of `bmtard train`, the recipes and comparisons that cannot work."""

import runpy
import sys
from pathlib import Path

import cifar10
import compare
import pytest
import train_teacher
from refusing import EXIT, Row, refused, table
from small_world import save_world

from bmtard_hooks.cli import main

RECIPES = Path(cifar10.__file__).parent


@pytest.fixture(scope="module")
def world(tmp_path_factory):
    return save_world(tmp_path_factory.mktemp("world"))


TRAIN = (
    *("--student", "resnet8_cifar", "--dataset", "{files}/data", "--validation_images", "4", "--output_dir", "{run}"),
    *("--num_train_epochs", "1", "--steps", "1", "--report_to", "none", "--per_device_train_batch_size", "4"),
)
TEACHERS = ("--clean_teacher", "{files}/clean", "--robust_teacher", "{files}/robust")


def filled(words, scene):
    return [word.format(files=scene.files, run=scene.run) for word in words]


def train(name, words, received, allowed, fix):
    """A row for `bmtard train`; its words win over those of a good command line."""
    return Row(
        f"train {name}",
        lambda scene: main(["train", *filled((*TRAIN, *TEACHERS, *words.split()), scene)]),
        *(received, allowed, fix, EXIT),
    )


HELP, UNSET = "--help", "unset HF_HUB_OFFLINE"
DATA = "a local directory of images or parquet files"
WEIGHTS = "pass checkpoint=FILE, pretrained=True, or a saved directory"


@table(
    train("unknown option", "--epss 1", "unknown option --epss", "did you mean --eps", HELP),
    train("short option", "-e 1", "-e", "a value without an option", HELP),
    train("value too many", "--eps 0.1 0.2", "0.2", "a second value of one that takes one", HELP),
    train("word for a number", "--steps many", "'many'", "int", HELP),
    train("fraction of nothing", "--eps 8/0", "'8/0'", "no number", HELP),
    train("word for a truth", "--channels_last maybe", "maybe", "true/false", HELP),
    train("no value", "--seed", "--seed", "expected one argument", HELP),
    train("NaN", "--learning_rate nan", "learning_rate=nan", "a finite number", "0.1"),
    train("infinity", "--weight_decay inf", "weight_decay=inf", "a finite number", "0.0002"),
    train("eps of 8", "--eps 8", "eps=8.0", "(0, 1]", "pass 8/255"),
    train("negative epochs", "--num_train_epochs -1", "num_train_epochs=-1.0", "positive", "300 as in the paper"),
    train("batch of none", "--per_device_train_batch_size 0", "size=0", "1 or more", "128"),
    train("huge seed", "--seed 99999999999999999999", "seed=99999999999999999999", "0 to 4294967295", "42"),
    train("huge batch", "--per_device_train_batch_size 1000000000000", "=1000000000000", "1 or more", "128"),
    train("milestones that fall", "--lr_milestones 3 2", "[3.0, 2.0]", "increasing", "215 260 285"),
    train("metric", "--eval_strategy epoch --metric_for_best_model robust", "'robust'", "w_robust", "Did you mean"),
    train(
        *("best of nothing", "--load_best_model_at_end true --eval_strategy no"),
        *("eval_strategy='no'", "evaluations", "pass eval_strategy"),
    ),
    train("word for a strategy", "--save_strategy epohc", "save_strategy='epohc'", "one of no, steps, epoch", "pass"),
    train("deepspeed", "--deepspeed x.json", "deepspeed='x.json'", "not supported", "Use DDP"),
    train("fsdp", "--fsdp full_shard", "fsdp='full_shard'", "several accelerators", "leave FSDP out"),
    train("unknown method", "--method bmtadr", "'bmtadr'", "methods are", "did you mean bmtard"),
    train("no such data", "--dataset ./nowhere", "--dataset ./nowhere", DATA, UNSET),
    train("data of a hub", "--dataset someone/data", "--dataset someone/data", DATA, UNSET),
    train("data of a file", "--dataset {files}/note.txt", "note.txt", DATA, "Pass another"),
    train("data of nothing", "--dataset {files}/empty", "empty", DATA, "Pass another"),
    train("no such split", "--train_split trian", "no split 'trian'", "train, test", "pass --train_split"),
    train(
        "no such column", "--image_column pic", "'pic'", "['img', 'label']", "on a command line --image_column NAME"
    ),
    train("no such labels", "--label_column kind", "'kind'", "['img', 'label']", "pass label_column=NAME"),
    train("validation on all", "--validation_images 12", "--validation_images 12", "from 1 to 11", "pass a number"),
    train("validation on none", "--validation_images 0", "--validation_images 0", "from 1 to 11", "pass a number"),
    train("negative validation", "--validation_images -1", "--validation_images -1", "from 1 to 11", "pass a number"),
    train("no images", "--train_limit 0", "limit=0", "a positive number", "or None for all"),
    train("no such teacher", "--clean_teacher ./nowhere", "'./nowhere'", "is not a directory", "with a saved model"),
    train(
        "teacher of nothing",
        "--clean_teacher {files}/empty",
        "empty is a directory",
        "without a saved model",
        "config.json and weights",
    ),
    train("teacher of a file", "--clean_teacher {files}/note.txt", "note.txt'", "is not a directory", "checkpoint="),
    train("teacher of a hub", "--clean_teacher someone/model", "clean teacher 'someone/model'", "a directory", UNSET),
    train("teacher untrained", "--clean_teacher resnet8_cifar", "'resnet8_cifar'", "random weights", WEIGHTS),
    train(
        *("no checkpoint", "--clean_teacher resnet8_cifar --clean_teacher_checkpoint none.pt"),
        *("none.pt does not exist", "looked in", "checkpoint"),
    ),
    train("unknown student", "--student resnet8_cifra", "'resnet8_cifra'", "did you mean", "resnet8_cifar"),
    train("mean without std", "--student_mean 0.5 0.5 0.5", "std=None", "pass both", "or neither"),
    train(
        "std of 0",
        "--student_mean 0 0 0 --student_std 0 0 0",
        "[0.0, 0.0, 0.0]",
        "every std positive",
        "pass one of each",
    ),
    train("mean of NaN", "--student_mean nan --student_std 1", "[nan]", "finite numbers", "such as 0.5 0.5 0.5"),
    train(
        "output in a file",
        "--output_dir {files}/note.txt",
        "note.txt is a file",
        "expected a directory",
        "pass another",
    ),
    train(
        "output below a file", "--output_dir {files}/note.txt/x", "note.txt is a file", "a directory", "pass another"
    ),
    train("resume from nothing", "--resume_from_checkpoint true", "=True", "no whole checkpoint", "leave"),
    train("resume from nowhere", "--resume_from_checkpoint no", "'no' does not exist", "a checkpoint-N", "pass"),
)
def test_line_of_bmtard_train_is_refused(row, request, world):
    refused(row, request, world)


def recipe(main_of, name, words, received, allowed, fix, error=ValueError):
    """A row for a script of recipes/, which raises."""
    return Row(name, lambda scene: main_of(filled(words.split(), scene)), received, allowed, fix, error)


OF_TEACHER = "--model resnet8_cifar --dataset {files}/data --validation_images 4 --output_dir {run} --method sat "
OF_CIFAR10 = "--dataset {files}/data --validation_images 4 --output_dir {run} --student resnet8_cifar "


@table(
    recipe(train_teacher.main, "teacher epss", OF_TEACHER + "--epss 1", "--epss", "did you mean --eps", HELP),
    recipe(
        train_teacher.main,
        "teacher model",
        OF_TEACHER + "--model resnet8_cifra",
        "cifra'",
        "did you mean",
        "resnet8_cifar",
    ),
    recipe(
        *(train_teacher.main, "teacher method", OF_TEACHER + "--method bmtard"),
        *("method 'bmtard' needs teachers (clean, robust)", "trains without teachers", "pass --method natural, sat"),
    ),
    recipe(
        *(train_teacher.main, "teacher with IGDM", OF_TEACHER + "--igdm_weight 1"),
        *("method 'sat' needs teachers (robust)", "trains without teachers", "no --igdm_weight"),
    ),
    recipe(train_teacher.main, "teacher data", OF_TEACHER + "--dataset ./no", "./no", DATA, UNSET, FileNotFoundError),
    recipe(train_teacher.main, "teacher seed", OF_TEACHER + "--seed -1", "seed=-1", "0 to 4294967295", "42"),
    recipe(
        *(cifar10.main, "student alone", OF_CIFAR10, "'bmtard'", "two teachers, clean and robust"),
        "Pass clean_teacher=… and robust_teacher=… (--clean_teacher DIR --robust_teacher DIR)",
    ),
    recipe(
        *(cifar10.main, "student alone, and no data", OF_CIFAR10 + "--dataset ./no", "'bmtard'"),
        *("two teachers, clean and robust", "--clean_teacher DIR"),
    ),
    recipe(cifar10.main, "student epss", OF_CIFAR10 + "--epss 3", "--epss", "did you mean --eps", HELP),
    recipe(
        *(cifar10.main, "checkpoint alone", OF_CIFAR10 + "--clean_teacher_checkpoint x.pt", "x.pt"),
        *("needs the architecture", "pass --clean_teacher too"),
    ),
)
def test_line_of_a_recipe_is_refused(row, request, world):
    refused(row, request, world)


@pytest.mark.parametrize("name", ["cifar10", "cifar100", "tiny_imagenet", "train_teacher"])
def test_script_says_in_one_line_what_is_wrong_with_its_command_line(name, tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(sys, "argv", [f"{name}.py", "--seed", "-1", "--output_dir", str(tmp_path / "run")])
    with pytest.raises(SystemExit) as stopped:
        runpy.run_path(str(RECIPES / f"{name}.py"), run_name="__main__")
    said = capsys.readouterr().err.splitlines()
    assert stopped.value.code == EXIT and len(said) == 1
    assert said[0].startswith(f"{name}.py: seed=-1 is not allowed: pass a whole number")


def comparison(name, words, received, allowed, fix):
    """A row for recipes/compare.py."""
    usual = f"{OF_CIFAR10} {' '.join(TEACHERS)} --methods sat "
    return Row(name, lambda scene: compare.main(filled((usual + words).split(), scene)), received, allowed, fix, EXIT)


@table(
    comparison("no methods", "--methods", "--methods", "at least one argument", HELP),
    comparison("unknown method", "--methods bmtadr", "'bmtadr'", "methods are", "did you mean bmtard"),
    comparison("unknown option", "--methods sat:epss=1", "'epss'", "row 'sat:epss=1'", "did you mean eps"),
    comparison("option without value", "--methods sat:eps", "'eps'", "option=value", "write label="),
    comparison("option out of range", "--methods sat:eps=9", "eps=9.0", "(0, 1]", "pass 9/255"),
    comparison("option of a kind", "--methods sat:steps=many", "'many'", "int", "row 'sat steps=many'"),
    comparison("option of all", "--methods sat:seed=3", "sat:seed=3", "the same for all rows", "pass --seeds"),
    comparison("a row twice", "--methods sat sat", "'sat' and 'sat'", "share a directory", "give one a name"),
    comparison("seed", "--seed 1", "seed=1", "for a single run", "pass --seeds"),
    comparison("method", "--method sat", "method='sat'", "for a single run", "pass --methods"),
    comparison("seeds twice", "--seeds 1 1", "[1, 1]", "each once", "pass at least one"),
    comparison("negative seeds", "--seeds -1", "seed=-1", "0 to 4294967295", "42"),
    comparison("seeds of words", "--seeds a", "'a'", "int", HELP),
    comparison("choose", "--choose worst", "choose='worst'", "best or last", "pass"),
    comparison("processes", "--processes 0", "processes=0", "1 or more", "or leave it out"),
    comparison("only", "--only sat/seed9", "sat/seed9", "the runs are sat/seed0", "--only"),
    comparison("attacks", "--attacks pgdd", "'pgdd'", "unknown attack", "did you mean"),
    comparison("metric", "--metric_for_best_model robust", "'robust'", "w_robust", "Did you mean"),
    comparison(
        "output in a file", "--output_dir {files}/note.txt", "is a file", "expected a directory", "pass another"
    ),
    comparison("missing teachers", "--methods bmtard_union", "--robust_l2_teacher", "for bmtard_union", "pass"),
)
def test_line_of_a_comparison_is_refused(row, request, world):
    refused(row, request, world)
