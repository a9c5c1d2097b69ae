"""Measure our attacks beside torchattacks' on the same model and images: time, passes, and what they break.

    python benchmarks/evaluation.py --model outputs/bmtard --dataset cifar10 --limit 200

One run measures everything, because machines are noisy: PGD-20 of both, AutoAttack of torchattacks as it comes (its parts at
10 steps), with the settings of the official AutoAttack, and ours; the official package too if it is installed. Printed are
seconds, image passes forward and backward, and robust accuracy; only ratios within one run mean anything. `--output` keeps
the numbers as JSON. Everything runs in float32 and eval mode on batches of the same size.
"""

from __future__ import annotations

import argparse
import json
import time
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
import torchattacks
from torch import Tensor, nn

from bmtard_hooks import create_model, load_images
from bmtard_hooks.attacks.choosing import choose_attacks
from bmtard_hooks.attacks.guard import attack_mode
from bmtard_hooks.evaluation.environment import device_name, package_versions, source_commit
from bmtard_hooks.evaluation.evaluator import run_columns
from bmtard_hooks.evaluation.report import RobustnessReport
from bmtard_hooks.evaluation.runner import AttackRunner
from bmtard_hooks.image_tensors import ImageTensors
from bmtard_hooks.models.folding import FoldedClassifier
from bmtard_hooks.models.precision import exact_arithmetic

EPS = 8 / 255
PARTS = 4


class Counting(nn.Module):
    """Counts image passes of somebody else's attack: every forward, and a backward for every forward with a graph."""

    def __init__(self, model: nn.Module) -> None:
        super().__init__()
        self.model = model
        self.forwards = self.backwards = 0

    def forward(self, images: Tensor) -> Tensor:
        """Classify and count."""
        logits = self.model(images)
        self.forwards += len(images)
        self.backwards += len(images) if logits.requires_grad else 0
        return logits


def official_settings(attack: torchattacks.AutoAttack) -> torchattacks.AutoAttack:
    """Give the parts of torchattacks' AutoAttack the settings of the official one: 100 steps, literal Square schedule."""
    parts = attack._autoattack.attacks
    assert len(parts) == PARTS
    for part in parts[:3]:
        part.steps = 100
    parts[3].resc_schedule = False
    return attack


def theirs(
    make: Callable[[nn.Module], Any], model: nn.Module, data: ImageTensors, batch_size: int, device: str
) -> dict:
    """Attack every clean-correct image with a foreign attack and measure it."""
    counting = Counting(model)
    counting.eval()
    attack = make(counting)
    robust, seconds, correct = 0, 0.0, 0
    with attack_mode(counting, foreign=True), exact_arithmetic():  # as the library's own attacks
        for start in range(0, len(data), batch_size):
            images = data.pixels(slice(start, start + batch_size)).to(device)
            labels = data.labels[start : start + batch_size].to(device)
            with torch.no_grad():
                right = model(images).argmax(dim=1) == labels
            images, labels = images[right], labels[right]
            began = time.perf_counter()
            adversarial = attack(images, labels)
            synchronize(device)
            seconds += time.perf_counter() - began
            with torch.no_grad():
                robust += int((model(adversarial).argmax(dim=1) == labels).sum())
            correct += len(images)
    return row(seconds, counting.forwards, counting.backwards, robust, len(data), correct)


def ours(word: str, model: Any, data: ImageTensors, batch_size: int, device: str, fold: bool) -> dict:
    """Attack every clean-correct image with an attack of this library and measure it."""
    forward = FoldedClassifier.checked(model, data.pixels(slice(0, 8)).to(device)) if fold else None
    runner = AttackRunner(model, data, batch_size=batch_size, forward=forward)
    report = RobustnessReport("", "", runner.labels, runner.predictions, runner.num_classes, None, {}, {})
    began = time.perf_counter()
    run_columns(runner, choose_attacks(word), report)
    synchronize(device)
    seconds = time.perf_counter() - began
    forwards, backwards = (
        sum(getattr(o, name) for o in report.outcomes.values()) for name in ("forwards", "backwards")
    )
    return row(seconds, forwards, backwards, int(report.robust(word).sum()), len(data), int(runner.correct.sum()))


def row(seconds: float, forwards: int, backwards: int, robust: int, images: int, attacked: int) -> dict:
    """Sum up one measurement; ``attacked`` images were right when clean."""
    if not attacked:
        raise ValueError(
            f"none of {images} images is classified correctly, so there is nothing to attack: raise --limit"
        )
    return {
        "seconds": round(seconds, 2),
        "forwards_per_image": round(forwards / attacked, 1),
        "backwards_per_image": round(backwards / attacked, 1),
        "robust_accuracy": robust / images,
    }


