"""A training that begins only when everything fits, can be killed at any moment, and leaves out steps that went wrong."""

from __future__ import annotations

import logging
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, cast

import torch
from accelerate.utils import broadcast_object_list
from torch import Tensor, nn
from transformers.trainer_utils import TrainOutput

from bmtard_hooks.buffers import kept_buffers
from bmtard_hooks.checkpoint_folders import newest_whole, recover, set_aside, why_unusable
from bmtard_hooks.checks import check_before_training, check_output_dir
from bmtard_hooks.distributed import leave_at_exit
from bmtard_hooks.finite_guard import StepSkipped
from bmtard_hooks.methods import Method
from bmtard_hooks.models.pixels import PixelClassifier
from bmtard_hooks.origin import describe_origin
from bmtard_hooks.resume import KeepsDistillationState
from bmtard_hooks.saving import SavesWhole
from bmtard_hooks.sole_writer import FolderInUse, SoleWriter
from bmtard_hooks.stopping import EvaluationAbandoned, StoppedBySignal
from bmtard_hooks.window import AccumulationWindow, Batch

if TYPE_CHECKING:
    from bmtard_hooks.trainer import BMTARDTrainer

logger = logging.getLogger(__name__)

LARGEST_HALF = torch.finfo(torch.float16).max

Step = Callable[[nn.Module, Batch, Any], Tensor]


class RunsSafely(SavesWhole, KeepsDistillationState):
    """Starts and resumes trainings, and decides about steps with numbers that are not finite."""

    method: Method
    teachers: dict[str, PixelClassifier]
    optimizer: Any
    _window: AccumulationWindow
    _own_directory = False  # becomes true with the first training, which may then be repeated
    _put_back: list[Callable[[], None]]

    def train(self, resume_from_checkpoint: str | bool | None = None, *args: Any, **kwargs: Any) -> TrainOutput:
        """Train, after every check that does not need a step. See ``Trainer.train``.

        Args:
            resume_from_checkpoint: a checkpoint; True for the newest whole one of ``output_dir``; ``"auto"`` for that one
                if there is one, and the start if not, as a job needs that is started again and again.
            *args: as in ``Trainer``.
            **kwargs: as in ``Trainer``.

        Raises:
            FileExistsError: if ``output_dir`` holds another run.
            FileNotFoundError: if there is no checkpoint to resume from.
            ValueError: for data, labels, teachers or a checkpoint that do not fit.
            FolderInUse: if another process trains in ``output_dir``.
            FloatingPointError: if a number of a step stops being finite; checkpoints written before stay as they are.
            StoppedBySignal: a ``SystemExit`` with code 0, after a signal, when the checkpoint is written.
        """
        resume = {"true": True, "false": None, "none": None}.get(
            str(resume_from_checkpoint).lower(), resume_from_checkpoint
        )
        check_before_training(cast("BMTARDTrainer", self), resume)
        leave_at_exit()
        writer = SoleWriter(Path(str(self.args.output_dir)))
        try:
            checkpoint = self._checkpoint_to_resume(resume, writer)
            return self._train_from(checkpoint, *args, **kwargs)
        finally:
            writer.leave()

    def _train_from(self, checkpoint: str | None, *args: Any, **kwargs: Any) -> TrainOutput:
        self._own_directory = True
        self._begun_with = describe_origin(self.args, self.teachers, self.method.trained_teachers, self.train_dataset)
        try:
            with self._stop.listening(self.args.stop_signals):
                output = super().train(checkpoint, *args, **kwargs)
        except EvaluationAbandoned:  # the one before the first step (eval_on_start)
            raise StoppedBySignal(0) from None
        except BaseException:
            self.fire("on_interrupted")
            raise
        self._finite.finish(self.state.global_step)
        return output._replace(training_loss=output.metrics["train_loss"])  # a mean over all steps, also if resumed

    def _inner_training_loop(self, *args: Any, **kwargs: Any) -> Any:
        # here, because a retry with a smaller batch (auto_find_batch_size) starts over too
        cast("BMTARDTrainer", self)._start_anew()
        return super()._inner_training_loop(*args, **kwargs)  # type: ignore[misc]

    def _checkpoint_to_resume(self, resume: str | bool | None, writer: SoleWriter) -> str | None:
        """Let the main process take the folder and choose a checkpoint that is whole, for all."""
        answer: list[Any] = [None, None]
        if self.args.process_index == 0:
            output_dir = Path(str(self.args.output_dir))
            try:
                if output_dir.is_dir():
                    writer.take()
                answer[0] = choose_checkpoint(output_dir, resume, self.args.load_best_model_at_end)
                if resume == "auto" and answer[0] is None and not self._own_directory:
                    check_output_dir(self.args, None)
                writer.take()
            except (OSError, ValueError, FolderInUse) as error:
                answer[1] = error
        broadcast_object_list(answer)
        if answer[1] is not None:
            raise answer[1]
        return answer[0]

    # Steps that are left out.

    def note_images(self, batches: Sequence[Batch]) -> None:
        """Let the alarm look at the images of a step, the clean ones and the crafted ones."""
        for batch in batches:
            self._finite.note("image", "the clean images", batch["pixel_values"])
            for view in self.method.adversarial_views:
                self._finite.note("crafted", f"the crafted images ({view})", batch[view])

    def note_attack(self, gradient: Tensor) -> None:
        """Let the alarm look at an attack's gradient, and count the images that have none.

        Args:
            gradient: ``(B, C, H, W)``.
        """
        largest = gradient.abs().flatten(1).amax(dim=1)  # NaN if any is
        if self.accelerator.mixed_precision == "fp16":
            largest = largest.clamp_max(LARGEST_HALF)  # of a gradient that overflows, the attack still takes the sign
        self._finite.note("attack", "the gradient of the attack", largest)
        self._window.zero_gradients.append((largest == 0).double().mean())

    def unless_left_out(self, step: Step, model: nn.Module, inputs: Batch, num_items_in_batch: Any) -> Tensor:
        """Take a micro-batch's part of a step, or leave the whole step out if a number in it is not finite.

        Args:
            step: the step.
            model: the student as Trainer wrapped it.
            inputs: the micro-batch.
            num_items_in_batch: as in ``Trainer``.

        Returns:
            The loss, 0-dim; that of an average step since the last log if the step is left out.
        """
        window = self._window
        if self._finite.skips and window.position == 0:
            self._put_back = self._snapshots()
        if not window.left_out:
            try:
                return step(model, inputs, num_items_in_batch)
            except StepSkipped as reason:
                self._leave_out(str(reason))
        parts = len(window) * (1 + self.state.global_step - self._globalstep_last_logged)
        window.position += 1
        if window.is_over:
            self.model.zero_grad(set_to_none=True)  # what earlier micro-batches added; the optimizer has nothing to do
            window.clear()
        return self._tr_loss / parts

    def _snapshots(self) -> list[Callable[[], None]]:
        """Remember all that a step moves beside what the optimizer does."""
        reacting = {
            id(getattr(react, "__self__", None))
            for event in ("on_crafted", "on_losses")
            for react in self.listeners(event)
        }
        callbacks = [callback.snapshot() for callback in self.distillation_callbacks() if id(callback) in reacting]
        return [kept_buffers(self.model), self.distillation.snapshot(), self._metrics.snapshot(), *callbacks]

    def _leave_out(self, reason: str) -> None:
        self._window.left_out = True
        for put_back in self._put_back:
            put_back()
        logger.warning("%s This step is left out, the %d. of the run", reason, self._finite.skipped)

    def _get_grad_norm(self, model: nn.Module, grad_norm: Any = None) -> Any:
        if self._window.left_out:
            return self._pass_over()
        norm = self._grad_norm = super()._get_grad_norm(model, grad_norm)
        if self.accelerator.mixed_precision == "fp16":
            self._finite.succeed()
            return norm  # fp16's gradient scaler leaves such steps out itself, and lowers its scale
        whole = norm.full_tensor() if hasattr(norm, "full_tensor") else norm
        try:
            self._finite.watch_gradient(self.state.global_step, whole)
        except StepSkipped as reason:
            self._leave_out(str(reason))
            self.model.zero_grad(set_to_none=True)
            return self._pass_over()
        self._finite.succeed()
        return norm

    def _clip_grad_norm(self, model: nn.Module) -> Any:
        if self._window.left_out:  # a gradient scaler would look for gradients to unscale
            return None
        return super()._clip_grad_norm(model)  # type: ignore[misc]

    def _pass_over(self) -> Tensor:
        """Let the optimizer, and a gradient scaler around it, do nothing in this step, and return the norm of no gradient."""
        self.accelerator.gradient_state._set_sync_gradients(False)  # until the next micro-batch
        self.optimizer._is_overflow = False  # of an earlier step, for which the learning rate would be held back
        self._grad_norm = torch.zeros((), device=self.args.device)
        return self._grad_norm


