"""Distil a robust student from a clean and a robust teacher on CIFAR-10 (or any data set of small images).

One process, CPU or GPU:

    accelerate launch recipes/cifar10.py --config recipes/configs/cifar10_bmtard.yaml \
        --clean_teacher outputs/clean --robust_teacher outputs/robust --output_dir outputs/bmtard

Four GPUs: `accelerate launch --multi_gpu --num_processes 4 recipes/cifar10.py …`. To go on after an interruption, add
`--resume_from_checkpoint true`. `--method sat` trains a baseline of the same budget without teachers. Every option of
BMTARDConfig can follow, see `--help`.
"""

from __future__ import annotations

from dataclasses import dataclass

from transformers import set_seed

from bmtard_hooks import BMTARDConfig, BMTARDTrainer, PixelClassifier, create_model, load_teacher
from bmtard_hooks.arguments import DataArguments, option, parse
from bmtard_hooks.recipe import train_and_measure


@dataclass
class ModelArguments:
    """Which networks take part."""

    student: str = option("resnet18_cifar", "timm architecture, directory or hub id.")
    clean_teacher: str | None = option(None, "Directory, hub id, or timm architecture with its checkpoint below.")
    clean_teacher_checkpoint: str | None = option(None, ".safetensors, .pt or .pth file with the weights.")
    robust_teacher: str | None = option(None, "The same for the robust teacher.")
    robust_teacher_checkpoint: str | None = option(None, "The same.")

    def teachers(self, num_classes: int) -> dict[str, PixelClassifier]:
        """Load the teachers that were named."""
        named = {
            "clean": (self.clean_teacher, self.clean_teacher_checkpoint),
            "robust": (self.robust_teacher, self.robust_teacher_checkpoint),
        }
        return {
            role: load_teacher(name, checkpoint, num_classes=num_classes)
            for role, (name, checkpoint) in named.items()
            if name is not None
        }


def main(argv: list[str] | None = None) -> dict[str, dict[str, float]]:
    """Train, choose the best checkpoint on held-out training images, and print a table of the test set."""
    models, data, config = parse([ModelArguments, DataArguments, BMTARDConfig], argv, __doc__)
    train, validation, test = data.load()
    teachers = models.teachers(train.num_classes)
    set_seed(config.seed)  # of the first weights
    trainer = BMTARDTrainer(
        create_model(models.student, train.num_classes, image_size=train.images.shape[-1]),
        config,
        train_dataset=train,
        eval_dataset=validation,
        teachers=teachers,
    )
    others = {f"{role} teacher": teacher for role, teacher in teachers.items()}
    rows, table = train_and_measure(trainer, config.method, test, others)
    print(table)
    return rows


if __name__ == "__main__":
    main()
