"""Measure a classifier's robustness: every attack asked for, the checks on the result, and a report."""

from __future__ import annotations

import logging
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from bmtard_hooks.attacks.choosing import AttackPlan, choose_attacks
from bmtard_hooks.class_names import names_of_model, require_same_order
from bmtard_hooks.distributed import processes
from bmtard_hooks.evaluation.checks import PASSES_PER_IMAGE, run_checks
from bmtard_hooks.evaluation.environment import describe_environment
from bmtard_hooks.evaluation.examples import make_examples
from bmtard_hooks.evaluation.preflight import inspect_answers, load_classifier, place_classifier
from bmtard_hooks.evaluation.progress import EvaluationProgress
from bmtard_hooks.evaluation.report import WORST_CASE, RobustnessReport
from bmtard_hooks.evaluation.runner import AttackRunner
from bmtard_hooks.evaluation.settings import EvaluationSettings, make_settings
from bmtard_hooks.first_rows import absent_classes
from bmtard_hooks.image_tensors import ImageTensors, as_image_tensors
from bmtard_hooks.models.create import channels_of
from bmtard_hooks.models.folding import FoldedClassifier
from bmtard_hooks.models.pixels import PixelClassifier

logger = logging.getLogger(__name__)

CHECKS = "checks"


def evaluate_robustness(
    model: str | nn.Module | Callable[[Tensor], Tensor],
    dataset: Any,
    attacks: Any = "paper",
    *,
    surrogate: str | nn.Module | None = None,
    image_column: str | None = None,
    label_column: str | None = None,
    image_size: int | None = None,
    model_name: str | None = None,
    dataset_name: str = "",
    state_dir: str | Path | None = None,
    progress: bool = True,
    device: torch.device | str | None = None,
    **settings: Any,
) -> RobustnessReport:
    """Measure clean accuracy, robust accuracy and W-Robust under attacks, and check that the result can be believed.

    Start it with ``accelerate launch`` to share the images among processes. Random numbers belong to the image, so neither
    the batch size nor the number of processes changes the result.

    Args:
        model: any module or function from pixels in [0, 1] to logits, a transformers image classifier, a timm model, or a
            name as ``create_model`` takes. Evaluated in eval mode and float32; its modes are restored, it stays on the device.
        dataset: ``ImageTensors``, a ``datasets.Dataset``, a sequence of ``(image, label)``, or two tensors ``(x_test, y_test)``.
        attacks: see ``choose_attacks``.
        surrogate: model for the transfer attacks, in the same forms; in the paper the robust teacher.
        image_column: name of the image column; usual names are found.
        label_column: name of the label column; usual names are found.
        image_size: scale PIL images to squares of this side.
        model_name: its name in the report.
        dataset_name: likewise.
        state_dir: keeps outcomes while running; the same call with the same directory goes on after a kill.
        progress: show a progress bar.
        device: where to compute; by default Accelerate's choice.
        **settings: see ``EvaluationSettings``.

    Returns:
        The report; the same on every process.

    Raises:
        ValueError: for bad settings, an unknown attack, an empty or unlabelled data set, pixels outside [0, 1], or a model
            that cannot take the images, before anything is computed.
        TypeError: for a ``DataLoader``, a dictionary of splits, or a name of a data set.
        NonFiniteLogits: if the model answers NaN or infinity; what was computed so far stays in ``state_dir``.
    """
    began = time.time()
    chosen = make_settings(settings)
    where = _device(device)
    classifier, name, warnings = load_classifier("model", model)
    columns: dict[str, Any] = {"image_column": image_column, "label_column": label_column, "image_size": image_size}
    data = as_image_tensors(dataset, mode="L" if channels_of(classifier) == 1 else "RGB", **columns)
    plan = _fitting_plan(classifier, data, attacks, surrogate, where, chosen)
    forward = (
        FoldedClassifier.checked(classifier, data.pixels(slice(0, 8)).to(where)) if chosen.fold_batch_norm else None
    )
    runner = AttackRunner(
        classifier,
        data,
        seed=chosen.seed,
        batch_size=chosen.batch_size,
        forward=forward,
        state_dir=state_dir,
        device=where,
    )
    report = _empty_report(runner, chosen, model_name or name, dataset_name)
    report.warnings = [*warnings, *inspect_answers(runner), *plan.warnings, *_inspect_check_images(runner, chosen)]
    for warning in report.warnings:
        logger.warning(warning)
    _measure(runner, plan, report, chosen, progress)
    report.environment = describe_environment(runner, report, chosen, plan, began)
    return report


def _inspect_check_images(runner: AttackRunner, chosen: EvaluationSettings) -> list[str]:
    first = runner.labels[: chosen.check_images].tolist()
    missing = (
        absent_classes(first, runner.data.num_classes) if chosen.checks and len(first) < len(runner.labels) else None
    )
    return [] if missing is None else [f"{missing}, and the checks look at these alone: shuffle the data set"]


def check_evaluation(
    model: nn.Module,
    data: ImageTensors,
    attacks: Any,
    *,
    surrogate: str | nn.Module | None = None,
    device: torch.device | str | None = None,
    **settings: Any,
) -> None:
    """Refuse at once what ``evaluate_robustness`` with the same arguments would refuse before its first attack.

    Raises:
        ValueError: as ``evaluate_robustness`` does.
    """
    classifier, _, _ = load_classifier("model", model)
    _fitting_plan(classifier, data, attacks, surrogate, _device(device), make_settings(settings))


