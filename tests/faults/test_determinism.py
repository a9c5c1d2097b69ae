"""What changes the bits of a run and what does not: the rows of docs/determinism.md that can be checked in seconds.

Run as a script, ``python tests/faults/test_determinism.py``, it measures every row of that table.
"""

import hashlib
import json
import multiprocessing
import os
import subprocess
import sys
import tempfile
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parents[1]))

import pytest
import torch
from conftest import sharp_net, tiny_data, tiny_net

from bmtard_hooks import BMTARDConfig, BMTARDTrainer

CLOCKS = ("runtime", "per_second", "time")
STEPS = 8


def networks(name):
    """Student and teachers: a tiny network with BatchNorm and dropout, or the smallest network of the paper's family."""
    if name == "tiny":
        student = tiny_net(0, batch_norm=True, dropout=0.3)
        return student, tiny_data(32), sharp_net(1, 8.0, batch_norm=True), sharp_net(2, batch_norm=True)
    from bmtard_hooks import create_model

    torch.manual_seed(0)
    student, clean, robust = (create_model("resnet8_cifar", num_classes=4) for _ in range(3))
    return student, tiny_data(32, size=32), clean, robust


def run(folder, name="tiny", threads=1, draws=0, **options):
    """Train for eight steps and give back weights, state and log."""
    student, data, clean, robust = networks(name)
    defaults = dict(
        output_dir=str(folder), use_cpu=True, per_device_train_batch_size=8, num_train_epochs=2, steps=2, eval_attack_steps=1,
        augment="crop_flip", crop_padding=1, logging_steps=1, save_strategy="no", report_to="none", disable_tqdm=True,
        temperature_rate=0.05, weight_rate=0.3, overwrite_output_dir=True,
    )  # fmt: skip
    before = torch.get_num_threads()
    torch.set_num_threads(threads)
    try:
        trainer = BMTARDTrainer(
            student, BMTARDConfig(**{**defaults, **options}), train_dataset=data, eval_dataset=tiny_data(10, seed=5, size=data.images.shape[-1]),
            clean_teacher=clean, robust_teacher=robust,
        )  # fmt: skip
        torch.rand(draws)
        trainer.train()
    finally:
        torch.set_num_threads(before)
    assert trainer.state.global_step == STEPS
    return found_in(trainer)


def found_in(trainer):
    tensors = [value.detach().cpu().contiguous() for value in trainer.model.state_dict().values()]
    moved = [p.detach().cpu().flatten() for p in trainer.model.parameters()]
    rows = [
        {key: value for key, value in row.items() if not any(clock in key for clock in CLOCKS)}
        for row in trainer.state.log_history
    ]
    return {
        "bits": hashlib.sha256(b"".join(tensor.numpy().tobytes() for tensor in tensors)).hexdigest(),
        "state": trainer.distillation.state_dict(),
        "log": [row for row in rows if "loss" in row],
        "evaluations": [row for row in rows if "eval_loss" in row],
        "weights": torch.cat(moved).tolist(),
    }


def far(left, right):
    """Largest difference of a weight."""
    return max(abs(a - b) for a, b in zip(left["weights"], right["weights"], strict=True))


# Two fresh processes.


def child(seed, path):
    with tempfile.TemporaryDirectory() as folder:
        found = run(folder, seed=seed, dataloader_num_workers=2, eval_strategy="epoch")
    Path(path).write_text(json.dumps(found))


def fork_children(folder):
    """Train in three processes that begin as equals: twice with seed 0, once with seed 1."""
    torch.set_num_threads(1)
    context = multiprocessing.get_context("fork")
    for number, seed in enumerate((0, 0, 1)):
        process = context.Process(target=child, args=(seed, str(Path(folder) / f"{number}.json")))
        process.start()
        process.join()
        assert process.exitcode == 0


@pytest.fixture(scope="module")
def three(tmp_path_factory):
    folder = tmp_path_factory.mktemp("processes")
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    done = subprocess.run(
        [sys.executable, __file__, "children", str(folder)],
        env=environment,
        capture_output=True,
        text=True,
        timeout=120,
    )
    assert done.returncode == 0, done.stderr[-4000:]
    return [json.loads((folder / f"{number}.json").read_text()) for number in range(3)]


def test_same_seed_gives_the_same_weights_state_and_logs_in_another_process(three):
    first, second, _ = three
    assert first == second
    assert len(first["log"]) == 8 and len(first["evaluations"]) == 2


def test_another_seed_gives_another_run(three):
    first, _, other = three
    assert far(first, other) > 1e-4
    assert first["state"] != other["state"] and first["evaluations"] != other["evaluations"]
    assert (
        first["log"][0]["loss"] != other["log"][0]["loss"]
    )  # images, augmentation and noise differ from the first step


