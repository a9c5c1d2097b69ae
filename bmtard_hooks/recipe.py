"""What every training recipe ends with: the run, the saved model, and a table of the test set."""

from __future__ import annotations

from collections.abc import Mapping

from bmtard_hooks.evaluation.pgd_accuracy import accuracy_table, pgd_accuracy
from bmtard_hooks.image_tensors import ImageTensors
from bmtard_hooks.models import PixelClassifier, create_model
from bmtard_hooks.trainer import BMTARDTrainer


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
        The rows by name and the table in Markdown; both empty on every process but the first.
    """
    config = trainer.args
    trainer.train(resume_from_checkpoint=config.resume_from_checkpoint)
    trainer.save_model()
    if not trainer.is_world_process_zero():
        return {}, ""
    trainer.create_model_card()
    models = {**(others or {}), name: create_model(str(config.output_dir))}
    settings = config.evaluation_attack()
    rows = {
        label: pgd_accuracy(model, test, settings, device=config.device, seed=config.seed)
        for label, model in models.items()
    }
    return rows, accuracy_table(rows, f"PGD-{settings.steps}")
