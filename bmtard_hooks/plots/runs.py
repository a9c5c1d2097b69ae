"""Runs to draw: what a Trainer logged, read from disk, and the series in it."""

from __future__ import annotations

import json
import math
import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

KNOWLEDGE, ENTROPY, TEMPERATURE, WEIGHT = "knowledge_scale_", "entropy_", "temperature_", "weight_"
LOSS, RELATIVE = "loss_", "relative_loss_"
FAMILIES = (KNOWLEDGE, ENTROPY, TEMPERATURE, WEIGHT, LOSS, RELATIVE)
"""Beginnings of the log's keys; a teacher or a loss part follows."""

STATE = "trainer_state.json"
FEWEST_NUMBERED = 3
"""From so many names on that differ in a last number only, they are one series per class and drawn as one."""
_NUMBERED = re.compile(r"(.+)_\d+$")


@dataclass(frozen=True)
class Series:
    """A logged quantity over a run.

    Args:
        places: epochs or steps.
        values: as logged; the mean over classes of a quantity that every class has.
        low: the least over classes; None for a single quantity.
        high: the largest.
    """

    places: list[float]
    values: list[float]
    low: list[float] | None = None
    high: list[float] | None = None


@dataclass(frozen=True)
class Run:
    """What a training run logged.

    Args:
        name: as it is written in figures.
        log: ``log_history`` of the Trainer's state.
        directory: where the run was written; None if only its log is known.
        notes: what went wrong while reading.
    """

    name: str
    log: Sequence[Mapping[str, Any]]
    directory: Path | None = None
    notes: list[str] = field(default_factory=list)

    @property
    def has_epochs(self) -> bool:
        """Whether every entry that can be drawn tells its epoch."""
        return all("epoch" in entry for entry in self.log if _families(entry))

    def series(self, family: str, by_epoch: bool = True) -> dict[str, Series]:
        """Collect a family of quantities by the teacher or the loss part they belong to.

        Args:
            family: one of ``FAMILIES``.
            by_epoch: whether places are epochs; optimizer steps otherwise.
        """
        found: dict[str, dict[float, float]] = {}
        for number, entry in enumerate(self.log):
            place = float(entry.get("epoch" if by_epoch else "step", number))
            for key, value in _numbers(entry):
                if key.startswith(family):
                    found.setdefault(key.removeprefix(family), {})[place] = value
        return _with_classes_together(found)


def load_run(path: str | Path, name: str | None = None) -> Run:
    """Read the log of a run.

    Args:
        path: ``output_dir`` of a Trainer, of which the longest whole log counts, be it of a ``checkpoint-*`` or of the
            directory itself; a checkpoint; or a JSON file that holds a Trainer's state or its ``log_history``.
        name: of the run in figures; the directory's or the file's by default.

    Raises:
        FileNotFoundError: if there is nothing at ``path``.
        ValueError: if no log can be read there.
    """
    path = Path(path)
    if path.is_file():
        step_and_log = _read(path)
        if isinstance(step_and_log, str):
            raise ValueError(step_and_log)
        return Run(name or path.stem, step_and_log[1])
    if not path.is_dir():
        raise FileNotFoundError(f"{path} does not exist: pass the output_dir of a run, or its {STATE}")
    read = {file: _read(file) for file in (path / STATE, *path.glob(f"checkpoint-*/{STATE}")) if file.is_file()}
    whole = [found for found in read.values() if not isinstance(found, str)]
    problems = [found for found in read.values() if isinstance(found, str)]
    if not whole:
        raise ValueError(
            "; ".join(problems)
            or f"{path} has neither {STATE} nor a checkpoint-* with one: the Trainer writes it with every checkpoint "
            "(save_strategy), and where it stands with trainer.save_state()"
        )
    # max keeps the first of equals: the directory's own, which is written after the last checkpoint
    return Run(name or path.resolve().name, max(whole, key=lambda found: found[0])[1], path, problems)


def names_of(paths: Sequence[str | Path]) -> list[str]:
    """Name runs after their directories or files, with as many parents as it takes to tell them apart."""
    parts = [_without_ending(Path(path).resolve()).parts for path in paths]
    for count in range(1, max(map(len, parts)) + 1):
        names = ["/".join(part[-count:]) for part in parts]
        if len(set(names)) == len(names):
            return names
    raise ValueError(f"a run was given twice: {', '.join(map(str, paths))}")


def _without_ending(path: Path) -> Path:
    return path if path.is_dir() else path.with_suffix("")


def _read(path: Path) -> tuple[int, list[Mapping[str, Any]]] | str:
    """Return the step and the log of a file, or what is wrong with it."""
    try:
        content = json.loads(path.read_bytes())
    except (ValueError, RecursionError) as error:
        return f"{path} is not a JSON file, or a damaged one ({error})"
    log = content.get("log_history") if isinstance(content, dict) else content
    if not isinstance(log, list) or not all(isinstance(entry, dict) for entry in log):
        return f"{path} holds neither a Trainer's state nor its log_history, a list of entries such as {{'loss': 1.0}}"
    step = content.get("global_step", 0) if isinstance(content, dict) else 0
    return (step if isinstance(step, int) else 0), log


def _numbers(entry: Mapping[str, Any]) -> Iterator[tuple[str, float]]:
    for key, value in entry.items():
        if isinstance(value, (int, float)) and not isinstance(value, bool):
            yield key, float(value)


def _families(entry: Mapping[str, Any]) -> bool:
    return any(key.startswith(FAMILIES) for key, _ in _numbers(entry))


def _with_classes_together(found: Mapping[str, Mapping[float, float]]) -> dict[str, Series]:
    stems = [match.group(1) for match in map(_NUMBERED.match, found) if match]
    groups: dict[str, list[Mapping[float, float]]] = {}
    for name, points in found.items():
        match = _NUMBERED.match(name)
        many = match is not None and stems.count(match.group(1)) >= FEWEST_NUMBERED
        groups.setdefault(_per_class(match.group(1)) if match and many else name, []).append(points)
    return {name: _together(members) for name, members in groups.items()}


def _per_class(stem: str) -> str:
    return f"{stem.removesuffix('class').removesuffix('_')} per class (mean, range)".lstrip()


def _together(members: Sequence[Mapping[float, float]]) -> Series:
    places = sorted({place for member in members for place in member})
    if len(members) == 1:
        return Series(places, [members[0][place] for place in places])
    values = [[member[place] for member in members if place in member] for place in places]
    means = [math.fsum(some) / len(some) for some in values]
    return Series(places, means, [min(some) for some in values], [max(some) for some in values])
