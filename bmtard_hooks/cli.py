"""The command `bmtard`: evaluate a model, put reports side by side, look at teachers before training."""

from __future__ import annotations

import logging
import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from bmtard_hooks._version import __version__
from bmtard_hooks.arguments import option, parse


@dataclass
class ImageArguments:
    """Which images."""

    dataset: str = option("cifar10", "Hub id or local directory of an image classification data set.")
    split: str = option("test", "Split to use.")
    image_column: str | None = option(None, "Image column (usual names are found).")
    label_column: str | None = option(None, "Label column (usual names are found).")
    limit: int | None = option(None, "Use only the first so many images.")
    image_size: int | None = option(None, "Scale and crop images to squares of this side.")
    image_mode: str = option("RGB", "RGB, or L for models of one channel.")

    def load(self) -> Any:
        """Read the images."""
        from bmtard_hooks.image_tensors import load_images

        return load_images(
            self.dataset,
            self.split,
            image_column=self.image_column,
            label_column=self.label_column,
            limit=self.limit,
            image_size=self.image_size,
            mode=self.image_mode,
        )


@dataclass
class EvaluateArguments:
    """How `bmtard evaluate` measures."""

    model: str = option("", "Directory, hub id, or timm architecture (then with --checkpoint, or timm's weights).")
    checkpoint: str | None = option(None, "File with the weights of a timm architecture.")
    attacks: list[str] = field(
        default_factory=lambda: ["paper"],
        metadata={
            "help": "Presets (paper, white_box, black_box, quick) or attacks (fgsm, pgd_sat, pgd_trades, cw_inf, autoattack, "
            "apgd_ce, apgd_t, fab_t, square, rays, spsa, transfer_pgd, …), with settings after a colon: pgd_sat:steps=50."
        },
    )
    surrogate: str | None = option(
        None, "Model on which the transfer attacks are made, for example the robust teacher."
    )
    surrogate_checkpoint: str | None = option(None, "File with the weights of the surrogate.")
    output_dir: str = option("", "Directory of the report; the same command goes on after an interruption.")
    name: str | None = option(None, "Name of the model in the report.")
    eps: str = option("8/255", "Radius in pixel scale, a number or a fraction.")
    norm: str = option("linf", "linf or l2.")
    mode: str = option("columns", "columns (the paper's tables) or worst_case (survivors only, faster).")
    batch_size: int = option(256, "Images at a time; changes speed, not results.")
    seed: int = option(0, "Seed of the attacks.")
    clean_weight: float = option(0.5, "Weight of clean accuracy in W-Robust.")
    checks: bool = option(True, "Run the checks against false robustness.")
    check_images: int = option(200, "Images for the checks that need attacks of their own.")
    device: str | None = option(None, "Where to compute (by default Accelerate's choice).")


@dataclass
class PreviewArguments:
    """Which teachers `bmtard preview` looks at."""

    clean_teacher: str = option("", "Directory, hub id, or timm architecture with its checkpoint below.")
    clean_teacher_checkpoint: str | None = option(None, "File with the weights.")
    robust_teacher: str = option("", "The same for the robust teacher.")
    robust_teacher_checkpoint: str | None = option(None, "The same.")
    clean_temperature: float = option(1.0, "Clean teacher's temperature at the start.")
    robust_temperature: float = option(1.0, "Robust teacher's temperature at the start.")
    device: str | None = option(None, "Where to compute (by default Accelerate's choice).")


def evaluate(argv: Sequence[str]) -> int:
    """Measure a model's robustness and write a report."""
    from bmtard_hooks.distributed import processes
    from bmtard_hooks.evaluation.evaluator import evaluate_robustness
    from bmtard_hooks.reporting.outputs import write_report
    from bmtard_hooks.reporting.tables import robustness_table

    options, images = parse([EvaluateArguments, ImageArguments], argv, evaluate.__doc__, "bmtard evaluate")
    _require(options, "model", "output_dir")
    data = images.load()
    directory = Path(options.output_dir)
    report = evaluate_robustness(
        _model(options.model, options.checkpoint, data.num_classes),
        data,
        options.attacks,
        surrogate=_model(options.surrogate, options.surrogate_checkpoint, data.num_classes),
        model_name=options.name or _name(options.model),
        dataset_name=f"{_name(images.dataset)}, {images.split}",
        state_dir=directory / "state",
        device=options.device,
        eps=_number(options.eps),
        **{name: getattr(options, name) for name in ("norm", "mode", "batch_size", "seed", "clean_weight", "checks")},
        check_images=options.check_images,
    )
    if processes().is_main_process:
        written = write_report([report], directory)
        print(robustness_table([report]))
        print(f"\n{report.verdict}\nReport: {written['html']}")
    return 0


