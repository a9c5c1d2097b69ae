"""The step inside ``BMTARDTrainer``, paced by a callback and looked at from outside."""

from __future__ import annotations

import tempfile
from collections.abc import Mapping
from typing import Any

from transformers import PrinterCallback, TrainerCallback

from bmtard_hooks import BMTARDConfig, BMTARDTrainer, ImageTensors
from step.pacing import Pacer, Phases
from step.scene import Networks, Scene

PARTS = (
    ("get_batch_samples", "data"),
    ("_prepare_inputs", "data"),
    ("crafter.craft", "attack"),
    ("crafter._augmented", "data"),
    ("_ask", "teachers"),
    ("method.loss_parts", "student"),
    ("accelerator.backward", "student"),
    ("optimizer.step", "student"),
    ("_observe", "balance"),
    ("weighted", "balance"),
)
"""Methods below the Trainer, and the part of the step they are."""


class HandsOver(TrainerCallback):
    """Hands over to the parent at the end of steps.

    Args:
        pacer: knows when.
    """

    def __init__(self, pacer: Pacer) -> None:
        self.pacer = pacer

    def on_train_begin(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        """Start the clock."""
        self.pacer.begin()

    def on_step_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        """Stop it, wait for the parent, start it again; or end the training."""
        if not self.pacer.step_finished():
            control.should_training_stop = True


def train(
    scene: Scene, options: Mapping[str, Any], networks: Networks, data: ImageTensors, phases: Phases, pacer: Pacer
) -> BMTARDTrainer:
    """Train until the parent says stop.

    Args:
        scene: sizes and device.
        options: changes to the default settings.
        networks: the three models.
        data: the training set.
        phases: told what is going on once the parent asks for it.
        pacer: counts the steps.

    Returns:
        The Trainer, for tests.
    """
    with tempfile.TemporaryDirectory() as directory:
        config = BMTARDConfig(
            output_dir=directory,
            per_device_train_batch_size=scene.batch_size,
            seed=scene.seed,
            use_cpu=scene.device == "cpu",
            save_strategy="no",
            report_to="none",
            disable_tqdm=True,
            **options,
        )
        trainer = BMTARDTrainer(
            networks.student,
            config,
            train_dataset=data,
            clean_teacher=networks.clean_teacher,
            robust_teacher=networks.robust_teacher,
            callbacks=[HandsOver(pacer)],
        )
        trainer.remove_callback(PrinterCallback)  # prints the logs, without which they are still collected
        pacer.before_phases = lambda: look_inside(trainer, phases)
        trainer.train()
    return trainer


def look_inside(trainer: BMTARDTrainer, phases: Phases) -> None:
    """Count the parts of a Trainer's step from outside; only after the timed steps, because it may slow them down.

    Raises:
        AttributeError: if the Trainer has no such method any more, so that no part is silently counted as overhead.
    """
    for path, name in PARTS:
        owner: Any = trainer
        *parents, method = path.split(".")
        for parent in parents:
            owner = getattr(owner, parent)
        phases.wrap(owner, method, name)
