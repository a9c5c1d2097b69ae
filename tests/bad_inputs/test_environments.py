"""Environment variables that a launcher, a scheduler or a shell left half set, nonsensical or contradictory."""

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import NamedTuple

import pytest
from refusing import contents


class Row(NamedTuple):
    """Variables, and what the message says of them: the value, what is allowed, the fix."""

    variables: dict[str, str]
    said: tuple[str, str, str]

    @property
    def name(self):
        return " ".join(f"{name}={value}" for name, value in self.variables.items())


def row(received, allowed, fix, /, **variables):
    return Row(variables, (received, allowed, fix))


PRECISION, BACKEND = "ACCELERATE_MIXED_PRECISION", "ACCELERATE_DYNAMO_BACKEND"
ACCUMULATION, DEVICE = "ACCELERATE_GRADIENT_ACCUMULATION_STEPS", "ACCELERATE_TORCH_DEVICE"
LAUNCH, THREE = "start with accelerate launch or torchrun", "expected all three"
WHOLE = dict(WORLD_SIZE="1", RANK="0", LOCAL_RANK="0", MASTER_ADDR="127.0.0.1", MASTER_PORT="29511")

ROWS = [
    row(f"{PRECISION}='fp16'", "no or bf16", "Pass --mixed_precision", **{PRECISION: "fp16"}),
    row(f"{PRECISION}='fp8'", "no, bf16, fp16", "pass --mixed_precision", **{PRECISION: "fp8"}),
    row(f"{PRECISION}='half'", "no, bf16, fp16", "pass --mixed_precision", **{PRECISION: "half"}),
    row("ACCELERATE_USE_DEEPSPEED=true", "not supported", "Use DDP", ACCELERATE_USE_DEEPSPEED="true"),
    row("ACCELERATE_USE_DEEPSPEED='maybe'", "true or false", "unset it", ACCELERATE_USE_DEEPSPEED="maybe"),
    row("FSDP was asked for", "several accelerators", "leave FSDP out", ACCELERATE_USE_FSDP="true"),
    row("FSDP was asked for", "several accelerators", "leave FSDP out", ACCELERATE_USE_FSDP="true", FSDP_VERSION="1"),
    row("ACCELERATE_USE_FSDP='two'", "true or false", "unset it", ACCELERATE_USE_FSDP="two"),
    row("ACCELERATE_USE_CPU='maybe'", "true or false", "unset it", ACCELERATE_USE_CPU="maybe"),
    row("WORLD_SIZE=2 without RANK and LOCAL_RANK", THREE, LAUNCH, WORLD_SIZE="2"),
    row("WORLD_SIZE=2 without LOCAL_RANK", THREE, LAUNCH, RANK="0", WORLD_SIZE="2"),
    row("RANK=1 without", THREE, LAUNCH, RANK="1"),
    row("LOCAL_RANK=0 without", THREE, LAUNCH, LOCAL_RANK="0"),
    row("LOCAL_RANK=3 without", THREE, LAUNCH, LOCAL_RANK="3"),
    row("RANK='5'", "below WORLD_SIZE=2", LAUNCH, WORLD_SIZE="2", RANK="5", LOCAL_RANK="0"),
    row("LOCAL_RANK='4'", "below WORLD_SIZE=2", LAUNCH, WORLD_SIZE="2", RANK="0", LOCAL_RANK="4"),
    row("WORLD_SIZE='two'", "a whole number", LAUNCH, WORLD_SIZE="two"),
    row("WORLD_SIZE='0'", "1 or more", LAUNCH, WORLD_SIZE="0", RANK="0", LOCAL_RANK="0"),
    row("LOCAL_RANK='zero'", "a whole number", LAUNCH, LOCAL_RANK="zero"),
    row("RANK='-2'", "a whole number from 0", LAUNCH, RANK="-2"),
    row("MASTER_PORT='abc'", "a port from 0 to 65535", LAUNCH, **{**WHOLE, "MASTER_PORT": "abc"}),
    row("MASTER_PORT='99999'", "a port from 0 to 65535", LAUNCH, **{**WHOLE, "MASTER_PORT": "99999"}),
    row(f"{BACKEND}='inductr'", "one of no, eager", "pass torch_compile=True", **{BACKEND: "inductr"}),
    row(f"{ACCUMULATION}='4'", "gradient_accumulation_steps=1", "pass gradient_accumulation", **{ACCUMULATION: "4"}),
    row(f"{ACCUMULATION}='four'", "gradient_accumulation_steps=1", "Unset it", **{ACCUMULATION: "four"}),
    row(f"{ACCUMULATION}='0'", "gradient_accumulation_steps=1", "Unset it", **{ACCUMULATION: "0"}),
    row(f"{DEVICE}='cuda:99'", "such as cpu", "unset it", **{DEVICE: "cuda:99"}),
    row(f"{DEVICE}='gpu'", "such as cpu", "unset it", **{DEVICE: "gpu"}),
]
HARMLESS = [
    {PRECISION: "no", ACCUMULATION: "1", BACKEND: "NO", "ACCELERATE_USE_CPU": "true"},
    {"LOCAL_RANK": "-1", "WORLD_SIZE": "1", "RANK": "0"},
    {"OMP_NUM_THREADS": "many", "CUDA_VISIBLE_DEVICES": "abc", "TRANSFORMERS_VERBOSITY": "loud"},
]
LAUNCHER = ("ACCELERATE_", "FSDP_", "RANK", "WORLD_SIZE", "LOCAL_RANK", "MASTER_")


def key(variables):
    return json.dumps(variables)


@pytest.fixture(scope="module")
def answers(tmp_path_factory):
    """What every environment led to, and the directory in which it was tried."""
    root = tmp_path_factory.mktemp("environments")
    cases = [*(row.variables for row in ROWS), *HARMLESS]
    environment = {name: value for name, value in os.environ.items() if not name.startswith(LAUNCHER)}
    done = subprocess.run(
        [sys.executable, str(Path(__file__).with_name("environment_children.py")), str(root)],
        input=json.dumps({key(variables): variables for variables in cases}),
        env={**environment, "OMP_NUM_THREADS": "1", "HF_HUB_OFFLINE": "1"},
        capture_output=True,
        text=True,
        timeout=240,
    )
    assert done.returncode == 0, done.stderr[-2000:]
    results = json.loads(done.stdout.splitlines()[-1])
    return {name: (answer, root / str(number)) for number, (name, answer) in enumerate(results.items())}


@pytest.mark.skipif(not hasattr(os, "fork"), reason="every environment is tried in a forked process")
@pytest.mark.parametrize("row", [pytest.param(row, id=row.name) for row in ROWS])
def test_environment_is_refused_before_anything_is_written(row, answers, record_property):
    (kind, message), directory = answers[key(row.variables)]
    assert kind == "ValueError", (kind, message)
    assert all(text in message for text in row.said), message
    assert set(contents(directory)) <= {"run"} and not any(contents(directory).values())
    record_property("bad inputs refused", 1)


@pytest.mark.skipif(not hasattr(os, "fork"), reason="every environment is tried in a forked process")
@pytest.mark.parametrize("variables", HARMLESS, ids=str)
def test_environment_that_changes_nothing_is_accepted(variables, answers):
    (kind, message), _ = answers[key(variables)]
    assert (kind, message) == ("", "1 step in no, 1 process")
