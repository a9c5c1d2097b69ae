"""The command `bmtard evaluate`."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

from bmtard_hooks.arguments import option, parse
from bmtard_hooks.commands.inputs import ImageArguments, model_of, name_of, require, require_device, require_weights
from bmtard_hooks.distributed import processes
from bmtard_hooks.evaluation.evaluator import evaluate_robustness
from bmtard_hooks.option_checks import require_directory
from bmtard_hooks.reporting.outputs import write_report
from bmtard_hooks.reporting.tables import robustness_table


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
    eps: float = option(8 / 255, "Radius in pixel scale.")
    norm: str = option("linf", "linf or l2.")
    mode: str = option("columns", "columns (the paper's tables) or worst_case (survivors only, faster).")
    batch_size: int = option(256, "Images at a time; changes speed, not results.")
    seed: int = option(0, "Seed of the attacks.")
    clean_weight: float = option(0.5, "Weight of clean accuracy in W-Robust.")
    checks: bool = option(True, "Run the checks against false robustness.")
    check_images: int = option(200, "Images for the checks that need attacks of their own.")
    device: str | None = option(None, "Where to compute (by default Accelerate's choice).")


def evaluate(argv: Sequence[str]) -> str:
    """Measure a model's robustness and write a report."""
    options, images = parse([EvaluateArguments, ImageArguments], argv, evaluate.__doc__, "bmtard evaluate")
    require(options, "model", "output_dir")
    require_directory("--output_dir", options.output_dir)
    require_device(options.device)
    require_weights("--model", options.model, options.checkpoint)
    if options.surrogate is not None:
        require_weights("--surrogate", options.surrogate, options.surrogate_checkpoint)
    data = images.load()
    directory = Path(options.output_dir)
    surrogate = options.surrogate
    if surrogate is not None:
        surrogate = model_of(surrogate, options.surrogate_checkpoint, data.num_classes)
    report = evaluate_robustness(
        model_of(options.model, options.checkpoint, data.num_classes),
        data,
        options.attacks,
        surrogate=surrogate,
        model_name=options.name or name_of(options.model),
        dataset_name=f"{name_of(images.dataset)}, {images.split}",
        state_dir=directory / "state",
        device=options.device,
        **{
            name: getattr(options, name)
            for name in ("eps", "norm", "mode", "batch_size", "seed", "clean_weight", "checks")
        },
        check_images=options.check_images,
    )
    if not processes().is_main_process:
        return ""
    written = write_report([report], directory)
    return f"{robustness_table([report])}\n\n{report.verdict}\nReport: {written['html']}"