def report(argv: Sequence[str]) -> int:
    """Put reports side by side, and compare the first model with each of the others on the same images."""
    import argparse

    from bmtard_hooks.evaluation.comparison import compare
    from bmtard_hooks.reporting.outputs import write_report
    from bmtard_hooks.reporting.report_file import load_report
    from bmtard_hooks.reporting.tables import robustness_table

    parser = argparse.ArgumentParser(prog="bmtard report", description=report.__doc__)
    parser.add_argument("reports", nargs="+", help="report.json files, or the directories that hold them")
    parser.add_argument("--output_dir", required=True, help="directory for the table, the figures and the page")
    options = parser.parse_args(list(argv))
    paths = [Path(given) / "report.json" if Path(given).is_dir() else Path(given) for given in options.reports]
    loaded = [load_report(path) for path in paths]
    comparisons = {f"{loaded[0].model} and {other.model}": compare(loaded[0], other) for other in loaded[1:]}
    extra = {name: comparison.to_markdown() for name, comparison in comparisons.items()}
    written = write_report(loaded, options.output_dir, extra)
    print(robustness_table(loaded))
    for name, text in extra.items():
        print(f"\n{name}\n\n{text}")
    print(f"\nReport: {written['html']}")
    return 0


def preview(argv: Sequence[str]) -> int:
    """Show how much a pair of teachers knows (the paper's Table I) and at which temperatures they meet, without training."""
    from bmtard_hooks.distributed import processes
    from bmtard_hooks.evaluation.preview import preview_teachers
    from bmtard_hooks.models.teachers import as_teacher

    options, images = parse([PreviewArguments, ImageArguments], argv, preview.__doc__, "bmtard preview")
    _require(options, "clean_teacher", "robust_teacher")
    data = images.load()
    clean, robust = (
        as_teacher(_model(getattr(options, role), getattr(options, f"{role}_checkpoint"), data.num_classes))
        for role in ("clean_teacher", "robust_teacher")
    )
    shown = preview_teachers(
        clean,
        robust,
        data,
        temperatures=(options.clean_temperature, options.robust_temperature),
        device=options.device or processes().device,
    )
    print(shown.to_markdown())
    return 0


COMMANDS: dict[str, Callable[[Sequence[str]], int]] = {"evaluate": evaluate, "report": report, "preview": preview}


def main(argv: Sequence[str] | None = None) -> int:
    """Run a command.

    Args:
        argv: the command line without the program's name.

    Returns:
        0 if all went well, 2 for a mistake in the command line or the input, which is printed in one line.
    """
    arguments = list(sys.argv[1:] if argv is None else argv)
    if not arguments or arguments[0] in ("-h", "--help") or arguments[0] not in COMMANDS | {"--version": None}:
        unknown = bool(arguments) and arguments[0] not in ("-h", "--help")
        print(_usage(arguments[0] if unknown else None), file=sys.stderr if unknown else sys.stdout)
        return 2 if unknown else 0
    if arguments[0] == "--version":
        print(__version__)
        return 0
    logging.basicConfig(level=logging.WARNING, format="%(levelname)s: %(message)s")
    try:
        return COMMANDS[arguments[0]](arguments[1:])
    except (ValueError, OSError) as error:  # OSError: files, directories, and hubs that cannot be reached
        print(f"bmtard {arguments[0]}: {error}", file=sys.stderr)
        return 2


def _usage(unknown: str | None) -> str:
    lines = [f"bmtard: unknown command {unknown!r}", ""] if unknown else []
    lines += ["usage: bmtard COMMAND …   (bmtard COMMAND --help lists its options)", ""]
    lines += [f"  {name:<10} {(command.__doc__ or '').splitlines()[0]}" for name, command in COMMANDS.items()]
    return "\n".join(lines)


def _model(name: str | None, checkpoint: str | None, num_classes: int) -> Any:
    if name is None or checkpoint is None:
        return name
    from bmtard_hooks.models import load_teacher

    return load_teacher(name, checkpoint, num_classes=num_classes)


def _name(path: str) -> str:
    return Path(path).resolve().name if Path(path).is_dir() else path


def _number(text: str) -> float:
    from bmtard_hooks.attacks.choosing import read_number

    try:
        return read_number(text)
    except ValueError as error:
        raise ValueError(f"--eps {text}: pass a number such as 0.031 or a fraction such as 8/255") from error


def _require(options: Any, *names: str) -> None:
    missing = [f"--{name}" for name in names if not getattr(options, name)]
    if missing:
        raise ValueError(f"missing {', '.join(missing)}")


if __name__ == "__main__":
    sys.exit(main())
