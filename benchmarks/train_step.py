"""Measure what one B-MTARD training step costs, beside a loop as a user would write it and beside the hardware's limit.

    python benchmarks/train_step.py --student resnet18_cifar mobilenetv2_cifar --output benchmarks/results/train_step.json
    python benchmarks/train_step.py --table benchmarks/results/train_step.json

One run measures everything, because machines are noisy. Every contender is a process of its own, so that its memory is its own,
and only one of them works at a time; their rounds alternate in rotating order. All have the same batch size, data and first
weights; teachers are random networks, because only time matters.

    plain            the paper's step in eager PyTorch: NCHW, float32, textbook PGD-10, torch's SGD
    torchattacks     the same with torchattacks.PGD
    default          BMTARDTrainer as it comes
    compiled, bf16…  BMTARDTrainer with settings for speed
    kept_pages…      BMTARDTrainer with an allocator that keeps its pages (Linux, CPU)
    unfolded, nchw   BMTARDTrainer with one thing switched off
    same_kernels     a bare loop with the library's functions: what Trainer, callbacks and collator add to it

Ratios are medians over the rounds of ratios within a round; only they mean anything on another machine. The parts of a step are
measured in steps after the timed ones. Memory is the peak after the warm-up, less what the process held before its models
existed. The limit is the arithmetic that the step cannot avoid, at the best rate that large convolutions and matrix products
reached in the same run. `--output` adds to a file, so that long runs can be made piece by piece.
"""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch

sys.path.insert(0, str(Path(__file__).parent))  # for `step`, also when a test imports this file

from step.child import REFEREE, work
from step.contenders import CONTENDERS, check_names, environment_of, sensible_names
from step.crew import Child, Crew
from step.limit import best_of
from step.results import Measured, markdown_table, merge, print_run, summarise, trainer_overhead
from step.scene import Scene

from bmtard_hooks.evaluation.environment import package_versions, source_commit

SMALL_TEACHER = "resnet56_cifar"
SCENE_OPTIONS = (
    "clean_teacher", "robust_teacher", "batch_size", "images", "device", "threads", "seed", "warm_up"
)  # fmt: skip


