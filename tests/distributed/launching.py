"""Starts a script of this folder with ``accelerate launch`` and reads what every rank wrote."""

import json
import os
import subprocess
import sys
from pathlib import Path

FOLDER = Path(__file__).parent
FILES = FOLDER.parents[1] / "recipes" / "accelerate"


def start(script, output, *words, flags=()):
    """Start one launcher; its script gets the output folder and the words."""
    command = [sys.executable, "-m", "accelerate.commands.launch", *map(str, flags), str(FOLDER / script), str(output)]
    output.mkdir(parents=True, exist_ok=True)
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "MASTER_ADDR": "127.0.0.1"}
    return subprocess.Popen(
        [*command, *map(str, words)], env=environment, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    )


def finish(*launchers):
    """Wait for launchers and fail with what a failed one said."""
    try:
        said = [launcher.communicate(timeout=240)[1] for launcher in launchers]
    finally:
        for launcher in launchers:
            launcher.kill()
    for launcher, errors in zip(launchers, said, strict=True):
        assert launcher.returncode == 0, errors[-4000:]


def read_ranks(output, ranks):
    """The JSON of every rank, in order."""
    return [json.loads((output / f"rank{rank}.json").read_text()) for rank in range(ranks)]
