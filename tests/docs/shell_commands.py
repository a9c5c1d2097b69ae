"""Commands of a page, read as a shell would and run in this process, shrunk to a moment."""

import argparse
import glob
import importlib
import re
import shlex
import shutil
import sys
from itertools import pairwise
from pathlib import Path
from unittest.mock import patch

import cifar10
import cifar100
import compare
import quickstart
import tiny_imagenet
import train_teacher
import yaml
from accelerate.commands.config.config_args import load_config_from_file
from accelerate.commands.launch import launch_command_parser
from fenced_blocks import ROOT

from bmtard_hooks import cli
from bmtard_hooks.arguments import DataArguments, parse
from bmtard_hooks.compare import make_plan
from bmtard_hooks.config import BMTARDConfig
from bmtard_hooks.distil import ModelArguments

STUDENTS = {"recipes/cifar10.py": cifar10, "recipes/cifar100.py": cifar100, "recipes/tiny_imagenet.py": tiny_imagenet}
ONLY_PARSED = {
    "benchmarks/scaling.py": "starts processes; tests/benchmarks and tests/distributed run its parts",
    "benchmarks/train_step.py": "starts processes, and tests/benchmarks runs it whole",
    "recipes/cifar100.py": "needs teachers of 100 classes; tests/recipes runs it whole",
    "recipes/tiny_imagenet.py": "needs teachers of 200 classes; tests/recipes runs it whole",
    "recipes/accelerate/multi_node.yaml": "needs several machines",
    "recipes/accelerate/multi_gpu.yaml": "starts a process per GPU; tests/distributed trains with two",
    "recipes/accelerate/fsdp2.yaml": "shards over GPUs; tests/distributed shards over two CPU processes",
    "torchrun": "starts processes; tests/distributed does",
    "pip": "downloads packages",
}
"""Programs and launch files whose commands are read by their own parser, but not run, and why."""

SMALL_BENCHMARKS = {
    "benchmarks/evaluation.py": (
        "--dataset",
        "{data}",
        "--limit",
        "32",
        "--repeats",
        "1",
        "--pgd_only",
        "--device",
        "cpu",
    ),
    "benchmarks/input_pipeline.py": ("--dataset", "{data}", "--batch_size", "8", "--batches", "1", "--rounds", "1"),
    "benchmarks/paper_claims.py": (),
    "benchmarks/scaling_estimate.py": (),
}
"""Benchmarks that run here, and what shrinks them."""

DATA = ("--validation_images", "8", "--train_limit", "24", "--test_limit", "8")


class OnlyParsed(Exception):
    """The program has read its command line."""


def commands_of(code):
    """Split a block into commands, each a list of words; comments, loops and the continuation of lines are the shell's."""
    joined = re.sub(r"\\\n\s*", " ", code)
    joined = re.sub(r"^for (\w+) in ([^;\n]+); do\n(.*?)^done$", unrolled, joined, flags=re.S | re.M)
    lines = [line for line in joined.splitlines() if line.strip() and not line.strip().startswith("#")]
    return [words for line in lines if (words := shlex.split(line, comments=True))]


def unrolled(loop):
    """Write a loop's body once per value."""
    name, values, body = loop.groups()
    return "".join(re.sub(rf"\${name}\b", value, body) for value in values.split())


def run_command(words, place):
    """Run a command in the folder of its page.

    Raises:
        AssertionError: if a word, a file, an option or the program is wrong, or if it fails.
    """
    assert not any(re.search("…|<.*>", word) for word in words), f"{words} cannot be typed"
    while re.fullmatch(r"[A-Z_]+=\S*", words[0]):
        words = words[1:]
    words = [found for word in words for found in (sorted(glob.glob(word)) or [word] if "*" in word else [word])]
    program, rest = words[0], words[1:]
    if program == "make":
        check_target(rest)
    elif program == "pip":
        check_installation(rest)
    elif program == "bmtard":
        run_bmtard(rest, place)
    elif program == "python":
        run_script(rest[0], rest[1:], place)
    elif program == "accelerate":
        launch(rest, place)
    elif program == "torchrun":
        check_torchrun(rest, place)
    else:
        raise AssertionError(f"no rule for {program}: give it one in {Path(__file__).name}")


def check_target(words):
    """A make command must name targets of the Makefile."""
    makefile = (ROOT / "Makefile").read_text()
    assert words and all(re.search(rf"^{re.escape(word)}:", makefile, re.M) for word in words), words


def check_installation(words):
    """`pip install` of this repository, with extras that it has."""
    found = re.fullmatch(r"install -e \.(?:\[([\w,]+)\])?", " ".join(words))
    extras = re.search(r"\[project\.optional-dependencies\]\n(.*?)\n\n", (ROOT / "pyproject.toml").read_text(), re.S)[
        1
    ]
    assert found and all(re.search(rf"^{name} =", extras, re.M) for name in (found[1] or "test").split(",")), words


