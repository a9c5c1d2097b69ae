"""The command `bmtard preview`."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from bmtard_hooks.arguments import option, parse
from bmtard_hooks.attacks.pgd import PGDSettings
from bmtard_hooks.commands.inputs import ImageArguments, model_of, require, require_device, require_weights
from bmtard_hooks.distributed import processes
from bmtard_hooks.evaluation.preview import preview_teachers
from bmtard_hooks.models.teachers import as_teacher, naming_what_cannot_load


@dataclass
class PreviewArguments:
    """Which teachers `bmtard preview` looks at."""

    clean_teacher: str = option("", "Directory, hub id, or timm architecture with its checkpoint below.")
    clean_teacher_checkpoint: str | None = option(None, "File with the weights.")
    robust_teacher: str = option("", "The same for the robust teacher.")
    robust_teacher_checkpoint: str | None = option(None, "The same.")
    clean_temperature: float = option(1.0, "Clean teacher's temperature at the start.")
    robust_temperature: float = option(1.0, "Robust teacher's temperature at the start.")
    min_temperature: float = option(1.0, "Lower bound of the temperatures.")
    max_temperature: float = option(10.0, "Upper bound of the temperatures.")
    temperature_rate: float = option(0.001, "Step of a temperature, as in the training.")
    eps: float = option(8 / 255, "Radius of the training attack in pixel scale.")
    step_size: float = option(2 / 255, "Step of the training attack.")
    steps: int = option(10, "Steps of the training attack.")
    norm: str = option("linf", "Norm of the training attack: linf or l2.")
    device: str | None = option(None, "Where to compute (by default Accelerate's choice).")


def preview(argv: Sequence[str]) -> str:
    """Show how much a pair of teachers knows (the paper's Table I) and at which temperatures they meet, without training."""
    options, images = parse([PreviewArguments, ImageArguments], argv, preview.__doc__, "bmtard preview")
    require(options, "clean_teacher", "robust_teacher")
    require_device(options.device)
    attack = PGDSettings(**{name: getattr(options, name) for name in ("eps", "step_size", "steps", "norm")})
    named = [
        (options.clean_teacher, options.clean_teacher_checkpoint),
        (options.robust_teacher, options.robust_teacher_checkpoint),
    ]
    for role, (name, checkpoint) in zip(("clean", "robust"), named, strict=True):
        require_weights(f"--{role}_teacher", name, checkpoint)
    data = images.load()
    teachers = []
    for role, (name, checkpoint) in zip(("clean", "robust"), named, strict=True):
        with naming_what_cannot_load(f"{role} teacher", name):
            teachers.append(as_teacher(model_of(name, checkpoint, data.num_classes)))
    clean, robust = teachers
    shown = preview_teachers(
        clean,
        robust,
        data,
        temperatures=(options.clean_temperature, options.robust_temperature),
        attack=attack,
        min_temperature=options.min_temperature,
        max_temperature=options.max_temperature,
        rate=options.temperature_rate,
        device=options.device or processes().device,
    )
    return shown.to_markdown()
