"""One run from its state on disk to a finished one: train what is missing, measure what is missing."""

from __future__ import annotations

import gc
import json
import time
import traceback
from collections.abc import Callable, Mapping
from datetime import datetime, timezone
from pathlib import Path
from typing import Any

import torch
from transformers import PrinterCallback, TrainerCallback

from bmtard_hooks.checkpoint_folders import newest_whole, recover
from bmtard_hooks.compare.identity import differences, fingerprint_classifier
from bmtard_hooks.compare.plan import Plan, Run
from bmtard_hooks.compare.record import (
    FAILED,
    FINISHED,
    LOG,
    RECORD,
    REPORT,
    TRAINED,
    TRAINING,
    Record,
    clear,
    read_record,
    run_lock,
    write_record,
)
from bmtard_hooks.config import BMTARDConfig
from bmtard_hooks.evaluation.environment import device_name, package_versions, source_commit
from bmtard_hooks.evaluation.evaluator import evaluate_robustness
from bmtard_hooks.models import PixelClassifier, create_model
from bmtard_hooks.reporting.files import write_file
from bmtard_hooks.reporting.report_file import load_report, save_report
from bmtard_hooks.trainer import BMTARDTrainer

SECONDS = "seconds.json"
Say = Callable[[str], None]


def is_finished(run: Run, plan: Plan) -> bool:
    """Tell whether a run needs nothing more: trained as asked for, measured as asked for."""
    record = read_record(run.directory)
    return (
        record is not None
        and record.state == FINISHED
        and not differences(record.identity, run.identity)
        and record.evaluation == as_json(plan.evaluation_key(record.training["weights"]))
        and (run.directory / REPORT).is_file()
    )


def staleness(run: Run) -> list[str]:
    """Tell in which points a run on disk is another one than asked for; empty if nothing would be lost by working on it."""
    record = read_record(run.directory)
    if record is not None:
        is_worthless = run.role is not None or (record.state == FAILED and not record.training)
        return [] if is_worthless else differences(record.identity, run.identity)
    others = [path.name for path in run.directory.glob("*") if path.name.startswith(("checkpoint-", "model"))]
    return [f"it has {others[0]} but no {RECORD} that says what was trained"] if others else []


def execute(run: Run, plan: Plan, say: Say) -> None:
    """Train and measure a run, from wherever it is; a failure is written into its record, not raised.

    Args:
        run: the run.
        plan: its comparison.
        say: called with lines for the screen.

    Raises:
        RunIsBusy: if another process works on it.
    """
    with run_lock(run.directory):
        if is_finished(run, plan):  # by another process, meanwhile
            return
        try:
            if run.role is None:
                _train(run, plan, say)
            else:
                write_record(run.directory, Record(TRAINED, run.identity, {"weights": plan.fingerprints[run.role]}))
            _measure(run, plan, say)
        except Exception as error:
            with (run.directory / LOG).open("a") as stream:
                stream.write(traceback.format_exc())
            reason = f"{type(error).__name__}: {error}"
            kept = read_record(run.directory) or Record(TRAINING)
            write_record(run.directory, Record(FAILED, run.identity, kept.training, reason=reason))
            say(f"{run.name} failed: {reason}")
    if torch.cuda.is_available():
        gc.collect()  # the Trainer is part of a cycle, and its memory would be missing in the next run
        torch.cuda.empty_cache()


def _train(run: Run, plan: Plan, say: Say) -> None:
    record = read_record(run.directory)
    if differences(record.identity, run.identity) if record is not None else staleness(run):
        clear(run.directory)  # asked for with --retrain, see run_comparison
        record = None
    if record is not None and record.training.get("weights"):
        write_record(run.directory, Record(TRAINED, run.identity, record.training))
        return
    write_record(run.directory, Record(TRAINING, run.identity))
    recover(run.directory)
    checkpoint, passed_over = newest_whole(run.directory, run.config.load_best_model_at_end)
    for name, reason in passed_over.items():
        say(f"{run.name}: {name} is not used: {reason}")
    clock = Clock(run.directory)
    _set_up_process(run.config)
    trainer = BMTARDTrainer(
        plan.first_student(run),
        run.config,
        train_dataset=plan.train,
        eval_dataset=plan.validation,
        teachers=plan.needed_teachers(run),
        callbacks=[clock, Narrator(run.name, say)],
    )
    trainer.remove_callback(PrinterCallback)
    say(f"{run.name} goes on from {checkpoint.name}" if checkpoint is not None else f"{run.name} starts")
    trainer.train(resume_from_checkpoint=None if checkpoint is None else str(checkpoint))
    trainer.save_model()
    training = {**_facts(trainer, run, plan), "seconds": clock.seconds()}
    training["weights"] = fingerprint_classifier(_saved(run))
    write_record(run.directory, Record(TRAINED, run.identity, training))


