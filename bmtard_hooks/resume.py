"""Checkpoints that hold temperatures, weights and callbacks, so that a resumed run goes on where it was."""

from __future__ import annotations

import json
import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch

from bmtard_hooks.callbacks.base import DistillationCallback
from bmtard_hooks.callbacks.weight_averaging import WeightAveraging
from bmtard_hooks.checkpoint_folders import best_of
from bmtard_hooks.checkpoint_weights import ReadsWholeWeights
from bmtard_hooks.config import BMTARDConfig
from bmtard_hooks.continuity import GoesOn
from bmtard_hooks.distributed import broadcast_buffers
from bmtard_hooks.finite_guard import FiniteGuard
from bmtard_hooks.origin import compare_origin
from bmtard_hooks.state import DistillationState, load_state, load_tensors, save_state, save_tensors

VERSION = 1


class KeepsDistillationState(ReadsWholeWeights, GoesOn):
    """Writes ``distillation_state.json`` into every checkpoint and reads it back.

    Transformers' own way of saving callbacks is off by default and builds new objects on resume, so the handles that a
    user holds would go dead; here callbacks keep their identity.
    """

    args: BMTARDConfig
    model: Any
    distillation: DistillationState
    _finite: FiniteGuard
    _begun_with: dict[str, Any] | None = None

    def _save_checkpoint(self, model: Any, trial: Any) -> None:
        broadcast_buffers(self.model)
        self._finite.check()  # a run that went wrong must not replace a good checkpoint
        content = self.serialised_state(self.run_record())
        for name, value in self.model.state_dict().items():
            if value.is_floating_point() and not torch.isfinite(value).all():
                raise FloatingPointError(
                    f"step {self.state.global_step}: {name} of the student is not finite although every loss was. No "
                    "checkpoint was written; the last one is good. A lower learning rate or max_grad_norm may help"
                )
        tensors = self._tensors()  # on every rank, because callbacks may have to agree
        if self.args.should_save:
            directory = os.path.join(self._get_output_dir(trial), f"checkpoint-{self.state.global_step}")
            os.makedirs(directory, exist_ok=True)
            save_tensors(directory, tensors)
            save_state(directory, content)
        self._make_place_for_callbacks()
        super()._save_checkpoint(model, trial)

    def _load_optimizer_and_scheduler(self, checkpoint: str | None) -> None:
        super()._load_optimizer_and_scheduler(checkpoint)
        if checkpoint is not None:
            best = best_of(Path(checkpoint))  # beside it, wherever the run has been moved
            self.state.best_model_checkpoint = str(best) if best is not None and best.is_dir() else None
            self._restore(load_state(checkpoint), checkpoint)

    def serialised_state(self, run: dict[str, Any] | None = None) -> str:
        """Write the balance and the callbacks as JSON.

        Args:
            run: the run's record, see ``run_record``; left out before there is a run.

        Raises:
            TypeError: naming the callback whose state is not made of plain values.
        """
        for callback in self.distillation_callbacks():
            try:
                json.dumps(callback.state_dict(), allow_nan=False)
            except (TypeError, ValueError) as error:
                raise TypeError(
                    f"{type(callback).__name__}.state_dict() must hold plain numbers, strings and lists: {error}"
                ) from error
        content = self._distillation_content()
        if run is not None:
            content |= {"run": run, "finite": self._finite.state_dict(), "begun_with": self._origin()}
        return json.dumps(content, indent=2, allow_nan=False)

    def _origin(self) -> dict[str, Any] | None:
        if self._begun_with is None:
            return None
        images = self.get_total_train_batch_size(self.args)  # with the size that auto_find_batch_size found
        shared = self.args.world_size if self.accelerator.split_batches else 1
        return {**self._begun_with, "images_per_step": images // shared}

    def _distillation_content(self) -> dict[str, Any]:
        callbacks = [{"class": type(c).__name__, "state": c.state_dict()} for c in self.distillation_callbacks()]
        return {
            "version": VERSION,
            "method": self.args.method,
            **self.distillation.state_dict(),
            "callbacks": callbacks,
        }

    def _restore(self, content: dict[str, Any], checkpoint: str) -> None:
        if content.get("version") != VERSION:
            raise ValueError(
                f"{checkpoint} has distillation state version {content.get('version')}, this release reads {VERSION}"
            )
        if content["method"] != self.args.method:
            raise ValueError(
                f"{checkpoint} was trained with method={content['method']!r}, this run has {self.args.method!r}: "
                "resume with the same method or start in another output_dir"
            )
        callbacks = self.distillation_callbacks()
        saved, now = [c["class"] for c in content["callbacks"]], [type(c).__name__ for c in callbacks]
        if saved != now:
            raise ValueError(f"{checkpoint} has callbacks {saved}, this run has {now}: make them the same to resume")
        origin = self._origin()
        if content.get("begun_with") and origin is not None:  # not in checkpoints of older releases
            compare_origin(content["begun_with"], origin, checkpoint)
        self.state.train_batch_size = self._train_batch_size  # other, if fewer images are accumulated more often
        self.distillation.load_state_dict(content)
        self._restore_callbacks(content, checkpoint, callbacks)
        self._resumed = {**content["run"], "checkpoint": checkpoint} if "run" in content else None
        self._finite.load_state_dict(content.get("finite", self._finite.state_dict()))

    def _restore_callbacks(
        self, content: dict[str, Any], checkpoint: str, wanted: Sequence[DistillationCallback]
    ) -> None:
        for callback, entry in zip(self.distillation_callbacks(), content["callbacks"], strict=True):
            if callback in wanted:
                callback.load_state_dict(entry["state"])
        saved_tensors = load_tensors(checkpoint)
        for index, callback in enumerate(self.distillation_callbacks()):
            prefix = f"{index}."
            if callback in wanted:
                callback.load_tensors(
                    {key.removeprefix(prefix): value for key, value in saved_tensors.items() if key.startswith(prefix)}
                )

    def _load_best_model(self) -> None:
        super()._load_best_model()
        averages = [callback for callback in self.distillation_callbacks() if isinstance(callback, WeightAveraging)]
        best = self.state.best_model_checkpoint
        if averages and best is not None:  # what was evaluated there is the average
            self._restore_callbacks(load_state(best), best, averages)

    def _tensors(self) -> dict[str, torch.Tensor]:
        return {
            f"{index}.{name}": value
            for index, callback in enumerate(self.distillation_callbacks())
            for name, value in callback.tensors().items()
        }
