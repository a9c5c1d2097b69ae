"""The newest checkpoint that is whole: a run may have been killed while it wrote one, or while it deleted one."""

from __future__ import annotations

import json
import logging
import re
import shutil
import zipfile
from pathlib import Path

from safetensors import SafetensorError, safe_open

from bmtard_hooks.state import STATE_NAME

logger = logging.getLogger(__name__)

NAME = re.compile(r"checkpoint-(\d+)")
TORCH_FILES = ("optimizer.pt", "scheduler.pt", "rng_state.pth")


def keep_whole_checkpoints(directory: Path) -> Path | None:
    """Delete the checkpoints of a run from which it cannot go on, and return the newest of the others.

    Args:
        directory: of the run; nobody else may be writing to it.

    Returns:
        The checkpoint to resume from; None if the run has to start again.
    """
    found = [path for path in directory.glob("checkpoint-*") if NAME.fullmatch(path.name)]
    found.sort(key=lambda path: int(path.name.rpartition("-")[2]), reverse=True)
    broken = {path: reason for path in found if (reason := what_is_missing(path)) is not None}
    for path, reason in broken.items():
        logger.warning("%s is not whole (%s): it is deleted", path, reason)
        shutil.rmtree(path)
    whole = [path for path in found if path not in broken]
    for path in whole:
        best = json.loads((path / "trainer_state.json").read_text()).get("best_model_checkpoint")
        if best is None or Path(best) in whole:
            return path
        logger.warning("%s cannot be gone on from: the best checkpoint so far, %s, is gone", path, best)
        shutil.rmtree(path)
    return None


def what_is_missing(checkpoint: Path) -> str | None:
    """Say why a checkpoint is not whole; None if it is."""
    for name in (STATE_NAME, "trainer_state.json"):
        try:
            json.loads((checkpoint / name).read_text())
        except (FileNotFoundError, json.JSONDecodeError) as error:
            return f"{name}: {error}"
    for name in TORCH_FILES:
        if not zipfile.is_zipfile(checkpoint / name):  # its directory is at the end of the file
            return f"{name} is missing or not whole"
    models = [*checkpoint.glob("model*.safetensors"), *checkpoint.glob("pytorch_model*.bin")]
    for path in models:
        if path.suffix != ".safetensors":
            if not zipfile.is_zipfile(path):
                return f"{path.name} is not whole"
            continue
        try:
            with safe_open(path, framework="pt") as content:
                content.keys()
        except (SafetensorError, OSError) as error:
            return f"{path.name}: {error}"
    return None if models else "no model"
