"""Train a student on Tiny-ImageNet (64x64 pixels, 200 classes): B-MTARD and its rivals, a YAML file for each.

One process:

    accelerate launch --config_file recipes/accelerate/single_gpu.yaml recipes/tiny_imagenet.py \
        --config recipes/configs/tiny_imagenet/preactresnet18_bmtard.yaml \
        --clean_teacher outputs/clean --robust_teacher outputs/robust --output_dir outputs/bmtard

On a CPU take `accelerate/cpu.yaml` and `configs/tiny_imagenet_small.yaml`. On four GPUs take `accelerate/multi_gpu.yaml` and
divide `--per_device_train_batch_size` by four. The labels of the test images are not public, so the table is of the
validation split, which plays no other part: checkpoints are chosen on held-out training images. To go on after an
interruption, add `--resume_from_checkpoint auto`. `configs/README.md` lists the files and the teachers that each method
needs. Every option of BMTARDConfig can follow, see `--help`.
"""

from __future__ import annotations

import sys

from bmtard_hooks.distil import distil
from bmtard_hooks.distributed import processes
from bmtard_hooks.mistakes import exit_code

# The hub calls the split "valid"; `datasets` calls it "validation" when it reads a local copy of the same files.
DEFAULTS = {
    "dataset": "zh-plus/tiny-imagenet",
    "test_split": "valid,validation",
    "student": "preactresnet18_tiny",
}


def main(argv: list[str] | None = None) -> dict[str, dict[str, float]]:
    """Train, choose the best checkpoint on held-out training images, and print a table of the test set."""
    rows, table = distil(argv, __doc__, DEFAULTS)
    if processes().is_main_process:
        print(table)
    return rows


if __name__ == "__main__":
    sys.exit(exit_code("tiny_imagenet.py", main))
