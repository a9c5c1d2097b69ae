"""Train a student on CIFAR-10: B-MTARD, its rivals and its ablations, a YAML file for each.

One process:

    accelerate launch --config_file recipes/accelerate/single_gpu.yaml recipes/cifar10.py \
        --config recipes/configs/cifar10/resnet18_bmtard.yaml \
        --clean_teacher outputs/clean --robust_teacher outputs/robust --output_dir outputs/bmtard

On a CPU take `accelerate/cpu.yaml` and `configs/cifar10_small.yaml`. On four GPUs take `accelerate/multi_gpu.yaml` and add
`--per_device_train_batch_size 32`, which keeps 128 images a step. To go on after an interruption, add
`--resume_from_checkpoint auto`. `configs/README.md` lists the files and the teachers that each method needs. Every option of
BMTARDConfig can follow, see `--help`.
"""

from __future__ import annotations

import sys

from bmtard_hooks.distil import distil
from bmtard_hooks.distributed import processes
from bmtard_hooks.mistakes import exit_code

DEFAULTS = {"dataset": "cifar10", "student": "resnet18_cifar"}


def main(argv: list[str] | None = None) -> dict[str, dict[str, float]]:
    """Train, choose the best checkpoint on held-out training images, and print a table of the test set."""
    rows, table = distil(argv, __doc__, DEFAULTS)
    if processes().is_main_process:
        print(table)
    return rows


if __name__ == "__main__":
    sys.exit(exit_code("cifar10.py", main))
