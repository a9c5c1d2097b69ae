"""Checkpoint folders that are whole or not there: sealed with a list of their files, then renamed; and how to find the newest."""

from __future__ import annotations

import hashlib
import json
import logging
import os
import re
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from bmtard_hooks.state import STATE_NAME

logger = logging.getLogger(__name__)

UNFINISHED = "_unfinished"
"""Folder of an ``output_dir`` in which checkpoints and models are written before they get their name.

Trainer uploads nothing of an ``output_dir`` whose name begins with an underscore.
"""
PREVIOUS = "_previous-"
"""Beginning of the names of folders with checkpoints of other runs."""
OLDER_NAMES = {UNFINISHED: ".unfinished", PREVIOUS: "previous-"}
"""What older releases called them."""
MANIFEST_NAME = "checkpoint_manifest.json"
TRAINER_STATE = "trainer_state.json"
VERSION = 1
_NAME = re.compile(r"checkpoint-(\d+)")
_CHUNK = 1 << 20


def seal(directory: Path) -> None:
    """Bring every file of a folder to the disk and write down its name, size and SHA-256.

    Args:
        directory: a checkpoint to which nothing will be added.
    """
    files = {}
    for path in sorted(_files(directory)):
        with path.open("rb") as file:
            os.fsync(file.fileno())
        files[path.relative_to(directory).as_posix()] = {"bytes": path.stat().st_size, "sha256": _digest(path)}
    manifest = directory / MANIFEST_NAME
    with manifest.open("w") as file:
        json.dump({"version": VERSION, "files": files}, file, indent=2)
        file.flush()
        os.fsync(file.fileno())
    _sync(directory)


def publish(directory: Path, final: Path) -> None:
    """Give a sealed folder its name; one that had the name before goes.

    Args:
        directory: the sealed folder, on the same file system.
        final: ``output_dir/checkpoint-N``.
    """
    if final.exists():
        replaced = directory.with_name(f"replaced-{final.name}")
        shutil.rmtree(replaced, ignore_errors=True)
        final.rename(replaced)  # a kill before the next line is repaired by ``recover``
    directory.rename(final)
    _sync(final.parent)
    shutil.rmtree(directory.with_name(f"replaced-{final.name}"), ignore_errors=True)


def recover(output_dir: Path) -> None:
    """Finish what a killed run was about to rename, and remove what it had only begun to write.

    Folders that an older release set aside get the name that keeps them from being uploaded, here and in ``set_aside``.

    Args:
        output_dir: of a run that nobody writes to now.
    """
    _rename_older(output_dir)
    for unfinished in _unfinished_of(output_dir):
        for directory in sorted(unfinished.iterdir()):
            if not _NAME.fullmatch(directory.name):
                continue
            sealed = (directory / MANIFEST_NAME).is_file()  # without it, a file may be half-written here
            if sealed and not (output_dir / directory.name).exists() and why_unusable(directory) is None:
                publish(directory, output_dir / directory.name)
            else:
                logger.info("%s was not finished when its run ended, it is removed", output_dir / directory.name)
        shutil.rmtree(unfinished, ignore_errors=True)


def _unfinished_of(output_dir: Path) -> list[Path]:
    names = (UNFINISHED, OLDER_NAMES[UNFINISHED])
    return [output_dir / name for name in names if (output_dir / name).is_dir()]


def checkpoints(output_dir: Path) -> list[Path]:
    """List the checkpoints of a run, newest first."""
    if not output_dir.is_dir():
        return []
    found = [(int(match[1]), path) for path in output_dir.iterdir() if (match := _NAME.fullmatch(path.name))]
    return [path for _, path in sorted(found, reverse=True) if path.is_dir()]


def set_aside(output_dir: Path) -> None:
    """Move the checkpoints of another run out of the way, so that nobody goes on with them by mistake; nothing is deleted.

    Args:
        output_dir: of a run that begins at step 0.
    """
    for unfinished in _unfinished_of(output_dir):  # of a run that was killed before its first checkpoint
        shutil.rmtree(unfinished, ignore_errors=True)
    _rename_older(output_dir)
    others = checkpoints(output_dir)
    if not others:
        return
    place = output_dir / f"{PREVIOUS}{max(_numbers(output_dir, PREVIOUS), default=0) + 1}"
    place.mkdir()
    for path in others:
        path.rename(place / path.name)
    logger.warning("%d checkpoints of the run that was in %s are now in %s", len(others), output_dir, place)