# What must not change a bit.

UNCHANGED = {
    "again in the same process": {},
    "two data workers": {"dataloader_num_workers": 2},
    "evaluation in between": {"eval_strategy": "steps", "eval_steps": 3},
    "saving": {"save_strategy": "steps", "save_steps": 3},
    "saving one of three, and the best": {
        "save_strategy": "steps", "save_steps": 2, "eval_strategy": "steps", "eval_steps": 2, "save_total_limit": 1,
        "metric_for_best_model": "w_robust",
    },
    "logging less often": {"logging_steps": 5},
    "evaluation batch size": {"eval_strategy": "epoch", "per_device_eval_batch_size": 3},
    "progress bar": {"disable_tqdm": False},
}  # fmt: skip

# What may change bits, and how: same bits?
CHANGED = {
    "fold_batch_norm off": {"fold_batch_norm": False},
    "channels_last off": {"channels_last": False},
    "two threads": {"threads": 2},
    "bf16": {"bf16": True},
    "2 x 4 images accumulated": {"per_device_train_batch_size": 4, "gradient_accumulation_steps": 2},
    "batches of 16": {"per_device_train_batch_size": 16, "num_train_epochs": 4},
    "torch_compile, eager": {"torch_compile": True, "torch_compile_backend": "eager"},
    "torch_compile, aot_eager": {"torch_compile": True, "torch_compile_backend": "aot_eager"},
    "torch_compile, inductor": {"torch_compile": True, "torch_compile_backend": "inductor"},
    "own draws before train()": {"draws": 1},
    "another seed": {"seed": 1},
    "another data_seed": {"data_seed": 1},
}


@pytest.fixture(scope="module")
def plain(tmp_path_factory):
    return run(tmp_path_factory.mktemp("plain"))


@pytest.mark.parametrize("what", UNCHANGED)
def test_bits_do_not_change_with(what, plain, tmp_path):
    found = run(tmp_path, **UNCHANGED[what])
    assert found["bits"] == plain["bits"] and found["state"] == plain["state"]
    if len(found["log"]) == len(plain["log"]):
        assert found["log"] == plain["log"]


MEASURED_HERE = [name for name in CHANGED if not name.startswith("torch_compile")]


@pytest.mark.parametrize("what", MEASURED_HERE)
def test_rows_that_may_change_bits_do_what_the_table_says(what, plain, tmp_path, monkeypatch):
    monkeypatch.setattr("bmtard_hooks.config._has_fast_bf16", lambda: True)
    found = run(tmp_path, **CHANGED[what])
    table = (Path(__file__).parents[2] / "docs" / "determinism.md").read_text()
    (row,) = (line for line in table.splitlines() if f"`{what}`" in line)
    answer = row.split("|")[2].strip()
    assert answer in ("yes", "here yes", "rounding", "no")
    if answer in ("here yes", "rounding"):  # a matter of machine and library
        assert far(found, plain) < 1e-4
    else:
        assert (found["bits"] == plain["bits"]) is (answer == "yes")


# The numbers of the table.


def measure():
    """Print every row: the largest difference of a weight after eight steps, on both networks."""
    for what, options in {**UNCHANGED, **CHANGED}.items():
        cells = []
        for name in ("tiny", "resnet8_cifar"):
            with tempfile.TemporaryDirectory() as folder:
                if name not in measure.plain:
                    measure.plain[name] = run(folder + "/plain", name)
                try:
                    found = run(folder + "/other", name, **options)
                except Exception as error:
                    cells.append(f"{type(error).__name__}: {str(error)[:200]}")
                    continue
            same = found["bits"] == measure.plain[name]["bits"]
            cells.append("same bits" if same else f"{far(found, measure.plain[name]):.1e}")
        print(f"{what} | {' | '.join(cells)}", flush=True)


measure.plain = {}


def measure_ranks():
    """Compare two ranks of four images with one process of eight; started by torchrun."""
    rank, world = int(os.environ["RANK"]), int(os.environ["WORLD_SIZE"])
    for name in ("tiny", "resnet8_cifar"):
        with tempfile.TemporaryDirectory() as folder:
            found = run(folder, name, per_device_train_batch_size=8 // world)
        Path(sys.argv[2], f"{name}-{world}-{rank}.json").write_text(json.dumps(found))


if __name__ == "__main__":
    if sys.argv[1:2] == ["children"]:
        fork_children(sys.argv[2])
    elif sys.argv[1:2] == ["ranks"]:
        measure_ranks()
        from accelerate import PartialState

        PartialState().destroy_process_group()
    else:
        torch.set_num_threads(1)
        measure()
