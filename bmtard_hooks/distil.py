"""The flow that the recipes share: options, data, teachers, student, training, a table. A recipe adds its data set's defaults."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from transformers import set_seed

from bmtard_hooks.arguments import DataArguments, parse
from bmtard_hooks.assembly import ROLES, require_teachers
from bmtard_hooks.choosing_checkpoints import choosing_defaults
from bmtard_hooks.config import BMTARDConfig
from bmtard_hooks.image_tensors import ImageTensors
from bmtard_hooks.methods import make_method
from bmtard_hooks.models import PixelClassifier, load_teacher
from bmtard_hooks.models.teachers import naming_what_cannot_load
from bmtard_hooks.options import option, require
from bmtard_hooks.recipe import create_for, train_and_measure
from bmtard_hooks.trainer import BMTARDTrainer


@dataclass
class ModelArguments:
    """Which networks take part."""

    student: str = option("resnet18_cifar", "timm architecture, directory or hub id.")
    student_pretrained: bool = option(False, "Begin from the weights that timm has for the architecture (a download).")
    student_mean: list[float] | None = option(None, "Normalisation inside the student (None: its own, or none).")
    student_std: list[float] | None = option(None, "The same.")
    clean_teacher: str | None = option(None, "Directory, hub id, or timm architecture with its checkpoint below.")
    clean_teacher_checkpoint: str | None = option(None, ".safetensors, .pt or .pth file with the weights.")
    robust_teacher: str | None = option(None, "The same for the robust teacher.")
    robust_teacher_checkpoint: str | None = option(None, "The same.")
    robust_l2_teacher: str | None = option(None, "The same for the teacher robust in L2 (method bmtard_union).")
    robust_l2_teacher_checkpoint: str | None = option(None, "The same.")

    def __post_init__(self) -> None:
        for name in ("student_mean", "student_std"):
            values = getattr(self, name)
            require(
                name,
                values,
                all(map(math.isfinite, values or [])),
                "finite numbers, one per channel, such as 0.5 0.5 0.5",
            )

    def create_student(self, images: ImageTensors) -> PixelClassifier:
        """Build the student for the images that it will be trained on."""
        with naming_what_cannot_load("student", self.student):
            return create_for(
                images,
                self.student,
                pretrained=self.student_pretrained,
                mean=self.student_mean,
                std=self.student_std,
            )

    def named_teachers(self) -> dict[str, tuple[str | None, str | None]]:
        """Give the teachers' names and checkpoints by role.

        Raises:
            ValueError: for a checkpoint without its architecture.
        """
        named = {
            role: (getattr(self, f"{role}_teacher"), getattr(self, f"{role}_teacher_checkpoint")) for role in ROLES
        }
        for role, (name, checkpoint) in named.items():
            if name is None and checkpoint is not None:
                raise ValueError(
                    f"--{role}_teacher_checkpoint {checkpoint} needs the architecture it belongs to: pass "
                    f"--{role}_teacher too, for example resnet56_cifar"
                )
        return named

    def load_teachers(self, num_classes: int) -> dict[str, PixelClassifier]:
        """Load the teachers that were named, by role."""
        loaded = {}
        for role, (name, checkpoint) in self.named_teachers().items():
            if name is not None:
                with naming_what_cannot_load(f"{role} teacher", name):
                    loaded[role] = load_teacher(name, checkpoint, num_classes=num_classes)
        return loaded


def distil(
    argv: Sequence[str] | None,
    description: str | None,
    defaults: Mapping[str, Any] | None = None,
    program: str | None = None,
) -> tuple[dict[str, dict[str, float]], str]:
    """Train a student as a command line says, choose its best checkpoint on held-out training images, measure it.

    ``choosing_defaults`` says when no checkpoint is chosen.

    Args:
        argv: the command line without the program's name; ``sys.argv[1:]`` if None.
        description: for ``--help``.
        defaults: the recipe's own defaults of any option.
        program: name of the program for ``--help``; that of the running script by default.

    Returns:
        Name to accuracies on the test set, of the teachers and of the student (named after its method), and the table in
        Markdown; see ``bmtard_hooks.recipe.measure``.

    Raises:
        ValueError: for options, data or teachers that do not fit, before anything is written.
    """
    types = [ModelArguments, DataArguments, BMTARDConfig]
    models, data, config = parse(
        types, argv, description, program, lambda given: {**choosing_defaults(given), **(defaults or {})}
    )
    require_teachers(make_method(config), {role: name for role, (name, _) in models.named_teachers().items()})
    train, validation, test = data.load()
    teachers = models.load_teachers(train.num_classes)
    set_seed(config.seed)  # of the first weights
    trainer = BMTARDTrainer(
        models.create_student(train),
        config,
        train_dataset=train,
        eval_dataset=validation,
        teachers=teachers,
    )
    others = {f"{role} teacher": teacher for role, teacher in teachers.items()}
    return train_and_measure(trainer, config.method, test, others)