def parse(arguments: Sequence[str] | None) -> argparse.Namespace:
    """Read the command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    add = parser.add_argument
    add("--student", nargs="+", default=["resnet18_cifar"], help="timm names, one table each")
    add("--clean_teacher", default="resnet56_cifar")
    add("--robust_teacher", default="wrn34_10_cifar")
    add("--small", action="store_true", help=f"{SMALL_TEACHER} for both teachers, for a CPU")
    add("--contenders", nargs="+", help=f"from {', '.join(CONTENDERS)}; a sensible choice by default")
    add("--batch_size", type=int, default=128)
    add("--rounds", type=int, default=5)
    add("--steps", type=int, help="per round: 1 on a CPU, 20 on a GPU")
    add("--phase_rounds", type=int, default=3, help="rounds of as many steps that look at the parts of a step")
    add("--warm_up", type=int, help="steps before the first timed one: 1 on a CPU, 5 on a GPU; more where it compiles")
    add("--images", type=int, default=50_000, help="size of the generated training set")
    add(
        "--gives_back",
        action="store_true",
        help="contenders return free memory while they wait, where all of them together have too little; costs time in every round",
    )
    add("--device", default="cuda" if torch.cuda.is_available() else "cpu", choices=("cpu", "cuda"))
    add("--threads", type=int, default=torch.get_num_threads(), help="on the CPU")
    add("--seed", type=int, default=0)
    add("--output", type=Path, help="JSON file, which is added to")
    add("--table", nargs="+", type=Path, metavar="FILE", help="measure nothing, print these files as a table")
    options = parser.parse_args(arguments)
    gpu = options.device == "cuda"
    options.steps = options.steps or (20 if gpu else 1)
    options.warm_up = options.warm_up or (5 if gpu else 1)
    if options.small:
        options.clean_teacher = options.robust_teacher = SMALL_TEACHER
    options.contenders = options.contenders or sensible_names(options.device)
    if min(options.rounds, options.phase_rounds, options.steps, options.warm_up, options.threads) < 1:
        parser.error("--rounds, --phase_rounds, --steps, --warm_up and --threads must be 1 or more")
    if not 2 <= options.batch_size <= options.images:
        parser.error(f"--batch_size {options.batch_size} must be 2 or more, and at most --images {options.images}")
    try:
        check_names(options.contenders, options.device)
    except ValueError as error:
        parser.error(str(error))
    return options


def measure(scene: Scene, names: Sequence[str], rounds: int, steps: int, phase_rounds: int) -> dict[str, Any]:
    """Let the contenders make steps in turn.

    Args:
        scene: what is trained on what.
        names: of the contenders.
        rounds: each contender's turns.
        steps: of one turn.
        phase_rounds: further turns that look at the parts of a step.

    Returns:
        What ``merge`` keeps, but for the versions.

    Raises:
        ChildDied: if a contender fails.
    """
    dtypes = list(dict.fromkeys(CONTENDERS[name].dtype for name in names))
    measured = {name: Measured() for name in names}
    with Crew(environment_of(scene.threads)) as crew:
        referee, facts = crew.start(work, (scene, REFEREE), REFEREE)
        rates = [referee.ask("rates", dtypes)["rates"]]
        children: dict[str, Child] = {}
        for name in names:
            children[name], reply = crew.start(work, (scene, name), name, CONTENDERS[name].environment)
            print(f"{name}: warm-up {reply['seconds']:.4g} s a step", flush=True)
        for number in range(rounds):
            for name in rotated(names, number):
                reply = children[name].ask("time", steps)
                measured[name].seconds.append(reply["seconds"])
                measured[name].cpu_seconds.append(reply["cpu_seconds"])
                measured[name].peaks.append(reply["peak"])
                measured[name].memory = reply["memory"]
                print(f"round {number + 1} of {rounds}, {name}: {reply['seconds']:.4g} s a step", flush=True)
        for number in range(phase_rounds):
            for name in rotated(names, number):
                measured[name].phases.append(children[name].ask("phases", steps)["phases"])
        rates.append(referee.ask("rates", dtypes)["rates"])
    best = {dtype: best_of(once[dtype] for once in rates) for dtype in dtypes}
    settings = {name: value for name, value in asdict(scene).items() if name != "device"}
    return {
        **settings,
        "device": facts["device"],
        "rounds": rounds,
        "steps": steps,
        "flops": facts["flops"],
        "rates": best,
        "trainer_overhead": trainer_overhead(measured),
        "contenders": summarise(measured, facts["flops"], best, scene.batch_size),
    }


def rotated(names: Sequence[str], number: int) -> list[str]:
    """Begin the order with another contender each round, so that none is always first after a pause."""
    first = number % len(names)
    return [*names[first:], *names[:first]]


def command_of(options: argparse.Namespace, student: str) -> str:
    """Write the command that repeats the measurement of one student."""
    names = (*SCENE_OPTIONS, "rounds", "steps", "phase_rounds")
    words = [f"--{name} {getattr(options, name)}" for name in names]
    words += ["--gives_back"] if options.gives_back else []
    return " ".join(
        ["python benchmarks/train_step.py --student", student, *words, "--contenders", *options.contenders]
    )


def main(arguments: Sequence[str] | None = None) -> None:
    """Measure one student after another, print a table each, and keep it if asked to."""
    options = parse(arguments)
    if options.table:
        print(markdown_table([run for path in options.table for run in json.loads(path.read_text())["runs"].values()]))
        return
    for student in options.student:
        shared = {name: getattr(options, name) for name in SCENE_OPTIONS}
        scene = Scene(student=student, gives_back=options.gives_back, **shared)
        run = measure(scene, options.contenders, options.rounds, options.steps, options.phase_rounds)
        run |= {
            "command": command_of(options, student),
            "commit": source_commit(),
            "packages": package_versions(),
        }
        if options.output:
            merge(options.output, run)
        print_run(run)


if __name__ == "__main__":
    main()