def launch(words, place):
    """`accelerate launch`: the launcher's own parser reads it, then the script runs here."""
    assert words[0] == "launch", words
    options = launch_command_parser().parse_args(words[1:])
    script, rest = options.training_script, options.training_script_args
    if options.config_file:
        load_config_from_file(options.config_file)
    parsed = options.config_file in ONLY_PARSED
    if options.module:
        assert script == "bmtard_hooks.cli", script
        run_bmtard(rest, place)
    else:
        run_script(script, rest, place, parsed)


def check_torchrun(words, place):
    """Read what torchrun would start."""
    from torch.distributed.run import get_args_parser

    options = get_args_parser().parse_args(words)
    run_script(options.training_script, options.training_script_args, place, parsed=True)


def run_bmtard(words, place):
    """Run a command of the library."""
    name, rest = words[0], words[1:]
    data = ["--dataset", place.data]
    small = {
        "train": [*data, *DATA, "--student", "resnet8_cifar"],
        "evaluate": [*data, "--limit", "8", "--device", "cpu"],
        "preview": [*data, "--limit", "8", "--device", "cpu"],
    }
    if name == "train":
        check_paths(rest)
    make_way(rest, place)
    assert cli.main([name, *rest, *small.get(name, [])]) == 0, words


def run_script(script, words, place, parsed=False):
    """Run a recipe or a benchmark, or let it read its command line if there is a reason not to run it."""
    assert Path(script).is_file(), f"{script} does not exist"
    if parsed or script in ONLY_PARSED:
        assert script in ONLY_PARSED or parsed
        read_only(script, words)
        return
    check_paths(words)
    make_way(words, place)
    data = ["--dataset", place.data, *DATA]
    if script == "recipes/quickstart.py":
        quickstart.main(words)
    elif script == "recipes/train_teacher.py":
        train_teacher.main([*words, *data, "--model", "resnet8_cifar"])
    elif script in STUDENTS:
        STUDENTS[script].main([*words, *data, "--student", "resnet8_cifar"])
    elif script == "recipes/compare.py":
        run_comparison([*words, *data, "--student", "resnet8_cifar", "--processes", "1"])
    elif script in SMALL_BENCHMARKS:
        small = [word.format(data=place.data) for word in SMALL_BENCHMARKS[script]]
        with patch.object(sys, "argv", [script, *words, *small]):
            importlib.import_module(Path(script).stem).main()
    else:
        raise AssertionError(f"no rule for {script}: give it one in {Path(__file__).name}")


def run_comparison(words):
    """Read every row of a comparison, and bring the first to its end."""

    def plan_one(*args):
        plan = make_plan(*args)
        plan.arguments.only = [next(run.name for run in plan.runs if run.seed is not None)]
        return plan

    with patch.object(compare, "make_plan", plan_one):
        assert compare.main(words) == 0, words


def read_only(script, words):
    """Let a program's own parser read a command line."""
    if script in STUDENTS:
        models, _, config = parse(
            [ModelArguments, DataArguments, BMTARDConfig], words, defaults=STUDENTS[script].DEFAULTS
        )
        check_paths(words)
        assert models.student and config.method
        return
    if script == "recipes/train_teacher.py":
        parse([train_teacher.TeacherArguments, DataArguments, BMTARDConfig], words)
        return
    original = argparse.ArgumentParser.parse_args

    def read(self, *args, **kwargs):
        original(self, *args, **kwargs)
        raise OnlyParsed

    with patch.object(sys, "argv", [script, *words]), patch.object(argparse.ArgumentParser, "parse_args", read):
        try:
            importlib.import_module(Path(script).stem).main()
        except OnlyParsed:
            return
    raise AssertionError(f"{script} did not read its command line")


def check_paths(words):
    """Teachers and files that a command names must exist: other code of the pages has made them."""
    for option, value in pairwise(words):
        if re.fullmatch(r"--(\w+_teacher|\w+_checkpoint|config|surrogate|model)", option) and "/" in value:
            assert Path(value).exists(), f"{option} {value} does not exist"


def make_way(words, place):
    """Clear an output folder that only stands for what an earlier page made, so that the command can make its own."""
    for option, value in pairwise(words):
        if option == "--output_dir" and value not in place.written:
            place.written.add(value)
            shutil.rmtree(value, ignore_errors=True)


def known_options():
    """Every option that a YAML file of the recipes may hold."""
    from dataclasses import fields

    from bmtard_hooks.compare import CompareArguments

    kinds = (train_teacher.TeacherArguments, ModelArguments, DataArguments, BMTARDConfig, CompareArguments)
    return {entry.name for kind in kinds for entry in fields(kind)}


def check_yaml(code):
    """A YAML block must be the options of a recipe; files that it includes are looked for among the recipes' own."""
    content = yaml.safe_load(code)
    included = content.pop("include", [])
    assert set(content) <= known_options(), set(content) - known_options()
    for name in [included] if isinstance(included, str) else included:
        assert any((base / name).is_file() for base in (ROOT / "recipes/configs", ROOT / "recipes/configs/cifar10")), (
            name
        )
