"""Train a teacher: clean (natural training) or robust (SAT or TRADES), in L-infinity or L2.

A small one on a CPU, and one of the paper's on a GPU:

    accelerate launch --config_file recipes/accelerate/cpu.yaml recipes/train_teacher.py \
        --config recipes/configs/cifar10_clean_teacher.yaml --output_dir outputs/clean
    accelerate launch --config_file recipes/accelerate/single_gpu.yaml recipes/train_teacher.py \
        --config recipes/configs/teachers/tiny_imagenet_robust.yaml --output_dir outputs/robust

On four GPUs take `accelerate/multi_gpu.yaml` and divide `--per_device_train_batch_size` by four. To go on after an interruption,
add `--resume_from_checkpoint auto`. `configs/README.md` lists the files. The method is natural unless another is given.
Every option of BMTARDConfig can follow, see `--help`.
"""

from __future__ import annotations

import sys
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from transformers import set_seed

from bmtard_hooks import BMTARDConfig, BMTARDTrainer
from bmtard_hooks.arguments import DataArguments, option, parse
from bmtard_hooks.choosing_checkpoints import choosing_defaults
from bmtard_hooks.distributed import processes
from bmtard_hooks.methods import make_method
from bmtard_hooks.mistakes import exit_code
from bmtard_hooks.recipe import create_for, train_and_measure


@dataclass
class TeacherArguments:
    """Which network to train."""

    model: str = option("resnet20_cifar", "timm architecture, directory or hub id.")
    pretrained: bool = option(False, "Begin from the weights that timm has for the architecture (a download).")


def defaults(given: Mapping[str, Any]) -> dict[str, Any]:
    """Give this script's own defaults, see ``bmtard_hooks.arguments.parse``."""
    return {**choosing_defaults(given), "method": "natural"}


def require_no_teachers(config: BMTARDConfig) -> None:
    """Raise ``ValueError`` for a method that learns from teachers."""
    needed = make_method(config).teachers
    if needed:
        raise ValueError(
            f"method {config.method!r} needs teachers ({', '.join(sorted(needed))}), and train_teacher.py trains without teachers: "
            "pass --method natural, sat, trades or score (and no --igdm_weight), or take `bmtard train`"
        )


def main(argv: list[str] | None = None) -> dict[str, dict[str, float]]:
    """Train, choose the best checkpoint on held-out training images, and print a table of the test set."""
    types = [TeacherArguments, DataArguments, BMTARDConfig]
    names, data, config = parse(types, argv, __doc__, defaults=defaults)
    require_no_teachers(config)
    train, validation, test = data.load()
    set_seed(config.seed)  # of the first weights
    trainer = BMTARDTrainer(
        create_for(train, names.model, pretrained=names.pretrained),
        config,
        train_dataset=train,
        eval_dataset=validation,
    )
    rows, table = train_and_measure(trainer, f"{names.model}, {config.method}", test)
    if processes().is_main_process:
        print(table)
    return rows


if __name__ == "__main__":
    sys.exit(exit_code("train_teacher.py", main))
