"""What transformers forgets between the killed and the resumed run: half-filled logs, evaluations that were due, a stop."""

from __future__ import annotations

import logging
import math
import sys
import time
from collections import Counter
from contextlib import nullcontext
from typing import Any

import torch
from torch.utils.data import DataLoader
from transformers import TrainerCallback
from transformers.trainer_callback import ExportableState
from transformers.trainer_pt_utils import nested_gather

from bmtard_hooks.config import BMTARDConfig
from bmtard_hooks.events import FiresEvents
from bmtard_hooks.observation import StepMetrics
from bmtard_hooks.state import load_state
from bmtard_hooks.stopping import DeafWorker, EvaluationAbandoned, StoppedBySignal, StopRequest

logger = logging.getLogger(__name__)


class GoesOn(FiresEvents):
    """Lets a resumed run log, evaluate and stop where the run that was never interrupted does, and stops it politely."""

    args: BMTARDConfig
    _metrics: StepMetrics
    _stop: StopRequest
    _resumed: dict[str, Any] | None = None
    _due: dict[str, bool] | None = None
    _epoch_ended_at = -1
    _pass: tuple[int, int] | None = None  # of a stream: its number, and how many steps were taken before it
    _workers_are_deaf = False  # nor will they be with a loader of a user's
    _grad_norm: Any = None
    _learning_rate: float | None = None

    def request_stop(self, reason: str = "request_stop()") -> None:
        """Let training end after the step that runs now, as SIGTERM does: with a checkpoint, and ``SystemExit(0)``.

        Args:
            reason: for the log.
        """
        self._stop.request(reason)

    # What a checkpoint holds.

    def run_record(self) -> dict[str, Any]:
        """Collect what the next log, the end of this epoch and the summary of the run will need; on every rank.

        Returns:
            Plain JSON values. The loss sums are those of every rank, because each adds up its own.
        """
        return {
            "loss_sums": nested_gather(self._tr_loss, self.args.parallel_mode).reshape(-1).tolist(),
            "total_loss": self._total_loss_scalar,
            "last_logged_step": self._globalstep_last_logged,
            "grad_norm": finite_or_none(self._grad_norm),
            "learning_rate": self._learning_rate,
            "metrics": self._metrics.state_dict(),
            "due": self._due or {"evaluate": False, "save": False},
            "epoch_end_due": self._epoch_is_over() and self._epoch_ended_at != self.state.global_step,
            "stopping": self.control.should_training_stop and self.state.global_step < self.state.max_steps,
            **({} if self._pass is None else {"pass": self._pass_to_go_on_with(self._pass)}),
        }

    def _pass_to_go_on_with(self, running: tuple[int, int]) -> tuple[int, int]:
        step = self.state.global_step
        over = self._epoch_ended_at == step < self.state.max_steps and not self.control.should_training_stop
        return (running[0] + 1, step) if over else running

    def _epoch_is_over(self) -> bool:
        epoch = self.state.epoch or 0.0
        ends = self.control.should_epoch_stop or self.control.should_training_stop
        return ends or abs(epoch - round(epoch)) < 1e-6 or self.state.global_step >= self.state.max_steps

    def _load_optimizer_and_scheduler(self, checkpoint: str | None) -> None:
        super()._load_optimizer_and_scheduler(checkpoint)  # type: ignore[misc]
        callbacks = self.callback_handler.callbacks  # all of them: transformers has restored its own by now
        callbacks.sort(key=lambda callback: isinstance(callback, GoesOnCallback))

    def _go_on(self) -> None:
        """Take over the record of the checkpoint, and make up for what the killed run did not come to."""
        record, self._resumed = self._resumed, None
        self._epoch_ended_at = -1
        if record is None:
            return
        sums = record["loss_sums"]
        own = sums[self.args.process_index] if len(sums) == self.args.world_size else sum(sums) / len(sums)
        self._tr_loss.fill_(own)
        self._total_loss_scalar = record["total_loss"]
        self._globalstep_last_logged = record["last_logged_step"]
        self._metrics.load_state_dict(record["metrics"], self.args.device)
        self._restore_foreign_callbacks()
        self.control.should_training_stop = record["stopping"]
        if any(record["due"].values()) or record["epoch_end_due"]:
            # transformers loads them with the first batch, from the checkpoint that is written again here
            self._load_rng_state(record["checkpoint"])
        if any(record["due"].values()):
            logger.info(
                "step %d: evaluating and saving, which the stopped run did not come to", self.state.global_step
            )
            self.control.should_log = False
            self.control.should_evaluate, self.control.should_save = record["due"]["evaluate"], record["due"]["save"]
            self._catch_up(record)
        if record["epoch_end_due"] and self.state.global_step <= self.state.max_steps:
            self.control = self.callback_handler.on_epoch_end(self.args, self.state, self.control)
            self._catch_up(record)

    def _catch_up(self, record: dict[str, Any]) -> None:
        self._maybe_log_save_evaluate(
            *(self._tr_loss, record["grad_norm"], self.model_wrapped, None, self.state.epoch, None, time.time()),
            learning_rate=record["learning_rate"],
        )

    def _make_place_for_callbacks(self) -> None:
        """Lay out the state as transformers fills it when it saves: an entry a class, an empty list for a class met twice.

        It knows no callbacks that the checkpoint did not know, and adds to lists for ever, while it reads their beginning.
        """
        own = [*self.callback_handler.callbacks, self.control]
        met = Counter(type(callback).__name__ for callback in own if isinstance(callback, ExportableState))
        known: Any = self.state.stateful_callbacks
        known.update({name: [] if count > 1 else {} for name, count in met.items()})

    def _restore_foreign_callbacks(self) -> None:
        """Give transformers' own stateful callbacks (early stopping) their numbers back, in the objects that users hold."""
        if self.args.restore_callback_states_from_checkpoint:
            return  # done by transformers, with new objects
        stored: Any = self.state.stateful_callbacks or {}
        for name, saved in stored.items():
            entries = saved if isinstance(saved, list) else [saved]
            callbacks = [c for c in self.callback_handler.callbacks if type(c).__name__ == name]
            for callback, entry in zip(callbacks, entries, strict=False):
                if isinstance(callback, ExportableState):
                    vars(callback).update(entry.get("attributes", {}))

    # The loop.

    def _init_training_state(
        self, max_steps: int, steps_per_epoch: int, epochs: int, checkpoint: str | None, trial: Any
    ) -> tuple[int, int]:
        """Find where a run goes on: its epoch, or the pass of a stream, and how many micro-batches of it are done.

        Transformers takes all steps of a run for one pass of a stream whose length it does not know. A stream that ends
        earlier would be skipped to its end, and the pass that was interrupted begun anew.
        """
        place = super()._init_training_state(max_steps, steps_per_epoch, epochs, checkpoint, trial)  # type: ignore[misc]
        self._pass = (-1, 0) if epochs == sys.maxsize else None  # its number of epochs for a stream
        if self._pass is None or checkpoint is None:
            return place
        stored, step = load_state(checkpoint).get("run", {}).get("pass"), self.state.global_step
        if stored is None:
            if (self.state.epoch or 0.0) >= 1:
                logger.warning(
                    "%s does not say how far its stream was read: images of a pass may come again", checkpoint
                )
            self._pass = (place[0], step - place[1] // self.args.gradient_accumulation_steps)
            return place
        self._pass = (stored[0], step if self.args.ignore_data_skip else stored[1])
        return self._pass[0], (step - self._pass[1]) * self.args.gradient_accumulation_steps

    def _run_epoch(self, *args: Any, **kwargs: Any) -> None:
        if self.state.global_step >= self.state.max_steps:  # a run that is resumed at its end would take one step more
            self.control.should_training_stop = True  # and there is always a next pass of a stream
        if self._pass is not None and self._pass[0] != kwargs["epoch"]:
            self._pass = (kwargs["epoch"], self.state.global_step)
        if not self.control.should_training_stop:
            super()._run_epoch(*args, **kwargs)  # type: ignore[misc]

    def _get_learning_rate(self) -> float:
        self._learning_rate = super()._get_learning_rate()  # type: ignore[misc]
        return self._learning_rate

    def _maybe_log_save_evaluate(self, *args: Any, **kwargs: Any) -> None:
        self._due = None
        control = self.control
        evaluates, saves = control.should_evaluate, control.should_save
        if self._stop.agreed():
            control.should_evaluate = control.should_save = False
            super()._maybe_log_save_evaluate(*args, **kwargs)  # type: ignore[misc]
            self._stop_now(evaluates, saves)
        try:
            super()._maybe_log_save_evaluate(*args, **kwargs)  # type: ignore[misc]
        except EvaluationAbandoned:
            self._stop_now(True, saves)

    def _stop_now(self, evaluate: bool, save: bool) -> None:
        self._due = {"evaluate": evaluate, "save": save}
        self._save_checkpoint(self.model_wrapped, None)
        self.control = self.callback_handler.on_save(self.args, self.state, self.control)
        say = logger.warning if self.args.process_index == 0 else logger.debug
        say(
            "stopped by %s after step %d of %d; %s/checkpoint-%d is written, pass resume_from_checkpoint=True to go on",
            *(self._stop.reason, self.state.global_step, self.state.max_steps),
            *(self.args.output_dir, self.state.global_step),
        )
        raise StoppedBySignal(0)

    def prediction_step(self, *args: Any, **kwargs: Any) -> Any:
        """Evaluate a batch, unless the run in which the evaluation takes place is asked to stop. See ``Trainer``."""
        if self.is_in_train:
            mean = self.accelerator.reduce(torch.tensor(float(self._stop.requested)).to(self.args.device), "mean")
            if mean > 0:
                self._stop.request(self._stop.reason or "another process")
                raise EvaluationAbandoned
        return super().prediction_step(*args, **kwargs)

    def get_batch_samples(self, *args: Any, **kwargs: Any) -> tuple[list[Any], Any]:
        """Read a step's batches; workers that start with the first never hear the signals. See ``Trainer``."""
        with self._stop.held_back() if self._workers_are_deaf else nullcontext():
            batches, count = super().get_batch_samples(*args, **kwargs)
        return ([], None) if self._is_rest(batches) else (batches, count)

    def _is_rest(self, batches: list[Any]) -> bool:
        """Tell whether a pass of a stream ends with fewer batches than a step takes.

        Transformers would differentiate them and take no step, so that their gradient joined that of the next.
        """
        wanted = self.args.gradient_accumulation_steps
        if self._pass is None or not 0 < len(batches) < wanted:
            return False
        if self.state.global_step == self._pass[1]:
            raise ValueError(
                f"a pass of the stream gives {len(batches)} batch(es), a step takes gradient_accumulation_steps={wanted}: lower it, "
                "or per_device_train_batch_size, or let the stream give more images"
            )
        return True

    def get_train_dataloader(self) -> DataLoader:
        """Make the loader of the training; its workers are left alone by signals that stop the run. See ``Trainer``."""
        loader = self._with_deaf_workers(super().get_train_dataloader())
        self._workers_are_deaf = True
        return loader

    def get_eval_dataloader(self, eval_dataset: Any = None) -> DataLoader:
        """Make the loader of an evaluation, likewise. See ``Trainer``."""
        return self._with_deaf_workers(super().get_eval_dataloader(eval_dataset))

    def _with_deaf_workers(self, loader: DataLoader) -> DataLoader:
        base = getattr(loader, "base_dataloader", loader)  # Accelerate's loaders iterate over the one inside
        if getattr(base, "num_workers", 0) and not isinstance(base.worker_init_fn, DeafWorker):
            base.worker_init_fn = DeafWorker(base.worker_init_fn, self.args.stop_signals)
        return loader

    def log(self, logs: dict[str, float], *args: Any, **kwargs: Any) -> None:
        """Log; a resumed run's mean loss is that of all its steps, not of those since it was resumed. See ``Trainer``."""
        if "train_loss" in logs:
            logs["train_loss"] = self._total_loss_scalar / max(self.state.global_step, 0.001)
        super().log(logs, *args, **kwargs)


def finite_or_none(value: Any) -> float | None:
    """Read a number, which fp16 may have made infinite; JSON knows no infinity."""
    number = None if value is None else float(value)
    return number if number is not None and math.isfinite(number) else None


class GoesOnCallback(TrainerCallback):
    """Tells a Trainer when training begins, after everybody else knows, and when an epoch is over.

    It catches up with evaluations and ends of epochs, for which other callbacks must be ready. So a run that is resumed moves it
    to the end of the list, whenever the others were added.

    Args:
        trainer: whose run is kept exact.
    """

    def __init__(self, trainer: GoesOn) -> None:
        self.trainer = trainer

    def on_train_begin(self, args: Any, state: Any, control: Any, **kwargs: Any) -> Any:
        """Take over what the checkpoint holds."""
        self.trainer._go_on()
        return self.trainer.control

    def on_epoch_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        """Remember that the end of this epoch was told to all."""
        self.trainer._epoch_ended_at = state.global_step
