"""Works through the runs of a comparison: one after the other in this process, or several processes at a time."""

from __future__ import annotations

import multiprocessing
import os
import sys
import threading
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from multiprocessing.process import BaseProcess

import torch
import transformers

from bmtard_hooks.compare.execution import Say, execute, is_finished, staleness
from bmtard_hooks.compare.plan import Plan, Run, make_plan
from bmtard_hooks.compare.record import FAILED, LOG, TRAINING, Record, RunIsBusy, read_record, run_lock, write_record


def run_comparison(plan: Plan, say: Say, after_each: Callable[[], None] = lambda: None) -> None:
    """Bring every run of a comparison to its end; finished ones are left as they are, failed ones are tried again.

    Args:
        plan: the comparison.
        say: called with lines for the screen.
        after_each: called whenever a run has ended, well or not.

    Raises:
        ValueError: if runs on disk were made with other options and ``--retrain`` was not given; nothing is trained then.
    """
    runs = plan.chosen
    stale = {run.name: staleness(run) for run in runs}
    refused = [f"  {name}: {'; '.join(reasons)}" for name, reasons in stale.items() if reasons]
    if refused and not plan.arguments.retrain:
        raise ValueError(
            f"{plan.directory} holds runs that were made in another way:\n" + "\n".join(refused) + "\n"
            "Pass --retrain true to train them again, another --output_dir, or the options they were made with"
        )
    todo = [run for run in runs if not is_finished(run, plan)]
    if len(todo) < len(runs):
        say(f"{len(runs) - len(todo)} of {len(runs)} runs are finished already")
    gpus = _gpus()
    processes = min(plan.arguments.processes or max(1, len(gpus)), max(1, len(todo)))
    if processes == 1 and len(gpus) <= 1:
        for run in todo:
            _in_this_process(run, plan, say)
            after_each()
    else:
        _Pool(plan, say, after_each, processes, gpus).work(todo)


def _in_this_process(run: Run, plan: Plan, say: Say) -> None:
    try:
        execute(run, plan, say)
    except RunIsBusy as busy:
        say(f"{run.name} is left alone: {busy}")


def _gpus() -> list[str]:
    visible = os.environ.get("CUDA_VISIBLE_DEVICES")
    names = [str(index) for index in range(torch.cuda.device_count())]
    return visible.split(",")[: len(names)] if visible is not None else names


@dataclass
class _Pool:
    """Starts a process per run, so that one that is killed takes no other with it.

    Args:
        plan: the comparison.
        say: see ``run_comparison``.
        after_each: see ``run_comparison``.
        processes: how many at a time.
        gpus: names of the GPUs, dealt out in turn; none on a CPU.
    """

    plan: Plan
    say: Say
    after_each: Callable[[], None]
    processes: int
    gpus: Sequence[str]

    def work(self, todo: Sequence[Run]) -> None:
        """Work through the runs; on the way out, whatever the reason, no process is left behind."""
        queue, free = list(todo), list(range(self.processes))
        running: dict[BaseProcess, tuple[int, Run]] = {}
        try:
            while queue or running:
                while queue and free:
                    slot, run = free.pop(0), queue.pop(0)
                    running[self._start(slot, run)] = slot, run
                time.sleep(0.1)
                for process in [process for process in running if not process.is_alive()]:
                    slot, run = running.pop(process)
                    free.append(slot)
                    self._ended(run, process.exitcode or 0)
        finally:
            for process in running:
                process.terminate()

    def _start(self, slot: int, run: Run) -> BaseProcess:
        variables = {"CUDA_VISIBLE_DEVICES": self.gpus[slot % len(self.gpus)]} if self.gpus else {}
        if "OMP_NUM_THREADS" not in os.environ:
            variables["OMP_NUM_THREADS"] = str(max(1, (os.cpu_count() or 1) // self.processes))
        run.directory.mkdir(parents=True, exist_ok=True)
        # spawn runs the main module again, so that methods registered there are known in the new process
        context = multiprocessing.get_context("spawn")
        process = context.Process(target=work_on, args=(self.plan.argv, run.name, str(run.directory / LOG)))
        with _environment(variables):
            process.start()
        return process

    def _ended(self, run: Run, code: int) -> None:
        if code:
            reason = f"its process ended with {f'signal {-code}' if code < 0 else f'exit code {code}'}, see {LOG}"
            try:
                with run_lock(run.directory):
                    kept = read_record(run.directory) or Record(TRAINING)
                    write_record(run.directory, Record(FAILED, run.identity, kept.training, reason=reason))
            except RunIsBusy:
                return
            self.say(f"{run.name} failed: {reason}")
        self.after_each()


def work_on(argv: list[str], name: str, log: str) -> None:
    """Do one run of a comparison in a process of its own, which ends with the process that started it.

    Args:
        argv: the comparison's command line.
        name: of the run.
        log: file for everything that is written to the standard error.
    """
    _end_with_parent()
    with open(log, "a") as stream:
        os.dup2(stream.fileno(), sys.stderr.fileno())
    transformers.logging.disable_progress_bar()
    plan = make_plan(argv)
    run = next(run for run in plan.runs if run.name == name)

    def say(line: str) -> None:
        sys.stdout.write(line + "\n")
        sys.stdout.flush()

    _in_this_process(run, plan, say)


def _end_with_parent() -> None:
    parent = multiprocessing.parent_process()
    if parent is None:
        return

    def watch() -> None:
        parent.join()
        os._exit(1)  # a run may be killed at any moment, so there is nothing to clean up

    threading.Thread(target=watch, daemon=True).start()


@contextmanager
def _environment(variables: Mapping[str, str]) -> Iterator[None]:
    saved = {name: os.environ.get(name) for name in variables}
    os.environ.update(variables)
    try:
        yield
    finally:
        for name, value in saved.items():
            if value is None:
                del os.environ[name]
            else:
                os.environ[name] = value
