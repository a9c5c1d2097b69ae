"""Train a teacher: clean (natural training) or robust (SAT or TRADES).

One process, CPU or GPU:

    accelerate launch recipes/train_teacher.py --config recipes/configs/cifar10_clean_teacher.yaml --output_dir outputs/clean
    accelerate launch recipes/train_teacher.py --config recipes/configs/cifar10_robust_teacher.yaml --output_dir outputs/robust

Four GPUs: `accelerate launch --multi_gpu --num_processes 4 recipes/train_teacher.py …`. To go on after an interruption,
add `--resume_from_checkpoint true`. Every option of BMTARDConfig can follow, see `--help`.
"""

from __future__ import annotations

from dataclasses import dataclass, field

from transformers import set_seed

from bmtard_hooks import BMTARDConfig, BMTARDTrainer, create_model
from bmtard_hooks.arguments import DataArguments, parse
from bmtard_hooks.recipe import train_and_measure


@dataclass
class TeacherArguments:
    """Which network to train."""

    model: str = field(default="resnet20_cifar", metadata={"help": "timm architecture, directory or hub id."})


def main(argv: list[str] | None = None) -> dict[str, dict[str, float]]:
    """Train, choose the best checkpoint on held-out training images, and print a table of the test set."""
    names, data, config = parse([TeacherArguments, DataArguments, BMTARDConfig], argv, __doc__)
    train, validation, test = data.load()
    set_seed(config.seed)  # of the first weights
    trainer = BMTARDTrainer(
        create_model(names.model, train.num_classes, image_size=train.images.shape[-1]),
        config,
        train_dataset=train,
        eval_dataset=validation,
    )
    rows, table = train_and_measure(trainer, f"{names.model}, {config.method}", test)
    print(table)
    return rows


if __name__ == "__main__":
    main()
