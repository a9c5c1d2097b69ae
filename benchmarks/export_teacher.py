"""Turn a teacher that `recipes/train_teacher.py` wrote into a small one to hand on: half-precision weights and a card.

    python benchmarks/export_teacher.py outputs/clean benchmarks/teachers/cifar10_clean --dataset cifar10 \
        --command "accelerate launch recipes/train_teacher.py … --output_dir outputs/clean"

What is measured for the card is the network as it will be loaded, after rounding to float16, on the whole test split. It loads
with `load_teacher(directory)`, in float32.
"""

from __future__ import annotations

import argparse
import hashlib
import shutil
from pathlib import Path

import torch
from safetensors.torch import load_file, save_file

from bmtard_hooks import create_model, evaluate_robustness, load_images
from bmtard_hooks.class_names import record_names
from bmtard_hooks.evaluation.environment import device_name, package_versions, source_commit
from bmtard_hooks.evaluation.report import RobustnessReport
from bmtard_hooks.evaluation.statistics import accuracy_error
from bmtard_hooks.reporting.files import write_file
from bmtard_hooks.reporting.presentation import accuracy, attack_name
from bmtard_hooks.reporting.report_file import save_report

WEIGHTS, CONFIG, CARD, REPORT = "model.safetensors", "config.json", "README.md", "report.json"
LARGEST = 6_000_000  # bytes that a repository should have to carry


def main(argv: list[str] | None = None) -> RobustnessReport:
    """Write the directory and measure what it holds."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("source", type=Path, help="directory that train_teacher.py wrote")
    parser.add_argument("target", type=Path, help="directory to make")
    parser.add_argument("--dataset", default="cifar10", help="hub id or local directory")
    parser.add_argument("--split", default="test")
    parser.add_argument("--limit", type=int, help="measure on the first images only; for a try")
    parser.add_argument("--attacks", nargs="+", default=["pgd_trades"], help="as of `bmtard evaluate`")
    parser.add_argument("--command", required=True, help="the command that trained it, for the card")
    parser.add_argument("--note", default="", help="a sentence for the card")
    options = parser.parse_args(argv)
    halve(options.source, options.target)
    images = load_images(options.dataset, options.split, limit=options.limit)
    model = create_model(str(options.target)).freeze()
    record_names(model, images.label_names)
    model.backbone.config.save_pretrained(options.target)
    report = evaluate_robustness(
        model,
        images,
        options.attacks,
        model_name=options.target.name,
        dataset_name=f"{Path(options.dataset).name}, {options.split}",
        checks=False,
        examples=0,
        progress=False,
    )
    # the source is a path of this machine, which helps nobody
    report.environment["command"] = f"python benchmarks/export_teacher.py SOURCE {options.target.as_posix()}"
    save_report(report, options.target / REPORT)
    card = describe(options.target, report, options.command, options.note)
    write_file(options.target / CARD, card)
    print(card)
    return report


def halve(source: Path, target: Path) -> None:
    """Copy a saved model with its weights rounded to float16.

    Args:
        source: directory with ``config.json`` and ``model.safetensors``.
        target: directory to make.

    Raises:
        FileNotFoundError: if the source is not a saved model.
        ValueError: if a weight is too large for float16, or the file too large to hand on.
    """
    for name in (CONFIG, WEIGHTS):
        if not (source / name).is_file():
            raise FileNotFoundError(f"{source} has no {name}: pass the --output_dir of a finished train_teacher.py")
    halved = {
        name: value.half().contiguous() if value.is_floating_point() else value
        for name, value in load_file(source / WEIGHTS).items()
    }
    broken = [name for name, value in halved.items() if not torch.isfinite(value).all()]
    if broken:
        raise ValueError(f"{', '.join(broken)} do not fit into float16")
    target.mkdir(parents=True, exist_ok=True)
    save_file(halved, target / WEIGHTS, metadata={"format": "pt"})
    size = (target / WEIGHTS).stat().st_size
    if size > LARGEST:
        raise ValueError(f"{target / WEIGHTS} has {size:,} bytes, more than {LARGEST:,}: train a smaller network")
    shutil.copy(source / CONFIG, target / CONFIG)


def describe(target: Path, report: RobustnessReport, command: str, note: str) -> str:
    """Write the card of an exported teacher.

    Args:
        target: its directory.
        report: its evaluation.
        command: that trained it.
        note: a further sentence.
    """
    weights = target / WEIGHTS
    parameters = sum(parameter.numel() for parameter in create_model(str(target)).parameters())
    versions = package_versions()
    rows = [_line(attack_name(row.column), row.robust, row.robust_error, row.images) for row in report.rows()]
    clean, images = float(report.correct.mean()), len(report.labels)
    lines = [
        f"# {target.name}",
        "",
        f'{parameters:,} parameters, float16. `load_teacher("{target.as_posix()}")` loads it in float32.',
        *(["", note] if note else []),
        "",
        f"| images of {report.dataset} | | percent |",
        "|---|---:|---:|",
        _line("clean", clean, accuracy_error(clean, images), images),
        *rows,
        "",
        "Radius 8/255, L∞; ± is one standard error over images. PGD overstates robustness: attack it with AutoAttack before",
        "relying on it.",
        "",
        "```bash",
        command,
        "```",
        "",
        "`benchmarks/export_teacher.py` took the weights over and wrote this card.",
        "",
        f"- SHA-256 of `{WEIGHTS}`: `{hashlib.sha256(weights.read_bytes()).hexdigest()}`",
        f"- Measured on {device_name(torch.device('cpu'))}, commit {source_commit()}, torch {versions.get('torch')}, "
        f"transformers {versions.get('transformers')}, timm {versions.get('timm')}.",
    ]
    return "\n".join(lines) + "\n"


def _line(name: str, share: float, error: float, images: int) -> str:
    return f"| {name} | {images:,} | {accuracy(share, error, images)} |"


if __name__ == "__main__":
    main()
