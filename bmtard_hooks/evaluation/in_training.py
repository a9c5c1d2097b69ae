"""``evaluate()`` with an attack: clean accuracy, robust accuracy and W-Robust, without disturbing the training."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import ExitStack, contextmanager, nullcontext
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from huggingface_hub import HfApi
from torch import Tensor, nn
from torch.utils.data import DataLoader
from transformers.trainer_utils import EvalLoopOutput, HubStrategy
from transformers.utils import PushInProgress

from bmtard_hooks.attacks.guard import attack_mode
from bmtard_hooks.attacks.losses import cross_entropy
from bmtard_hooks.attacks.pgd import draw_noise_by_image, pgd
from bmtard_hooks.callbacks.weight_averaging import WeightAveraging
from bmtard_hooks.class_names import names_of_data, names_of_model, require_same_order
from bmtard_hooks.config import BMTARDConfig
from bmtard_hooks.data import NumberedCollate, numbered
from bmtard_hooks.distributed import broadcast_buffers
from bmtard_hooks.evaluation.metrics import RobustPrediction
from bmtard_hooks.events import FiresEvents
from bmtard_hooks.frozen_forwards import FrozenForwards
from bmtard_hooks.models.pixels import PixelClassifier
from bmtard_hooks.models.precision import exact_arithmetic, full_precision
from bmtard_hooks.randomness import untouched_randomness
from bmtard_hooks.state import DistillationState


class EvaluatesRobustness(FrozenForwards, FiresEvents):
    """Attacks every image of the evaluation set once; verdicts are taken in float32, on averaged weights if there are any."""

    args: BMTARDConfig
    model: Any
    eval_dataset: Any
    data_collator: Any
    student: PixelClassifier
    distillation: DistillationState
    push_in_progress: Any

    def get_eval_dataloader(self, eval_dataset: Any = None) -> DataLoader:
        """Load every image together with its position, which its noise depends on. See ``Trainer``."""
        self._check_classes("eval_dataset", eval_dataset)
        self._forget_loader_of_others(eval_dataset)
        with self._every_image():
            given = eval_dataset if eval_dataset is None or isinstance(eval_dataset, str) else numbered(eval_dataset)
            return super().get_eval_dataloader(given)

    def get_test_dataloader(self, test_dataset: Any) -> DataLoader:
        """As ``get_eval_dataloader``, for ``predict``."""
        self._check_classes("test_dataset", test_dataset)
        with self._every_image():
            return super().get_test_dataloader(numbered(test_dataset))

    def _forget_loader_of_others(self, given: Any) -> None:
        # transformers keeps a loader with persistent workers under a name, which is the same for all data sets without one
        key = given if isinstance(given, str) else "eval"
        rows = self.eval_dataset if given is None else self.eval_dataset[given] if isinstance(given, str) else given
        loaded = self.__dict__.setdefault("_rows_of_loaders", {})
        if loaded.get(key) is not rows:
            getattr(self, "_eval_dataloaders", {}).pop(key, None)
        loaded[key] = rows

    def predict(self, *args: Any, **kwargs: Any) -> RobustPrediction:
        """Classify images and measure what their labels allow. See ``Trainer.predict``.

        Returns:
            ``predictions`` are the logits of the clean images ``(N, C)``; those of the attacked ones are in
            ``attacked_predictions``.
        """
        return RobustPrediction.divide(super().predict(*args, **kwargs))

    def _check_classes(self, role: str, rows: Any) -> None:
        column = getattr(self.data_collator, "label_column", None)
        require_same_order(role, names_of_data(rows, column), "the student", names_of_model(self.student))

    @contextmanager
    def _every_image(self) -> Iterator[None]:
        # transformers applies dataloader_drop_last to evaluation too, and would skip images silently
        saved = self.args.dataloader_drop_last, self.eval_dataset, self.data_collator
        self.args.dataloader_drop_last = False
        self.eval_dataset = numbered(self.eval_dataset)
        self.data_collator = NumberedCollate(self.data_collator)
        try:
            yield
        finally:
            self.args.dataloader_drop_last, self.eval_dataset, self.data_collator = saved

    def evaluation_loop(self, *args: Any, **kwargs: Any) -> EvalLoopOutput:
        """Evaluate the same model on every rank and leave the random numbers of the training alone."""
        if "inputs" in self.args.include_for_metrics and not hasattr(self.model, "main_input_name"):
            self.model.main_input_name = (
                "pixel_values"  # transformers asks every model for the name, plain modules too
            )
        with self.averaged_weights(), untouched_randomness(self.args.device):
            broadcast_buffers(self.model)
            self.doubt_copy()
            try:
                return super().evaluation_loop(*args, **kwargs)
            finally:
                self._forget_evaluation_loaders()

    def _forget_evaluation_loaders(self) -> None:
        # accelerate keeps every loader that it ever prepared, and the Trainer makes one in each evaluation
        kept = getattr(self.accelerator, "_dataloaders", [])
        kept[:] = [loader for loader in kept if loader is getattr(self.callback_handler, "train_dataloader", None)]

    @contextmanager
    def averaged_weights(self) -> Iterator[None]:
        """Let the model hold the averaged weights inside, if there are any; see ``WeightAveraging``."""
        with ExitStack() as stack:
            for callback in self.weight_averages():
                stack.enter_context(callback.in_model())
            yield

    def weight_averages(self) -> list[WeightAveraging]:
        """List the callbacks that average weights: one or none."""
        return [callback for callback in self.distillation_callbacks() if isinstance(callback, WeightAveraging)]

    def save_model(self, output_dir: str | None = None, _internal_call: bool = False) -> None:
        """Save the model, with averaged weights if there are any. See ``Trainer``.

        Checkpoints, which are internal calls, get the weights that the training goes on with.
        """
        with nullcontext() if _internal_call else self.averaged_weights():
            super().save_model(output_dir, _internal_call)

    def push_to_hub(self, *args: Any, **kwargs: Any) -> Any:
        """Upload the model, with averaged weights if there are any. See ``Trainer``."""
        with self.averaged_weights():
            return super().push_to_hub(*args, **kwargs)

    def _push_from_checkpoint(self, checkpoint_folder: str) -> None:
        """Upload what a checkpoint calls for; the model at the top has averaged weights, if there are any. See ``Trainer``."""
        if not any(average.updates for average in self.weight_averages()):
            super()._push_from_checkpoint(checkpoint_folder)
            return
        if not self.is_world_process_zero() or self.args.hub_strategy == HubStrategy.END:
            return
        goes_on = self.push_in_progress is not None and not self.push_in_progress.is_done()
        if goes_on and not self.args.hub_always_push:
            return
        self.callback_handler.on_push_begin(self.args, self.state, self.control)
        with self.averaged_weights():
            super().save_model(_internal_call=True)
        jobs = [self._upload(Path(str(self.args.output_dir)), None)]
        if self.args.hub_strategy == HubStrategy.CHECKPOINT:
            jobs.append(self._upload(Path(checkpoint_folder), "last-checkpoint"))
        elif self.args.hub_strategy == HubStrategy.ALL_CHECKPOINTS:
            jobs.append(self._upload(Path(checkpoint_folder), Path(checkpoint_folder).name))
        if not goes_on:
            self.push_in_progress = PushInProgress()
        self.push_in_progress.jobs.extend(jobs)

    def _upload(self, folder: Path, place: str | None) -> Any:
        return HfApi().upload_folder(
            repo_id=str(self.hub_model_id),
            folder_path=folder,
            path_in_repo=place,
            commit_message=f"Training in progress, step {self.state.global_step}{', checkpoint' if place else ''}",
            token=self.args.hub_token,
            revision=self.args.hub_revision,
            ignore_patterns=["_*", "checkpoint-*"] if place is None else None,
            run_as_future=True,
        )

    def prediction_step(
        self,
        model: nn.Module,
        inputs: dict[str, Tensor],
        prediction_loss_only: bool,
        ignore_keys: list[str] | None = None,
    ) -> tuple[Tensor, Any, Tensor]:
        """Classify a batch clean and, unless ``eval_attack`` is off, under PGD. See ``Trainer``."""
        batch = self._prepare_inputs(inputs)
        pixels, labels = batch["pixel_values"], batch["labels"]
        clean_logits = self._verdict(pixels)
        loss = F.cross_entropy(clean_logits, labels)
        if prediction_loss_only or not self.args.eval_attack:
            return loss, None if prediction_loss_only else clean_logits, labels
        settings, noise = self.args.evaluation_attack(), None
        if "image_index" in batch:
            indices = batch["image_index"].tolist()
            # The noise that evaluate_robustness gives an attack of this name, so that both measure the same.
            key = (self.args.seed, self.args.evaluation_attack_name, "start", 0)
            noise = draw_noise_by_image(indices, pixels.shape[1:], settings, *key)
        self.copy_networks(pixels, self.distillation.epoch)
        with attack_mode(self.model):
            adversarial = pgd(
                self.attacked_student(),
                pixels,
                cross_entropy(labels),
                settings,
                noise=noise,
                gradient_scale=self.attack_gradient_scale,
            )
        return loss, (clean_logits, self._verdict(adversarial)), labels

    @property
    def attack_gradient_scale(self) -> float:
        """Factor on every attack's objective, without which input gradients underflow in fp16."""
        return 1024.0 if self.accelerator.mixed_precision == "fp16" else 1.0

    def _verdict(self, pixels: Tensor) -> Tensor:
        with torch.no_grad(), full_precision(self.model), exact_arithmetic():
            return self.student(pixels)