def _fitting_plan(
    classifier: PixelClassifier,
    data: ImageTensors,
    attacks: Any,
    surrogate: Any,
    where: torch.device,
    chosen: EvaluationSettings,
) -> AttackPlan:
    require_same_order("model", names_of_model(classifier), "the data set", data.label_names)
    place_classifier("model", classifier, data, where)
    if surrogate is None:
        return choose_attacks(attacks, eps=chosen.eps, norm=chosen.norm)
    other, name, _ = load_classifier("surrogate", surrogate)
    require_same_order("surrogate", names_of_model(other), "the data set", data.label_names)
    place_classifier("surrogate", other, data, where)
    return choose_attacks(attacks, eps=chosen.eps, norm=chosen.norm, surrogate=other, surrogate_name=name)


def _empty_report(runner: AttackRunner, chosen: EvaluationSettings, model: str, dataset: str) -> RobustnessReport:
    return RobustnessReport(
        model=model,
        dataset=dataset,
        labels=runner.labels,
        predictions=runner.predictions,
        num_classes=runner.num_classes,
        label_names=runner.data.label_names,
        outcomes={},
        columns={},
        mode=chosen.mode,
        clean_weight=chosen.clean_weight,
    )


def _device(given: torch.device | str | None) -> torch.device:
    if given is None:
        return torch.device(processes().device)
    try:
        return torch.device(given)
    except RuntimeError as error:
        raise ValueError(f"device={given!r} is unknown: pass cpu, cuda or cuda:0") from error


def _measure(
    runner: AttackRunner, plan: AttackPlan, report: RobustnessReport, chosen: EvaluationSettings, progress: bool
) -> None:
    shown = progress and runner.processes.is_main_process
    runner.listener = EvaluationProgress(_budget(runner, plan, chosen), CHECKS, disable=not shown)
    try:
        (run_columns if chosen.mode == "columns" else run_worst_case)(runner, plan, report)
        if chosen.checks:
            report.checks, report.sweeps = run_checks(
                runner, report, images=chosen.check_images, eps=chosen.eps, norm=chosen.norm
            )
        report.examples = make_examples(runner, plan, report, chosen.examples)
    finally:
        runner.listener.close()


def run_columns(runner: AttackRunner, plan: AttackPlan, report: RobustnessReport) -> None:
    """Run every column on all clean-correct images; within a union each attack sees what the earlier ones left."""
    for column, parts in plan.columns.items():
        alive = runner.correct.copy()
        for part in parts:
            alive = _attack(runner, plan, report, part, alive)
        report.columns[column] = list(parts)
    together = comparable_attacks(plan, len(runner.labels))
    if len(together) > 1:
        report.columns[WORST_CASE] = together
        report.warnings += _left_out(plan, together, "not part of the worst case, which")


def run_worst_case(runner: AttackRunner, plan: AttackPlan, report: RobustnessReport) -> None:
    """Run the attacks from the cheapest to the dearest, each on what the earlier ones left."""
    together = comparable_attacks(plan, len(runner.labels))
    report.warnings += _left_out(plan, together, "not run: the worst case")
    alive = runner.correct.copy()
    for name in sorted(together, key=lambda name: plan.attacks[name].passes(runner.num_classes)):
        alive = _attack(runner, plan, report, name, alive)
        report.columns.setdefault(WORST_CASE, []).append(name)


def _left_out(plan: AttackPlan, together: list[str], what: str) -> list[str]:
    names = [name for name in plan.attacks if name not in together]
    return (
        [f"{', '.join(names)} {what} is that of attacks with one norm and radius on the same images"] if names else []
    )


def comparable_attacks(plan: AttackPlan, images: int) -> list[str]:
    """Choose the attacks that can be summed up in one worst case.

    They have the norm and radius that were asked for, or else those of the most columns, and of these the ones on the most
    images: an image is not robust because an attack was not meant for it.

    Args:
        plan: the attacks.
        images: number of images of the data set.
    """
    first = [plan.attacks[parts[0]] for parts in plan.columns.values()]
    balls = [(attack.norm, attack.eps) for attack in first]
    ball = plan.ball if plan.ball in balls else max(balls, key=balls.count)
    scopes = {
        name: min(attack.images or images, images)
        for name, attack in plan.attacks.items()
        if (attack.norm, attack.eps) == ball
    }
    return [name for name, scope in scopes.items() if scope == max(scopes.values())]


def _attack(
    runner: AttackRunner, plan: AttackPlan, report: RobustnessReport, name: str, alive: np.ndarray
) -> np.ndarray:
    attack = plan.attacks[name]
    scope = slice(0, attack.images)  # all if None
    outcome = runner.run(attack, name, np.arange(len(alive))[scope][alive[scope]])
    if name not in report.outcomes:
        report.warnings += [f"{name}: {note}" for note in outcome.notes]
    report.outcomes[name] = outcome
    return alive & ~outcome.broken


def _budget(runner: AttackRunner, plan: AttackPlan, chosen: EvaluationSettings) -> dict[str, int]:
    """Estimate the passes of every attack on this process; about half of the images survive to an attack of a union."""
    share = runner.correct.sum() / runner.processes.num_processes
    first = {parts[0] for parts in plan.columns.values()} if chosen.mode == "columns" else set()
    budget = {
        name: int(
            min(share, attack.images or share) * attack.passes(runner.num_classes) * (1 if name in first else 0.5)
        )
        for name, attack in plan.attacks.items()
    }
    if chosen.checks:
        images = runner.correct[: chosen.check_images].sum() / runner.processes.num_processes
        budget[CHECKS] = int(images * PASSES_PER_IMAGE)
    return budget
