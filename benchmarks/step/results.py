"""From measured seconds to the numbers of a table, and to the table."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from statistics import median
from typing import Any

from step.contenders import CONTENDERS

EPOCHS, EPOCH_IMAGES = 300, 50_000
PHASES = ("attack", "teachers", "student", "balance", "data", "overhead")
MISSING = "–"


@dataclass
class Measured:
    """What one contender showed.

    Args:
        seconds: per step, one number per round.
        cpu_seconds: of all threads per step, one number per round; hardly moves when others use the machine too.
        phases: seconds per step by part, one dictionary per round.
        peaks: bytes, one number per round.
        memory: how the bytes were measured.
    """

    seconds: list[float] = field(default_factory=list)
    cpu_seconds: list[float] = field(default_factory=list)
    phases: list[dict[str, float]] = field(default_factory=list)
    peaks: list[int] = field(default_factory=list)
    memory: str = ""


def times_as_fast(reference: Sequence[float], measured: Sequence[float]) -> float:
    """Divide what the reference took by what a contender took in the same round, and take the median over the rounds."""
    return median(theirs / ours for theirs, ours in zip(reference, measured, strict=True))


def training_hours(seconds: float, batch_size: int, epochs: int = EPOCHS, images: int = EPOCH_IMAGES) -> float:
    """Estimate the hours of a whole training; the last batch of an epoch counts as a full one."""
    return epochs * math.ceil(images / batch_size) * seconds / 3600


def limit_seconds(flops: Mapping[str, float], rates: Mapping[str, float]) -> float:
    """Divide the operations of a step by the best rate."""
    return sum(flops.values()) / max(rates.values())


def summarise(
    measured: Mapping[str, Measured],
    flops: Mapping[str, float],
    rates: Mapping[str, Mapping[str, float]],
    batch_size: int,
) -> dict[str, dict[str, Any]]:
    """Turn measurements into rows.

    Args:
        measured: contender to what it showed, as many rounds each.
        flops: part to operations per step.
        rates: number format to operation to its best rate.
        batch_size: images per step.

    Returns:
        Contender to its numbers.
    """
    plain, foreign = measured.get("plain"), measured.get("torchattacks")
    rows: dict[str, dict[str, Any]] = {}
    for name, shown in measured.items():
        seconds = median(shown.seconds)
        phases = {part: median(row.get(part, 0.0) for row in shown.phases) for part in PHASES if shown.phases}
        attacks = [row["attack"] for row in shown.phases]
        their_attacks = [row["attack"] for row in foreign.phases] if foreign else []
        limit = limit_seconds(flops, rates[CONTENDERS[name].dtype])
        rows[name] = {
            "seconds": seconds,
            "fastest": min(shown.seconds),
            "cpu_seconds": median(shown.cpu_seconds),
            "images_per_second": batch_size / seconds,
            "phases": phases,
            "peak_megabytes": max(shown.peaks) / 1e6,
            "memory": shown.memory,
            "times_as_fast_as_plain": times_as_fast(plain.seconds, shown.seconds) if plain else None,
            "attack_times_as_fast_as_torchattacks": times_as_fast(their_attacks, attacks) if their_attacks else None,
            "fraction_of_limit": limit / seconds,
            "hours_of_300_epochs": training_hours(seconds, batch_size),
            "seconds_by_round": shown.seconds,
        }
    return rows


def trainer_overhead(measured: Mapping[str, Measured]) -> dict[str, float] | None:
    """Say how much longer the Trainer takes than a bare loop with its kernels.

    Returns:
        Shares of the loop's time: ``seconds`` on the clock, and ``cpu_seconds``, which a busy machine disturbs less but which
        know nothing of a GPU; None without both contenders.
    """
    if not {"default", "same_kernels"} <= measured.keys():
        return None
    trainer, loop = measured["default"], measured["same_kernels"]
    return {
        name: times_as_fast(getattr(trainer, name), getattr(loop, name)) - 1 for name in ("seconds", "cpu_seconds")
    }


def key_of(student: str, clean_teacher: str, robust_teacher: str) -> str:
    """Name a measurement in a file."""
    return f"{student} from {clean_teacher} and {robust_teacher}"


def merge(path: Path, run: Mapping[str, Any]) -> None:
    """Add a measurement to a file, in place of an older one of the same student and teachers.

    Raises:
        ValueError: if the file holds something else.
    """
    kept: dict[str, Any] = {
        "question": "what a B-MTARD training step costs, beside a plain loop and the hardware's limit"
    }
    if path.exists():
        kept = json.loads(path.read_text())
        if not isinstance(kept.get("runs"), dict):
            raise ValueError(f"{path} is not a file of this benchmark: it has no 'runs'; choose another --output")
    key = key_of(run["student"], run["clean_teacher"], run["robust_teacher"])
    kept["runs"] = {**kept.get("runs", {}), key: run}
    temporary = path.with_suffix(".tmp")
    temporary.write_text(json.dumps(kept, indent=2) + "\n")
    temporary.replace(path)


def print_run(run: Mapping[str, Any]) -> None:
    """Print what was measured for one student."""
    print(
        f"\n{key_of(run['student'], run['clean_teacher'], run['robust_teacher'])}, batch {run['batch_size']}, {run['device']}"
    )
    flops = run["flops"]
    print(
        f"{sum(flops.values()) / 1e9:.4g} GFLOP a step:",
        *(f"{part} {count / 1e9:.4g}" for part, count in flops.items()),
    )
    for dtype, rates in run["rates"].items():
        best = max(rates, key=rates.__getitem__)
        seconds = limit_seconds(flops, rates)
        print(f"limit in {dtype}: {seconds:.4g} s a step at {rates[best] / 1e9:.4g} GFLOP/s ({best})")
    head = ("s/step", "images/s", "x plain", "attack x", "of limit", "peak MB", "hours", *PHASES)
    print(f"{'':<22}", *(f"{title:>9}" for title in head))
    for name, row in run["contenders"].items():
        numbers = (
            row["seconds"],
            row["images_per_second"],
            row["times_as_fast_as_plain"],
            row["attack_times_as_fast_as_torchattacks"],
            row["fraction_of_limit"],
            row["peak_megabytes"],
            row["hours_of_300_epochs"],
            *(row["phases"].get(part) for part in PHASES),
        )
        print(f"{name:<22}", *(f"{MISSING if number is None else format(number, '.3g'):>9}" for number in numbers))
    more = run["trainer_overhead"]
    if more is not None:
        print(
            f"Trainer, callbacks and collator: {more['seconds']:+.1%} on the clock, {more['cpu_seconds']:+.1%} of CPU time"
        )


def markdown_table(runs: Sequence[Mapping[str, Any]]) -> str:
    """Draw the table of the README.

    Args:
        runs: as ``merge`` keeps them.

    Returns:
        Markdown; what was not measured is a dash.
    """
    head = (
        "student", "teachers", "batch", "device", "plain s/step", "default", "best extra", "attack vs torchattacks",
        "of the limit", "peak memory vs plain",
    )  # fmt: skip
    lines = [head, ("---",) * 4 + ("---:",) * 6, *map(_table_row, runs)]
    return "\n".join("| " + " | ".join(cells) + " |" for cells in lines)


def _table_row(run: Mapping[str, Any]) -> tuple[str, ...]:
    rows = run["contenders"]
    plain, default = rows.get("plain", {}), rows.get("default", {})
    fast = {name: row for name, row in rows.items() if CONTENDERS[name].role == "fast"}
    fastest = min(fast, key=lambda name: fast[name]["seconds"], default=None)
    shown = MISSING if fastest is None else f"{_times(fast[fastest].get('times_as_fast_as_plain'))} ({fastest})"
    memory = default["peak_megabytes"] / plain["peak_megabytes"] if plain and default else None
    limits = [rows[name]["fraction_of_limit"] for name in ("default", fastest) if name in rows]
    return (
        run["student"],
        " + ".join(dict.fromkeys((run["clean_teacher"], run["robust_teacher"]))),
        str(run["batch_size"]),
        run["device"],
        f"{plain['seconds']:.3g}" if plain else MISSING,
        _times(default.get("times_as_fast_as_plain")),
        shown,
        _times(default.get("attack_times_as_fast_as_torchattacks")),
        " / ".join(f"{fraction:.0%}" for fraction in limits) or MISSING,
        MISSING if memory is None else f"{memory:.2f}",
    )


def _times(ratio: float | None) -> str:
    return MISSING if ratio is None else f"{ratio:.2f}x"
