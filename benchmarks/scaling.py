"""Measure how many images a second ``BMTARDTrainer`` trains on with one process and with several.

    python benchmarks/scaling.py --student resnet8_cifar --processes 1 2
    python benchmarks/scaling.py --student resnet18_cifar --batch_size 128 --processes 1 2 4 8 --bf16   # on a machine with 8 GPUs

Each number of processes runs twice: as ranks of DDP, and as independent processes at the same time, because processes on one
machine also slow each other down through what they share (memory, power, disk). Efficiency is the ranks' images/s over what as
many processes would reach if each were as fast as one alone; the share of communication is what ranks lose against independent
processes. Batch size is per process, a process has one thread on a CPU and one GPU where there are GPUs. All processes start at
once, then the arrangements take turns, several rounds; a round counts with its median step, and of each arrangement the best
round, because other work on the machine only ever slows down. Images are generated, teachers are random: only time is measured.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
import warnings
from pathlib import Path
from typing import Any

import torch
from transformers import PrinterCallback, TrainerCallback

from bmtard_hooks import BMTARDConfig, BMTARDTrainer, ImageTensors, create_model
from bmtard_hooks.evaluation.environment import device_name, package_versions, source_commit

CLASSES = 10
FLOAT_BYTES = 4
SCALAR_BYTES = 8


def volume(student: str) -> dict[str, int]:
    """Count what a step of DDP sends, before any algorithm: gradients, buffers, and the observed scalars of B-MTARD."""
    network = create_model(student, num_classes=CLASSES).backbone
    return {
        "parameters": sum(parameter.numel() for parameter in network.parameters()),
        "gradient_bytes": FLOAT_BYTES * sum(p.numel() for p in network.parameters() if p.requires_grad),
        "buffer_bytes": sum(buffer.numel() * buffer.element_size() for buffer in network.buffers()),
        "scalar_bytes": SCALAR_BYTES * 4,  # two losses and two entropies, in float64
    }


class Turns(TrainerCallback):
    """Times the steps of a process, and lets it go on only while it is its arrangement's turn.

    Args:
        folder: where the arrangement's processes say that a turn is over, and learn that the next one may begin.
        warm_up: steps before the first turn.
        steps: steps of a turn.
        rounds: turns.
    """

    def __init__(self, folder: Path, warm_up: int, steps: int, rounds: int) -> None:
        self.folder, self.warm_up, self.steps, self.rounds = folder, warm_up, steps, rounds
        self._seconds: list[float] = []
        self._last = 0.0

    def on_step_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        """Read the clock; at the end of a turn hand in the median and wait."""
        if torch.cuda.is_available():
            torch.cuda.synchronize()
        self._seconds.append(time.perf_counter() - self._last)
        turn, rest = divmod(state.global_step - self.warm_up, self.steps)
        if turn >= 0 and rest == 0:
            report = self.folder / f"over{turn}_{os.getpid()}"
            found = {"seconds": statistics.median(self._seconds), "world_size": args.world_size}
            report.with_suffix(".part").write_text(json.dumps(found))
            report.with_suffix(".part").rename(report)  # complete when it appears
            self._seconds = []
            while turn < self.rounds and not (self.folder / f"go{turn + 1}").exists():
                time.sleep(0.01)
        self._last = time.perf_counter()


def work(options: argparse.Namespace) -> None:
    """Train as one process of an arrangement."""
    warnings.filterwarnings("ignore")
    on_gpu = torch.cuda.is_available()
    if not on_gpu:
        torch.set_num_threads(1)
    turns = Turns(Path(options.worker), options.warm_up, options.steps, options.rounds)
    with tempfile.TemporaryDirectory() as directory:
        config = BMTARDConfig(
            output_dir=directory, use_cpu=not on_gpu, per_device_train_batch_size=options.batch_size, bf16=options.bf16,
            max_steps=options.warm_up + options.steps * options.rounds, steps=options.pgd_steps, save_strategy="no", eval_attack=False,
            report_to="none", disable_tqdm=True, logging_steps=10**9,
        )  # fmt: skip
        images = options.batch_size * config.world_size * min(config.max_steps, 50)
        generator = torch.Generator().manual_seed(0)
        data = ImageTensors(
            torch.randint(0, 256, (images, 3, 32, 32), generator=generator, dtype=torch.uint8),
            torch.randint(0, CLASSES, (images,), generator=generator),
        )
        teachers = [create_model(options.teacher, num_classes=CLASSES) for _ in range(2)]
        trainer = BMTARDTrainer(
            create_model(options.student, num_classes=CLASSES), config, train_dataset=data, callbacks=[turns],
            clean_teacher=teachers[0], robust_teacher=teachers[1],
        )  # fmt: skip
        trainer.remove_callback(PrinterCallback)
        trainer.train()


class Arrangement:
    """Processes that train at the same time, as ranks of one training or each for itself.

    Args:
        options: of the command line.
        processes: how many.
        together: as ranks of one training.
    """

    def __init__(self, options: argparse.Namespace, processes: int, together: bool) -> None:
        self.processes, self.together, self.batch_size = processes, together, options.batch_size
        self._folder = tempfile.TemporaryDirectory()
        words = [str(Path(__file__).resolve()), "--worker", self._folder.name]
        for name in ("student", "teacher", "batch_size", "steps", "warm_up", "pgd_steps", "rounds"):
            words += [f"--{name}", str(getattr(options, name))]
        words += ["--bf16"] if options.bf16 else []
        environment = {**os.environ, "OMP_NUM_THREADS": "1"}
        if together:
            ranks = ["-m", "torch.distributed.run", "--standalone", "--nproc_per_node", str(processes)]
            self._running = [subprocess.Popen([sys.executable, *ranks, *words], env=environment)]
        else:
            self._running = [
                subprocess.Popen(
                    [sys.executable, *words],
                    env={**environment, **({"CUDA_VISIBLE_DEVICES": str(i)} if torch.cuda.is_available() else {})},
                    start_new_session=True,  # as torchrun does: Linux shares a busy CPU out among sessions
                )
                for i in range(processes)
            ]

    def wait(self, turn: int) -> float:
        """Wait until a turn (0: the warm-up) is over; images per second of all processes."""
        reports: list[Path] = []
        while len(reports) < self.processes:
            if any(process.poll() for process in self._running):
                raise RuntimeError("a process failed, see its message above")
            time.sleep(0.02)
            reports = [path for path in Path(self._folder.name).glob(f"over{turn}_*") if path.suffix != ".part"]
        found = [json.loads(path.read_text()) for path in reports]
        if {entry["world_size"] for entry in found} != {self.processes if self.together else 1}:
            raise RuntimeError(f"{self.processes} processes were started, but found themselves to be {found}")
        return sum(self.batch_size / entry["seconds"] for entry in found)

    def take(self, turn: int) -> float:
        """Let the processes train for a turn; images per second of all of them."""
        Path(self._folder.name, f"go{turn}").touch()
        return self.wait(turn)

    def end(self, patience: float) -> None:
        """Wait some seconds for the processes to end by themselves, then end them."""
        for process in self._running:
            try:
                process.wait(patience)
            except subprocess.TimeoutExpired:
                process.terminate()
                process.wait()
        self._folder.cleanup()


def measure(options: argparse.Namespace, counts: list[int]) -> tuple[dict[tuple[int, bool], float], list[float]]:
    """Let all arrangements take turns.

    Args:
        options: of the command line.
        counts: numbers of processes.

    Returns:
        The best images per second by number of processes and whether they were ranks of one training, and load averages.
    """
    kinds = [(1, False), *((count, kind) for count in counts if count > 1 for kind in (True, False))]
    arrangements: list[Arrangement] = []
    best: dict[tuple[int, bool], float] = {}
    loads = []
    patience = 0.0
    try:
        arrangements += [Arrangement(options, *kind) for kind in kinds]
        for arrangement in arrangements:
            arrangement.wait(0)
        for turn in range(1, options.rounds + 1):
            for kind, arrangement in zip(kinds, arrangements, strict=True):
                speed = arrangement.take(turn)
                best[kind] = max(speed, best.get(kind, 0.0))
                loads.append(os.getloadavg()[0])
                name = "ranks" if arrangement.together else "independent"
                print(f"{options.student} round {turn}: {kind[0]} {name}: {speed:.2f} images/s", flush=True)
        patience = 60.0
    finally:
        for arrangement in arrangements:
            arrangement.end(patience)
    return best, loads


def summarise(best: dict[tuple[int, bool], float]) -> list[dict[str, Any]]:
    """Compute efficiency and the share of communication.

    Args:
        best: images per second by number of processes and whether they were ranks of one training; one process alone is
            ``(1, False)``.
    """
    alone = best[1, False]
    rows: list[dict[str, Any]] = [{"processes": 1, "images_per_second": round(alone, 2)}]
    for processes in sorted({count for count, _ in best} - {1}):
        ranks, independent = best[processes, True], best[processes, False]
        rows.append(
            {
                "processes": processes,
                "images_per_second": round(ranks, 2),
                "images_per_second_independent": round(independent, 2),
                "efficiency": round(ranks / (processes * alone), 3),
                "efficiency_independent": round(independent / (processes * alone), 3),
                "communication_share": round(1 - ranks / independent, 3),
            }
        )
    return rows


def parsed() -> argparse.Namespace:
    """Read the command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--student", nargs="+", default=["resnet8_cifar"], help="timm names")
    parser.add_argument("--teacher", default="resnet8_cifar", help="timm name of both teachers")
    parser.add_argument("--processes", type=int, nargs="+", default=[1, 2])
    parser.add_argument("--batch_size", type=int, default=32, help="images per process and step")
    parser.add_argument("--pgd_steps", type=int, default=10)
    parser.add_argument("--steps", type=int, default=5, help="steps of a process in a round")
    parser.add_argument("--warm_up", type=int, default=2, help="steps before the first round")
    parser.add_argument("--rounds", type=int, default=6)
    parser.add_argument("--bf16", action="store_true")
    parser.add_argument("--output", help="JSON file")
    parser.add_argument("--worker", help=argparse.SUPPRESS)
    return parser.parse_args()