def synchronize(device: str) -> None:
    """Wait for a GPU."""
    if device.startswith("cuda"):
        torch.cuda.synchronize()


def official(model: nn.Module) -> Any:
    """Make the official AutoAttack, if it is installed."""
    from autoattack import AutoAttack

    attack = AutoAttack(model, norm="Linf", eps=EPS, seed=0, verbose=False, device=next(model.parameters()).device)
    return lambda images, labels: attack.run_standard_evaluation(images, labels, bs=len(images))


def contenders(options: argparse.Namespace) -> dict[str, Callable[[Any, ImageTensors], dict]]:
    """List what is measured, by name."""
    batch, device = options.batch_size, options.device

    def foreign(make: Callable[[nn.Module], Any]) -> Callable[[Any, ImageTensors], dict]:
        return lambda model, data: theirs(make, model, data, batch, device)

    def own(word: str, fold: bool = True) -> Callable[[Any, ImageTensors], dict]:
        return lambda model, data: ours(word, model, data, batch, device, fold)

    table = {
        "PGD-20, torchattacks": foreign(lambda m: torchattacks.PGD(m, eps=EPS, alpha=2 / 255, steps=20)),
        "PGD-20, ours without folding": own("pgd_sat", fold=False),
        "PGD-20, ours": own("pgd_sat"),
    }
    if not options.pgd_only:
        table["AutoAttack, torchattacks as it comes"] = foreign(lambda m: torchattacks.AutoAttack(m, eps=EPS, seed=0))
        table["AutoAttack, torchattacks with official settings"] = foreign(
            lambda m: official_settings(torchattacks.AutoAttack(m, eps=EPS, seed=0))
        )
        table["AutoAttack, ours without folding"] = own("autoattack", fold=False)
        table["AutoAttack, ours"] = own("autoattack")
        try:
            import autoattack  # noqa: F401

            table["AutoAttack, official package"] = foreign(official)
        except ImportError:
            pass
    return table


def main() -> None:
    """Measure, print a table, and keep it if asked to."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", required=True, help="directory or hub id")
    parser.add_argument("--dataset", default="cifar10")
    parser.add_argument("--split", default="test")
    parser.add_argument("--limit", type=int, default=200)
    parser.add_argument("--batch_size", type=int, default=100)
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    parser.add_argument("--repeats", type=int, default=5, help="of PGD; AutoAttack is long enough to be measured once")
    parser.add_argument("--pgd_only", action="store_true")
    parser.add_argument("--output", help="JSON file")
    options = parser.parse_args()
    warnings.filterwarnings("ignore")
    model = create_model(options.model).to(options.device).eval().requires_grad_(False)
    data = load_images(options.dataset, options.split, limit=options.limit)
    rows: dict[str, dict] = {}
    for repeat in range(options.repeats + 1):  # round 0 warms up; the fastest of the others counts
        for name, measure in contenders(options).items():
            if name.startswith("AutoAttack") and repeat != options.repeats:
                continue
            measured = measure(model, data if repeat else data.subset(range(min(16, len(data)))))
            if repeat and measured["seconds"] <= rows.get(name, measured)["seconds"]:
                rows[name] = measured
                print(f"{name:<50}", *(f"{key} {value:>10.4g}" for key, value in measured.items()), flush=True)
    reference = {"PGD": "PGD-20, torchattacks", "AutoAttack": "AutoAttack, torchattacks with official settings"}
    for name in rows:
        base = reference[name.split("-")[0].split(",")[0]]
        rows[name]["times_as_fast"] = round(rows[base]["seconds"] / rows[name]["seconds"], 2)
        print(f"{name:<50} {rows[name]['times_as_fast']:.2f} times as fast as {base}")
    if options.output:
        kept = {
            "question": "time and strength of the attacks beside torchattacks, one run",
            "command": "python benchmarks/evaluation.py --model MODEL --dataset CIFAR10"
            f" --limit {options.limit} --batch_size {options.batch_size}",
            "commit": source_commit(),
            "packages": package_versions(),
            "device": device_name(torch.device(options.device)),
            "threads": torch.get_num_threads(),
            "images": len(data),
            "eps": EPS,
            "rows": rows,
        }
        Path(options.output).write_text(json.dumps(kept, indent=2) + "\n")


if __name__ == "__main__":
    main()
