"""What the training recipes share: a network for the images, the run, the saved model, and a table of the test set."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from torch import nn

from bmtard_hooks.attacks.gradient import PGD
from bmtard_hooks.config import BMTARDConfig
from bmtard_hooks.evaluation.evaluator import evaluate_robustness
from bmtard_hooks.image_tensors import ImageTensors
from bmtard_hooks.models import PixelClassifier, create_model
from bmtard_hooks.reporting.tables import robustness_table
from bmtard_hooks.trainer import BMTARDTrainer


def create_for(images: ImageTensors, name: str, **options: Any) -> PixelClassifier:
    """Build a network for the classes, the size and the channels of images.

    Args:
        images: what it will be trained on.
        name: see ``create_model``.
        **options: further arguments of ``create_model``.

    Raises:
        ValueError: as ``create_model`` does.
    """
    channels, height, width = images.images.shape[1:]
    if channels != 3:
        options["in_chans"] = channels
    return create_model(name, images.num_classes, image_size=(height, width), **options)


def train_and_measure(
    trainer: BMTARDTrainer, name: str, test: ImageTensors, others: Mapping[str, PixelClassifier] | None = None
) -> tuple[dict[str, dict[str, float]], str]:
    """Train (or go on), save, and measure the saved model beside others on the test set.

    Args:
        trainer: ready to train; ``args.resume_from_checkpoint`` is followed.
        name: of the trained model in the table.
        test: images that played no part in training or in choosing the checkpoint.
        others: further models of the table, for example the teachers.

    Returns:
        The rows by name and the table in Markdown, see ``measure``.
    """
    config = trainer.args
    trainer.train(resume_from_checkpoint=config.resume_from_checkpoint)
    trainer.save_model()
    trainer.save_state()  # the log, for `bmtard plot`
    if trainer.is_world_process_zero():
        trainer.create_model_card()
    trainer.accelerator.wait_for_everyone()
    return measure({**(others or {}), name: create_model(str(config.output_dir)).freeze()}, test, config)


def measure(
    models: Mapping[str, nn.Module], test: ImageTensors, config: BMTARDConfig
) -> tuple[dict[str, dict[str, float]], str]:
    """Measure models under the attack of ``trainer.evaluate()``: a look, not an evaluation as ``bmtard evaluate`` makes it.

    Args:
        models: by their names in the table.
        test: the images, shared among the processes.
        config: its evaluation attack, seed and device are used.

    Returns:
        Name to ``clean_accuracy``, ``robust_accuracy`` and ``w_robust`` in [0, 1]; and the table in Markdown.
    """
    settings, column = config.evaluation_attack(), config.evaluation_attack_name
    attack = PGD(
        eps=settings.eps,
        norm=settings.norm,
        step_size=settings.step_size,
        steps=settings.steps,
        start=settings.start,
    )
    reports = [
        evaluate_robustness(
            model,
            test,
            {column: attack},
            model_name=name,
            dataset_name="the test set",
            seed=config.seed,
            batch_size=config.per_device_eval_batch_size,
            clean_weight=config.w_robust_clean_weight,
            device=config.device,
            checks=False,
            examples=0,
            progress=False,
        )
        for name, model in models.items()
    ]
    rows = {}
    for report in reports:
        row = report.row(column)
        rows[report.model] = {
            "clean_accuracy": row.clean,
            "robust_accuracy": row.robust,
            "w_robust": row.w_robust,
        }
    return rows, robustness_table(reports).strip()