def choose_checkpoint(output_dir: Path, resume: str | bool | None, needs_best: bool = False) -> str | None:
    """Find the checkpoint to go on from, and say in the log which it is and why.

    Args:
        output_dir: of the run.
        resume: see ``RunsSafely.train``.
        needs_best: see ``newest_whole``.

    Raises:
        FileNotFoundError: if there is none.
        ValueError: if the one that was named is not whole, with the newest that is.
    """
    if not resume:
        set_aside(output_dir)
        return None
    recover(output_dir if resume in (True, "auto") else Path(str(resume)).parent)
    if resume not in (True, "auto"):
        return _named(Path(str(resume)))
    whole, passed_over = newest_whole(output_dir, needs_best)
    for name, reason in passed_over.items():
        logger.warning("%s is not used: %s", output_dir / name, reason)
    if whole is not None:
        newest = "the newest that is whole" if passed_over else "the newest"
        logger.info("going on from %s, %s", whole, newest)
        return str(whole)
    if resume == "auto" and not passed_over:
        logger.info("%s holds no checkpoint, so training begins at step 0", output_dir)
        return None
    damaged = "; ".join(f"{name}: {reason}" for name, reason in passed_over.items())
    raise FileNotFoundError(
        f"resume_from_checkpoint={resume!r}, but {output_dir} holds no whole checkpoint"
        + (f" ({damaged})" if damaged else "")
        + ": pass the output_dir of the run to go on with, or leave resume_from_checkpoint out to start anew"
    )


def _named(directory: Path) -> str:
    if not directory.is_dir():
        raise FileNotFoundError(
            f"resume_from_checkpoint={str(directory)!r} does not exist: pass a checkpoint-N folder, or True for the newest of "
            "output_dir"
        )
    reason = why_unusable(directory)
    if reason is None:
        return str(directory)
    whole, _ = newest_whole(directory.parent)
    instead = f"resume from {whole}" if whole is not None else "there is no whole one beside it, start anew"
    raise ValueError(f"{directory} cannot be resumed: {reason}. Instead, {instead}")
