import gc
import json
import os
import re
import time
from pathlib import Path

os.environ["HF_HUB_OFFLINE"] = "1"  # no test may need a network

import pytest
import torch
from torch import nn

from bmtard_hooks import BMTARDConfig, BMTARDTrainer, ImageTensors
from bmtard_hooks.methods import make_method

FIXTURES = Path(__file__).parent / "fixtures"


class TinyNet(nn.Module):
    """A classifier of 8x8 images that trains in milliseconds."""

    def __init__(self, num_classes=4, batch_norm=False, dropout=0.0, channels=3):
        super().__init__()
        self.num_classes = num_classes
        self.conv = nn.Conv2d(channels, 6, 3, stride=2, padding=1)
        self.norm = nn.BatchNorm2d(6) if batch_norm else nn.Identity()
        self.dropout = nn.Dropout(dropout)
        self.head = nn.Linear(6 * 16, num_classes)

    def forward(self, pixel_values):
        features = torch.relu(self.norm(self.conv(pixel_values)))
        return self.head(self.dropout(features.flatten(1)))


def tiny_net(seed=0, **kwargs):
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        return TinyNet(**kwargs)


def sharp_net(seed, scale=4.0, **kwargs):
    """A teacher with an opinion: its logits are spread out."""
    net = tiny_net(seed, **kwargs)
    with torch.no_grad():
        net.head.weight.mul_(scale)
    return net


def tiny_data(count=16, num_classes=4, seed=0, size=8):
    generator = torch.Generator().manual_seed(seed)
    images = torch.randint(0, 256, (count, 3, size, size), generator=generator, dtype=torch.uint8)
    return ImageTensors(
        images, torch.randint(0, num_classes, (count,), generator=generator), list(map(str, range(num_classes)))
    )


COUNTED = (
    *(
        "kills survived",
        "signals survived",
        "full disks survived",
        "damaged checkpoints refused",
        "bad numbers caught",
    ),
    *("bad inputs refused", "hostile files refused", "properties", "property cases"),
)


def pytest_terminal_summary(terminalreporter):
    """Add up what tests of faults, bad inputs and properties counted with ``record_property``."""
    totals = dict.fromkeys(COUNTED, 0)
    passed = {report.nodeid for report in terminalreporter.getreports("passed")}
    for report in terminalreporter.getreports(""):  # setups and teardowns; fixtures count until the last
        for name, value in report.user_properties if report.when == "teardown" and report.nodeid in passed else ():
            if name in totals:
                totals[name] += value
    found = [f"{value:,} {name}" for name, value in totals.items() if value]
    if found:
        terminalreporter.write_sep("-", "reliability")
        terminalreporter.write_line(", ".join(found))


@pytest.fixture(autouse=True, scope="session")
def _one_thread():
    torch.set_num_threads(1)  # several threads on a busy machine are slower by orders of magnitude


@pytest.fixture(autouse=True, scope="session")
def _short_collections():
    gc.freeze()  # every training collects garbage, and would look through all imported modules each time
    yield
    gc.unfreeze()


@pytest.fixture(scope="session")
def vectors():
    return json.loads((FIXTURES / "method_vectors.json").read_text())


@pytest.fixture(scope="session")
def rival_vectors():
    return json.loads((FIXTURES / "rival_vectors.json").read_text())


@pytest.fixture
def make_config(tmp_path):
    def make(**options):
        defaults = dict(
            output_dir=str(tmp_path / "run"),
            per_device_train_batch_size=4,
            num_train_epochs=1,
            steps=2,
            eval_attack_steps=2,
            augment="none",
            logging_steps=1,
            save_strategy="no",
            report_to="none",
            disable_tqdm=True,
            channels_last=False,
        )
        return BMTARDConfig(**{**defaults, **options})

    return make


@pytest.fixture
def make_trainer(make_config):
    def make(
        model=None, data=None, *, clean_teacher=None, robust_teacher=None, teachers=None, eval_dataset=None, **options
    ):
        known = {key: options.pop(key) for key in ("callbacks", "data_collator", "compute_metrics") if key in options}
        config = make_config(**options)
        chosen = {
            "clean": sharp_net(1, scale=8) if clean_teacher is None else clean_teacher,
            "robust": sharp_net(2) if robust_teacher is None else robust_teacher,
            "robust_l2": sharp_net(3),
            **(teachers or {}),
        }
        known["teachers"] = {name: chosen[name] for name in make_method(config).teachers}
        return BMTARDTrainer(
            model if model is not None else tiny_net(0),
            config,
            train_dataset=data if data is not None else tiny_data(),
            eval_dataset=eval_dataset if eval_dataset is not None else tiny_data(10, seed=5),
            **known,
        )

    return make


SLACK = 200 * 2**20
"""Bytes that refusing a file may take at most, far below what the files ask for."""


def peak(anew=False):
    """Most bytes in memory so far, or since it was last asked for anew, where the system can tell."""
    status = Path("/proc/self/status")
    if not status.exists():
        import resource  # not on every system

        return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
    if anew and os.access("/proc/self/clear_refs", os.W_OK, effective_ids=True):
        Path("/proc/self/clear_refs").write_text("5")
    return int(re.search(r"VmHWM:\s+(\d+) kB", status.read_text())[1]) * 1024


@pytest.fixture
def refused(record_property):
    """Runs what must be refused: fast, with little memory, naming the file, what was found and what to do."""
    count = 0

    def check(call, match, path=None, kind=ValueError):
        nonlocal count
        before, started = peak(anew=True), time.monotonic()
        with pytest.raises(kind, match=match) as caught:
            call()
        assert peak() - before < SLACK and time.monotonic() - started < 30
        assert path is None or str(path) in str(caught.value)
        count += 1

    yield check
    record_property("hostile files refused", count)


@pytest.fixture
def canary(tmp_path):
    path = tmp_path / "canary"
    yield path
    assert not path.exists(), "code from a file was run"
