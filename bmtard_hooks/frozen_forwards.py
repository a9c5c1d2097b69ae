"""Forwards that ask for no weight gradient, as cheap as they can be: the attacked student's and the frozen teachers'."""

from __future__ import annotations

import inspect
import logging
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn
from transformers import Trainer

from bmtard_hooks.config import BMTARDConfig
from bmtard_hooks.distributed import is_sharded
from bmtard_hooks.methods import Classifier, Method
from bmtard_hooks.models.agreement import disagreement
from bmtard_hooks.models.folding import FoldedClassifier
from bmtard_hooks.models.pixels import PixelClassifier

logger = logging.getLogger(__name__)

PRECISIONS = {"bf16": torch.bfloat16, "fp16": torch.float16}
COUNTS_FOR_EACH = "isolate_recompiles" in inspect.signature(torch.compile).parameters
COMPARED = 8
"""Images on which a copy is compared with its network."""


class FrozenForwards(Trainer):
    """Runs attacks and teachers on copies whose BatchNorm is folded, already in the precision of the run, compiled if asked.

    A network without a copy (no BatchNorm, not traceable, sharded, attacked in training mode) is run as it is.
    """

    args: BMTARDConfig
    model: Any
    method: Method
    student: PixelClassifier
    teachers: dict[str, PixelClassifier]
    _asked: dict[str, Any]

    def forget_copies(self) -> None:
        """Run every network as it is, until ``copy_networks``."""
        self._copied_at: int | None = None
        self._copy_is_doubted = False
        self._copy: FoldedClassifier | None = None
        self._attacked = compiled(self.model, self.args)
        self._asked = {name: compiled(teacher, self.args) for name, teacher in self.teachers.items()}

    def doubt_copy(self) -> None:
        """Let the next ``copy_networks`` see whether the student's copy is still right, whatever the epoch."""
        self._copy_is_doubted = True

    def copy_networks(self, pixels: Tensor, epoch: int) -> None:
        """Note the images' size, copy student and frozen teachers, or see whether the student's copy is right.

        A copy is made from a trace of the student's forward. A forward that changes later, because a callback switches
        something in it, say, is not the traced one any more. That is looked at once an epoch and in every evaluation.

        Args:
            pixels: ``(B, C, H, W)`` images of the run on its device.
            epoch: finished epochs.
        """
        if self._copied_at == epoch and not self._copy_is_doubted:
            return
        is_first, self._copied_at, self._copy_is_doubted = self._copied_at is None, epoch, False
        if is_first:
            self.student.record_image_size(*pixels.shape[1:])
        if not self.args.fold_batch_norm:
            return
        images = pixels[:COMPARED]
        if is_first:
            self._copy = None if is_sharded(self.model) else self._folded(self.student, images)
            for name in self.teachers.keys() - set(self.method.trained_teachers):
                folded = self._folded(self.teachers[name], images)
                self._asked[name] = self._asked[name] if folded is None else folded.share()
        elif self._copy is not None:
            reason = disagreement(self.student, self._copy.in_float32(), images)
            if reason is not None:
                logger.warning("the student's forward has changed, it is attacked unfolded now: %s", reason)
                self._copy = None

    def _folded(self, classifier: PixelClassifier, images: Tensor) -> FoldedClassifier | None:
        folded = FoldedClassifier.checked(classifier, images)
        if folded is not None:
            if self.accelerator.mixed_precision in PRECISIONS:
                folded.to_precision(PRECISIONS[self.accelerator.mixed_precision])
            if self.args.torch_compile:
                folded.compile(**compile_options(self.args))
        return folded

    def attacked_student(self, train_mode: bool = False) -> Classifier:
        """Return the student as an attack sees it, with the weights it has at the first call.

        Args:
            train_mode: the attack runs in training mode, in which there is nothing to fold.
        """
        copy = None if train_mode else self._copy
        if copy is None:
            return partial(self.student.logits, self._attacked)
        fresh = False

        def classify(pixels: Tensor) -> Tensor:
            nonlocal fresh
            if not fresh:
                copy.refresh()
                fresh = True
            with self.accelerator.autocast():
                return copy(pixels)

        return classify


def compiled(module: nn.Module, args: BMTARDConfig) -> Any:
    """Compile a module as the arguments say, or return it as it is."""
    return torch.compile(module, **compile_options(args)) if args.torch_compile else module


def compile_options(args: BMTARDConfig) -> dict[str, Any]:
    """Read backend and mode of ``torch.compile`` from the arguments.

    All copies run the same code, of which torch compiles eight versions and runs the others as they are. Newer releases
    count for each copy by itself.
    """
    options = {"backend": args.torch_compile_backend or "inductor", "mode": args.torch_compile_mode}
    return {**options, "isolate_recompiles": True} if COUNTS_FOR_EACH else options