def _set_up_process(config: BMTARDConfig) -> None:
    """Let Accelerate forget the run before, because it keeps one precision and one device for the whole process.

    Torch too, which stops compiling a network's code after the eighth version.
    """
    if config.torch_compile:
        torch.compiler.reset()
    vars(config).pop("_setup_devices", None)  # which transformers would not do twice
    _ = config.device  # sets everything up anew


def _saved(run: Run) -> PixelClassifier:
    return create_model(str(run.directory)).freeze()


def _facts(trainer: BMTARDTrainer, run: Run, plan: Plan) -> dict[str, Any]:
    state, config = trainer.state, run.config
    step = state.best_global_step if config.load_best_model_at_end else state.global_step
    measured = [entry for entry in state.log_history if entry.get("step") == step and "eval_clean_accuracy" in entry]
    return {
        "epochs": state.epoch,
        "steps": state.global_step,
        "images": len(plan.train),
        "validation_images": len(plan.validation),
        "chosen_step": step,
        "validation": {key: value for key, value in measured[0].items() if "eval_" in key} if measured else {},
        "device": device_name(config.device),
        "threads": torch.get_num_threads(),
        "commit": source_commit(),
        "packages": package_versions(),
        "ended": datetime.now(timezone.utc).isoformat(timespec="seconds"),
    }


def _measure(run: Run, plan: Plan, say: Say) -> None:
    record = read_record(run.directory)
    if record is None:
        raise RuntimeError(f"{run.directory / RECORD} vanished")
    began = time.perf_counter()
    label = run.row.label if run.seed is None else f"{run.row.label}, seed {run.seed}"
    report = evaluate_robustness(
        _saved(run) if run.role is None else plan.teachers[run.role],
        plan.test,
        plan.arguments.attacks,
        surrogate=plan.teachers.get("robust"),
        model_name=label,
        dataset_name=plan.test_name,
        state_dir=run.directory / "evaluation",
        progress=False,
        device=run.config.device,
        batch_size=plan.config.per_device_eval_batch_size,
        clean_weight=plan.config.w_robust_clean_weight,
        checks=plan.arguments.checks,
        examples=0,
        **plan.evaluation_ball,
    )
    save_report(report, run.directory / REPORT)
    key = as_json(plan.evaluation_key(record.training["weights"]))
    write_record(run.directory, Record(FINISHED, record.identity, record.training, key))
    found = ", ".join(f"{row.column} {row.robust:.2%}, W-Robust {row.w_robust:.2%}" for row in report.rows())
    say(f"{run.name} test: clean {report.correct.mean():.2%}, {found} ({time.perf_counter() - began:.0f} s)")


def load_finished(run: Run) -> Any:
    """Read the report of a finished run."""
    return load_report(run.directory / REPORT)


def as_json(value: Any) -> Any:
    """Turn a value into what reading its JSON gives."""
    return json.loads(json.dumps(value, default=str))


class Clock(TrainerCallback):
    """Adds up the time of a training over interruptions, without what was lost at a kill.

    Args:
        directory: of the run; gets a file with the seconds at each checkpoint.
    """

    def __init__(self, directory: Path) -> None:
        self.path = directory / SECONDS
        self._before = 0.0
        self._began = time.perf_counter()

    def seconds(self) -> float:
        """Return the seconds so far."""
        return round(self._before + time.perf_counter() - self._began, 2)

    def on_train_begin(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        """Take up the time at the checkpoint that the run goes on from."""
        self._began = time.perf_counter()
        self._before = float(self._kept().get(str(state.global_step), 0.0)) if state.global_step else 0.0

    def on_save(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        """Write the time down."""
        write_file(self.path, json.dumps({**self._kept(), str(state.global_step): self.seconds()}))

    def _kept(self) -> dict[str, float]:
        return json.loads(self.path.read_text()) if self.path.is_file() else {}


class Narrator(TrainerCallback):
    """Says a line about every evaluation on held-out images.

    Args:
        name: of the run.
        say: called with the line.
    """

    def __init__(self, name: str, say: Say) -> None:
        self.name = name
        self.say = say

    def on_evaluate(
        self, args: Any, state: Any, control: Any, metrics: Mapping[str, float] | None = None, **kwargs: Any
    ) -> None:
        """Say what was measured."""
        measures = {"clean": "clean_accuracy", "robust": "robust_accuracy", "W-Robust": "w_robust"}
        known = metrics or {}
        shown = [f"{name} {known[f'eval_{key}']:.2%}" for name, key in measures.items() if f"eval_{key}" in known]
        self.say(
            f"{self.name} epoch {state.epoch or 0:g} of {args.num_train_epochs:g}, step {state.global_step} of "
            f"{state.max_steps}: held out {', '.join(shown)}"
        )
