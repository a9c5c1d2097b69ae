"""The command `bmtard preview`."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from bmtard_hooks.arguments import option, parse
from bmtard_hooks.assembly import naming_what_cannot_load
from bmtard_hooks.commands.inputs import ImageArguments, model_of, require, require_device
from bmtard_hooks.distributed import processes
from bmtard_hooks.evaluation.preview import preview_teachers
from bmtard_hooks.models.teachers import as_teacher


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


def preview(argv: Sequence[str]) -> str:
    """Show how much a pair of teachers knows (the paper's Table I) and at which temperatures they meet, without training."""
    options, images = parse([PreviewArguments, ImageArguments], argv, preview.__doc__, "bmtard preview")
    require(options, "clean_teacher", "robust_teacher")
    require_device(options.device)
    data = images.load()
    named = [
        (options.clean_teacher, options.clean_teacher_checkpoint),
        (options.robust_teacher, options.robust_teacher_checkpoint),
    ]
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
        device=options.device or processes().device,
    )
    return shown.to_markdown()