def _rename_older(output_dir: Path) -> None:
    """Give folders of set-aside checkpoints the name that this release has for them."""
    older, taken = OLDER_NAMES[PREVIOUS], _numbers(output_dir, PREVIOUS)
    for number in _numbers(output_dir, older):
        path = output_dir / f"{older}{number}"
        if checkpoints(path):  # a folder that a user called so stays
            free = number if number not in taken else max(taken) + 1
            taken.append(free)
            path.rename(output_dir / f"{PREVIOUS}{free}")


def _numbers(output_dir: Path, beginning: str) -> list[int]:
    found = [path.name.removeprefix(beginning) for path in output_dir.glob(f"{beginning}*") if path.is_dir()]
    return sorted(int(rest) for rest in found if re.fullmatch(r"[1-9]\d*", rest))


def newest_whole(output_dir: Path, needs_best: bool = False) -> tuple[Path | None, dict[str, str]]:
    """Find the newest checkpoint that a run can go on from.

    Args:
        output_dir: of the run.
        needs_best: pass over checkpoints whose best one so far is gone, because the run will end with the best.

    Returns:
        The checkpoint, None if there is none; and the newer ones that were passed over, with the reasons.
    """
    passed_over: dict[str, str] = {}
    for path in checkpoints(output_dir):
        reason = why_unusable(path) or (_why_without_best(path) if needs_best else None)
        if reason is None:
            return path, passed_over
        passed_over[path.name] = reason
    return None, passed_over


def best_of(directory: Path) -> Path | None:
    """Read which checkpoint is the best so far, as it is called beside this one now; None if none was chosen."""
    best = json.loads((directory / TRAINER_STATE).read_text()).get("best_model_checkpoint")
    return None if best is None else directory.parent / Path(best).name


def _why_without_best(directory: Path) -> str | None:
    best = best_of(directory)
    if best is None or best == directory:
        return None
    reason = why_unusable(best) if best.is_dir() else "it is gone"
    return (
        None if reason is None else f"its best checkpoint so far, {best.name}, cannot be loaded at the end: {reason}"
    )


def why_unusable(directory: Path) -> str | None:
    """Say why a run cannot go on from a checkpoint; None if it can.

    Every file must have the size and the SHA-256 that were written down when the checkpoint was sealed. A checkpoint of an
    older release has no such list; it counts as whole if it has the file that is written last.
    """
    try:
        manifest: Any = json.loads((directory / MANIFEST_NAME).read_text())
        listed = {str(name): (int(entry["bytes"]), str(entry["sha256"])) for name, entry in manifest["files"].items()}
    except FileNotFoundError:
        missing = [name for name in (TRAINER_STATE, STATE_NAME) if not (directory / name).is_file()]
        if missing:
            return f"{' and '.join(missing)} missing: it is half-written, or not of BMTARDTrainer"
        return _why_not_to_resume([path.name for path in _files(directory)])
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        return f"{MANIFEST_NAME} is damaged ({error})"
    for name, (size, digest) in listed.items():
        path = directory / name
        if not path.is_file():
            return f"{name} is missing"
        if path.stat().st_size != size:
            return f"{name} has {path.stat().st_size} bytes, it was written with {size}"
        if _digest(path) != digest:
            return f"{name} is damaged: its SHA-256 is not the one that was written down"
    return _why_not_to_resume(list(listed))


def _why_not_to_resume(names: list[str]) -> str | None:
    if any(Path(name).parts[0].startswith("optimizer") for name in names):
        return None
    return "it holds no optimizer (save_only_model=True), so its run cannot go on; load its model as a new student instead"


def _files(directory: Path) -> Iterator[Path]:
    return (path for path in directory.rglob("*") if path.is_file() and path.name != MANIFEST_NAME)


def _digest(path: Path) -> str:
    digest = hashlib.sha256()
    with path.open("rb") as file:
        while chunk := file.read(_CHUNK):
            digest.update(chunk)
    return digest.hexdigest()


def _sync(directory: Path) -> None:
    if os.name != "posix":
        return  # other systems cannot open a folder
    handle = os.open(directory, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)
