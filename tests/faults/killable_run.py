"""One training with everything on that could be lost: noise, augmentation, accumulation, workers, half-filled logs."""

import hashlib
import json
import os
import resource
import signal
import sys
import time
from pathlib import Path

import torch
from conftest import sharp_net, tiny_data, tiny_net
from every_method import everything
from transformers import EarlyStoppingCallback, TrainerCallback

from bmtard_hooks import BMTARDConfig, BMTARDTrainer

CASES = {
    "bmtard": {"dataloader_num_workers": 1, "gradient_accumulation_steps": 2, "per_device_train_batch_size": 2},
    "bmtard, averaged": {"weight_averaging": "ema", "averaging_decay": 0.9},
    "fair_ard": {"gradient_accumulation_steps": 2, "per_device_train_batch_size": 2},
    "absld": {},
    "iad": {"iad_begin": 0.5},
    "ciard": {"ciard_teacher_lr": 0.1, "ciard_teacher_momentum": 0.5},
}
TIMES = ("runtime", "per_second", "flos")


class FileEvents:
    """Counts operations on the files of a folder, and ends the process at one of them as a kill from outside would."""

    def __init__(self, folder, die_at):
        self.folder, self.die_at, self.count = str(folder), die_at, 0
        sys.addaudithook(self)

    def __call__(self, event, arguments):
        if event not in ("open", "os.rename", "os.mkdir", "os.remove", "os.rmdir") or not arguments:
            return
        if event == "open" and not (isinstance(arguments[1], str) and set(arguments[1]) & set("wax+")):
            return
        if str(arguments[0]).startswith(self.folder):
            self.count += 1
            if self.count == self.die_at:
                os.kill(os.getpid(), signal.SIGKILL)


class SignalsItself(TrainerCallback):
    """Sends the own process a signal at the end of a step, as if it came from outside."""

    def __init__(self, step, number=signal.SIGTERM):
        self.step, self.number = step, number

    def on_step_end(self, args, state, control, **kwargs):
        if state.global_step == self.step:
            os.kill(os.getpid(), self.number)


class SignalledInEvaluation(BMTARDTrainer):
    """Gets SIGTERM while it evaluates."""

    signal_at_batch = None
    evaluated = 0

    def prediction_step(self, *args, **kwargs):
        type(self).evaluated += 1
        if type(self).evaluated == self.signal_at_batch:
            os.kill(os.getpid(), signal.SIGTERM)
        return super().prediction_step(*args, **kwargs)


def run(
    folder,
    rank=0,
    case="bmtard",
    die_at_file_event=None,
    signal_at=None,
    largest_file=None,
    resume="auto",
    output=None,
    **options,
):
    """Train, or go on with what an earlier call began, and write ``result<rank>.json``."""
    started = time.monotonic()
    folder = Path(folder)
    output = folder / "run" if output is None else Path(output)
    trainer = make(output, case, signal_at, **options)
    events = FileEvents(output, die_at_file_event if rank == 0 else None)
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    if largest_file is not None:
        resource.setrlimit(resource.RLIMIT_FSIZE, (largest_file, limits[1]))
    try:
        trainer.train(resume_from_checkpoint=resume)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)  # or the log could not say what happened
    result = describe(trainer) | {"file_events": events.count, "seconds": time.monotonic() - started}
    (folder / f"result{rank}.json").write_text(json.dumps(result))


def make(output, case, signal_at=None, **options):
    given = {
        "output_dir": str(output), "method": case.partition(",")[0], "use_cpu": True, "num_train_epochs": 3, "steps": 2,
        "per_device_train_batch_size": 4, "augment": "crop_flip", "crop_padding": 1, "weight_rate": 0.3,
        "temperature_rate": 0.1, "eval_attack_steps": 2, "eval_strategy": "epoch", "save_strategy": "steps", "save_steps": 1,
        "save_total_limit": 2, "logging_steps": 5, "metric_for_best_model": "w_robust", "load_best_model_at_end": False,
        "report_to": "none", "disable_tqdm": True, "channels_last": False, **CASES[case], **options,
    }  # fmt: skip
    kind, moment = signal_at or (None, None)
    SignalledInEvaluation.signal_at_batch = moment if kind == "evaluation" else None
    callbacks = [SignalsItself(moment)] if kind == "step" else []
    if given["eval_strategy"] != "no":
        callbacks.append(EarlyStoppingCallback(50))
    config = BMTARDConfig(**given)
    student = tiny_net(0, batch_norm=True, dropout=0.3)
    teachers = {"clean": sharp_net(1, scale=8), "robust": sharp_net(2, batch_norm=True)}
    trainer = SignalledInEvaluation(
        student, config, train_dataset=tiny_data(18), eval_dataset=tiny_data(10, seed=5), callbacks=callbacks,
        teachers={"robust": teachers["robust"]},
        clean_teacher=teachers["clean"] if case.partition(",")[0] in ("bmtard", "ciard") else None,
    )  # fmt: skip
    return trainer


def describe(trainer):
    """Hash and list all that a run leaves behind, but its times."""
    tensors, numbers = everything(trainer)
    digests = {
        name: hashlib.sha256(value.detach().contiguous().numpy().tobytes()).hexdigest()
        for name, value in tensors.items()
    }
    logs = [
        {key: value for key, value in row.items() if not any(word in key for word in TIMES)}
        for row in trainer.state.log_history
    ]
    early = [
        c.early_stopping_patience_counter
        for c in trainer.callback_handler.callbacks
        if hasattr(c, "early_stopping_patience_counter")
    ]
    return {
        "weights": digests,
        **numbers,
        "logs": logs,
        "early": early,
        "best": [trainer.state.best_metric, trainer.state.best_global_step],
        "steps": trainer.state.global_step,
    }


torch.set_num_threads(1)