def main() -> None:
    """Measure, print, and keep the numbers if asked to."""
    options = parsed()
    if options.worker:
        options.student = options.student[0]
        work(options)
        return
    counts = sorted({1, *options.processes})
    students, results, loads = options.student, {}, []
    for options.student in students:
        best, measured_loads = measure(options, counts)
        loads += measured_loads
        results[options.student] = {"rows": summarise(best), "per_step": volume(options.student)}
        for row in results[options.student]["rows"]:
            print(options.student, *(f"{key}={value}" for key, value in row.items()))
    if options.output:
        kept = {
            "question": "images per second of one and of several processes of one machine",
            "command": f"python benchmarks/scaling.py --student {' '.join(students)} --teacher {options.teacher} --processes"
            f" {' '.join(map(str, counts))} --batch_size {options.batch_size} --pgd_steps {options.pgd_steps} --steps"
            f" {options.steps} --warm_up {options.warm_up} --rounds {options.rounds}" + " --bf16" * options.bf16,
            "commit": source_commit(),
            "packages": package_versions(),
            "device": device_name(torch.device("cuda" if torch.cuda.is_available() else "cpu")),
            "threads_per_process": None if torch.cuda.is_available() else 1,
            "load_average": {"lowest": min(loads), "highest": max(loads)},  # this run's own processes are part of it
            "backend": "nccl" if torch.cuda.is_available() else "gloo",
            "students": results,
        }
        Path(options.output).write_text(json.dumps(kept, indent=2) + "\n")


if __name__ == "__main__":
    main()
