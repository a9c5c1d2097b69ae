"""Where, when and with what an evaluation ran, so that a reader can repeat it."""

from __future__ import annotations

import importlib.metadata
import platform
import shlex
import subprocess
import sys
import time
from dataclasses import asdict, is_dataclass
from datetime import datetime, timezone
from pathlib import Path
from typing import Any

import torch

from bmtard_hooks._version import __version__
from bmtard_hooks.attacks.choosing import AttackPlan
from bmtard_hooks.evaluation.report import RobustnessReport
from bmtard_hooks.evaluation.runner import AttackRunner

PACKAGES = ("torch", "timm", "transformers", "accelerate", "datasets", "torchattacks", "numpy", "scipy")


def describe_environment(
    runner: AttackRunner, report: RobustnessReport, settings: Any, plan: AttackPlan, began: float
) -> dict[str, Any]:
    """Collect what a reader needs to repeat an evaluation, as plain JSON values.

    Args:
        runner: of the evaluation.
        report: what it measured; outcomes taken up from an interrupted run are in ``seconds_of_attacks``, not ``seconds``.
        settings: dataclass of its settings.
        plan: its attacks.
        began: ``time.time()`` at its start.
    """
    return {
        "bmtard_hooks": __version__,
        "commit": source_commit(),
        "python": platform.python_version(),
        "packages": package_versions(),
        "device": device_name(runner.device),
        "processes": runner.processes.num_processes,
        "threads": torch.get_num_threads(),
        "seed": runner.seed,
        "started": datetime.fromtimestamp(began, timezone.utc).isoformat(timespec="seconds"),
        "seconds": round(time.time() - began, 1),
        "seconds_of_attacks": round(sum(outcome.seconds for outcome in report.outcomes.values()), 1),
        "settings": asdict(settings) if is_dataclass(settings) and not isinstance(settings, type) else {},
        "attacks": {name: attack.settings() for name, attack in plan.attacks.items()},
        "folded_batch_norm": runner.forward is not None,
        "weights": runner.store.key["weights"],
        "images": runner.store.key["images"],
        "command": shlex.join([_program(), *sys.argv[1:]]),
    }


def _program() -> str:
    path = Path(sys.argv[0])
    return "bmtard" if path.stem == "cli" else path.name


def package_versions() -> dict[str, str]:
    """Read the versions of the packages that results may depend on."""
    versions = {}
    for name in PACKAGES:
        try:
            versions[name] = importlib.metadata.version(name)
        except importlib.metadata.PackageNotFoundError:
            continue
    return versions


def source_commit() -> str | None:
    """Read the commit of the source tree that this package runs from; None outside a git checkout."""
    root = Path(__file__).resolve().parents[2]
    if not (root / ".git").exists():
        return None
    try:
        commit = subprocess.run(["git", "rev-parse", "HEAD"], cwd=root, capture_output=True, text=True, timeout=10)
        changed = subprocess.run(
            ["git", "status", "--porcelain"], cwd=root, capture_output=True, text=True, timeout=10
        )
    except (OSError, subprocess.TimeoutExpired):
        return None
    if commit.returncode:
        return None
    return commit.stdout.strip() + (" with changes" if changed.stdout.strip() else "")


def device_name(device: torch.device) -> str:
    """Name a device for a reader: the GPU's name, or the CPU's."""
    if device.type == "cuda":
        return torch.cuda.get_device_name(device)
    if device.type != "cpu":
        return device.type
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
    except OSError:
        lines = []
    models = [line.partition(":")[2].strip() for line in lines if line.startswith("model name")]
    return f"{models[0]} ({len(models)} cores)" if models else platform.processor() or platform.machine()
