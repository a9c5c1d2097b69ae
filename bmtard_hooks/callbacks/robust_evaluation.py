"""Named attacks on a validation split every few epochs, and the best model by W-Robust kept."""

from __future__ import annotations

import logging
from contextlib import AbstractContextManager, nullcontext
from pathlib import Path
from typing import Any

from transformers import Trainer, TrainerCallback

from bmtard_hooks.attacks.guard import attack_mode
from bmtard_hooks.collator import PGDCollator
from bmtard_hooks.distributed import broadcast_buffers
from bmtard_hooks.evaluation.evaluator import check_evaluation, evaluate_robustness
from bmtard_hooks.evaluation.report import WORST_CASE, RobustnessReport
from bmtard_hooks.image_tensors import as_image_tensors
from bmtard_hooks.randomness import untouched_randomness
from bmtard_hooks.reporting.report_file import load_report, save_report

logger = logging.getLogger(__name__)

BEST = "best_w_robust"
TEST_SPLITS = ("test",)


class RobustEvaluation(TrainerCallback):
    """Attack a validation split every few epochs, log the result, and keep the best model by W-Robust.

    ``trainer.add_callback(RobustEvaluation(trainer, validation))``. The best model so far is in
    ``output_dir/best_w_robust``, beside the evaluation that chose it; a resumed run goes on comparing with it. Logged are
    ``robust_eval/clean_accuracy`` and, for every attack, ``robust_eval/<attack>_accuracy`` and
    ``robust_eval/<attack>_w_robust``.

    With weight averaging, the averaged weights are attacked and kept. Training is not disturbed: weights, modes, gradients
    and random numbers are what they were.

    Args:
        trainer: a ``BMTARDTrainer``, or any Trainer whose model takes pixels in [0, 1] or carries its normalisation.
        dataset: images to attack, not those of the final table; by default the Trainer's evaluation set. Columns and colours are
            those of the Trainer's ``PGDCollator``.
        attacks: see ``choose_attacks``. The model is chosen by their worst case.
        every: epochs between evaluations, 1 or more; the last epoch is always evaluated, also one that was stopped early.
        limit: use only the first so many images.
        allow_test_split: accept a data set that calls itself ``test``. Choosing a checkpoint on the test split makes its
            accuracy too good.
        **settings: see ``EvaluationSettings``; the checks are off unless asked for.

    Raises:
        ValueError: for a test split, no data set, a bad setting, or what ``evaluate_robustness`` would refuse.
    """

    def __init__(
        self,
        trainer: Trainer,
        dataset: Any = None,
        attacks: Any = "pgd_trades",
        *,
        every: int = 1,
        limit: int | None = None,
        allow_test_split: bool = False,
        **settings: Any,
    ) -> None:
        if every < 1:
            raise ValueError(f"every={every}: pass a number of epochs, 1 or more")
        dataset = trainer.eval_dataset if dataset is None else dataset
        if dataset is None:
            raise ValueError("no images to attack: pass dataset=, or give the Trainer an eval_dataset")
        split = getattr(dataset, "split_name", None) or getattr(dataset, "split", None)
        split = "" if split is None or callable(split) else str(split)
        if split.partition("[")[0] in TEST_SPLITS and not allow_test_split:
            raise ValueError(
                f"the data set is the split {split!r}: choosing a checkpoint on it makes its accuracy too good. Hold out "
                "training images (ImageTensors.split), or pass allow_test_split=True"
            )
        self.trainer = trainer
        self.attacks = attacks
        self.every = every
        self.settings = {"checks": False, "examples": 0, "fold_batch_norm": False, **settings}
        self._data = as_image_tensors(dataset, limit=limit, **_columns(trainer))
        self._best: float | None = None
        settings = {name: value for name, value in self.settings.items() if name != "state_dir"}
        check_evaluation(self._model, self._data, attacks, device=trainer.args.device, **settings)

    @property
    def _model(self) -> Any:
        return getattr(self.trainer, "student", None) or self.trainer.model

    @property
    def directory(self) -> Path:
        """Where the best model is kept."""
        return Path(str(self.trainer.args.output_dir)) / BEST

    def on_train_begin(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        """Take up the best evaluation of the run that is being resumed; one that begins has none."""
        self._best = None
        path = self.directory / "report.json"
        if state.global_step == 0 or not path.exists():
            return
        kept = load_report(path)
        if kept.environment.get("step", 0) <= state.global_step:
            self._best = _w_robust(kept)

    def on_epoch_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        """Evaluate if it is time, log, and keep the model if it is the best so far."""
        epoch = round(state.epoch or 0)
        last = control.should_training_stop or (state.max_steps > 0 and state.global_step >= state.max_steps)
        if last or epoch % self.every == 0:
            self._look(state)

    def on_log(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        """Evaluate the last epoch, if the run was ended after its end: early stopping decides after ``on_epoch_end``."""
        if "train_runtime" in (kwargs.get("logs") or {}) and not _logged_at(state):  # before another model is loaded
            self._look(state)

    def _look(self, state: Any) -> None:
        report = self._evaluate()
        self.trainer.log(_metrics(report))
        value = _w_robust(report)
        if self._best is None or value > self._best:
            self._best = value
            with self._averaged():  # an internal call, because others upload the whole run
                self.trainer.save_model(str(self.directory), _internal_call=True)
            if state.is_world_process_zero:
                report.environment["step"] = state.global_step
                save_report(report, self.directory / "report.json")

    def _evaluate(self) -> RobustnessReport:
        model, device = self._model, self.trainer.args.device
        settings = {"batch_size": self.trainer.args.per_device_eval_batch_size, **self.settings}
        with self._averaged(), untouched_randomness(device), attack_mode(model):
            broadcast_buffers(model)
            return evaluate_robustness(
                model, self._data, self.attacks, dataset_name="validation", device=device, progress=False, **settings
            )

    def _averaged(self) -> AbstractContextManager[None]:
        return getattr(self.trainer, "averaged_weights", nullcontext)()  # a plain Trainer has none


def _columns(trainer: Trainer) -> dict[str, Any]:
    collator: Any = trainer.data_collator
    if not isinstance(collator, PGDCollator):
        return {}
    return {
        "image_column": collator.image_column,
        "label_column": collator.label_column,
        "mode": collator.mode or "RGB",
    }


def _logged_at(state: Any) -> bool:
    step = state.global_step
    return any(entry.get("step") == step and "robust_eval/clean_accuracy" in entry for entry in state.log_history)


def _w_robust(report: RobustnessReport) -> float:
    if WORST_CASE in report.columns:
        return report.row(WORST_CASE).w_robust
    return min(row.w_robust for row in report.rows())


def _metrics(report: RobustnessReport) -> dict[str, float]:
    metrics = {"robust_eval/clean_accuracy": float(report.correct.mean())}
    for row in report.rows():
        metrics[f"robust_eval/{row.column}_accuracy"] = row.robust
        metrics[f"robust_eval/{row.column}_w_robust"] = row.w_robust
    return metrics
