"""Everything about a comparison that can be known, and be known to be wrong, before the first training."""

from __future__ import annotations

import contextlib
import io
import os
from collections.abc import Sequence
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any

from transformers import set_seed

from bmtard_hooks.arguments import DataArguments, parse
from bmtard_hooks.attacks.choosing import AttackPlan, choose_attacks
from bmtard_hooks.compare.arguments import DEFAULTS, CompareArguments
from bmtard_hooks.compare.identity import fingerprint_classifier, fingerprint_images, run_identity
from bmtard_hooks.compare.rows import Row, read_rows
from bmtard_hooks.config import BMTARDConfig
from bmtard_hooks.distil import ModelArguments
from bmtard_hooks.evaluation_checks import require_metric
from bmtard_hooks.image_tensors import ImageTensors
from bmtard_hooks.methods import make_method
from bmtard_hooks.models import PixelClassifier
from bmtard_hooks.models.teachers import try_classifier

TYPES = (CompareArguments, ModelArguments, DataArguments, BMTARDConfig)
TEACHER = " teacher"


@dataclass
class Run:
    """One model of the table: a row trained with one seed, or a teacher, which is only measured.

    Args:
        row: its row; a teacher's is named after its role.
        seed: of the training; None for a teacher.
        directory: where its checkpoints, model, record and report are.
        config: its options; those of all rows for a teacher.
        models: names of its networks.
        identity: see ``run_identity``.
    """

    row: Row
    seed: int | None
    directory: Path
    config: BMTARDConfig
    models: ModelArguments
    identity: dict[str, Any]

    @property
    def role(self) -> str | None:
        """The teacher's role; None for a student."""
        return self.row.method.removesuffix(TEACHER) if self.seed is None else None

    @property
    def name(self) -> str:
        """What it is called: ``LABEL/seedN``, as for ``--only``, or the label of a teacher."""
        return self.row.label if self.seed is None else f"{self.row.label}/seed{self.seed}"


@dataclass
class Plan:
    """A comparison, checked.

    Args:
        arguments: see ``CompareArguments``.
        models: names of student and teachers.
        config: the options that all rows share; its method and seed have no meaning.
        rows: teachers, if they were asked for, then the methods.
        runs: of all rows and seeds, in the order of work: every row with the first seed, then with the second …
        train: images to train on.
        validation: training images held out to choose checkpoints.
        test: images of the table.
        test_name: name of data set and split of the table.
        test_images: fingerprint of the test images.
        teachers: frozen, by role.
        fingerprints: of the teachers, by role.
        attacks: of the table.
        argv: the command line.
    """

    arguments: CompareArguments
    models: ModelArguments
    config: BMTARDConfig
    rows: list[Row]
    runs: list[Run]
    train: ImageTensors
    validation: ImageTensors
    test: ImageTensors
    test_name: str
    test_images: str
    teachers: dict[str, PixelClassifier]
    fingerprints: dict[str, str]
    attacks: AttackPlan
    argv: list[str]

    @property
    def directory(self) -> Path:
        """Where everything is written."""
        return Path(str(self.config.output_dir))

    def of(self, row: Row) -> list[Run]:
        """List a row's runs in the order of the seeds."""
        return [run for run in self.runs if run.row == row]

    @property
    def chosen(self) -> list[Run]:
        """The runs to work on: all, or those of ``--only``."""
        only = self.arguments.only
        return [run for run in self.runs if only is None or run.name in only]

    def needed_teachers(self, run: Run) -> dict[str, PixelClassifier]:
        """Choose the teachers that a run's method uses."""
        return {role: self.teachers[role] for role in make_method(run.config).teachers}

    def first_student(self, run: Run) -> PixelClassifier:
        """Create a run's student with the first weights that belong to its seed, the same for every method."""
        set_seed(run.config.seed)
        return run.models.create_student(self.train)

    @property
    def evaluation_ball(self) -> dict[str, Any]:
        """Norm and radius of the attacks of the table: those of all rows, whatever a row trains with."""
        config = self.config
        return {"norm": config.norm, "eps": config.eps if config.eval_attack_eps is None else config.eval_attack_eps}

    def evaluation_key(self, weights: str) -> dict[str, Any]:
        """Describe everything that a run's report depends on, as plain JSON values.

        Args:
            weights: fingerprint of the measured model.
        """
        return {
            "weights": weights,
            "images": self.test_images,
            "columns": self.attacks.columns,
            "attacks": {name: attack.settings() for name, attack in self.attacks.attacks.items()},
            "surrogate": self.fingerprints.get("robust"),
            "clean_weight": self.config.w_robust_clean_weight,
            "checks": self.arguments.checks,
        }


def make_plan(argv: Sequence[str], description: str | None = None) -> Plan:
    """Read a command line and check every row: options, methods, teachers, networks, data and attacks.

    Args:
        argv: the command line without the program's name.
        description: for ``--help``.

    Raises:
        ValueError: for anything that would make a run fail later; nothing is written.
    """
    if int(os.environ.get("WORLD_SIZE", "1")) > 1:
        raise ValueError(
            "a comparison starts its own processes, one per GPU: start it with python, not with accelerate launch or torchrun"
        )
    arguments, models, data, config = parse(TYPES, argv, description, defaults=DEFAULTS)
    _refuse_single(config)
    rows = read_rows(arguments.methods)
    words = [*argv, "--load_best_model_at_end", str(arguments.choose == "best")]
    root = Path(str(config.output_dir)).resolve() / "runs"
    runs = [_read_run(words, row, seed, root) for seed in arguments.seeds for row in rows]
    _require_teachers(models, runs)
    train, validation, test = data.load()
    teachers = models.load_teachers(train.num_classes)
    plan = Plan(
        arguments=arguments,
        models=models,
        config=config,
        rows=rows,
        runs=runs,
        train=train,
        validation=validation,
        test=test,
        test_name=f"{Path(data.dataset).resolve().name}, {test.split_name or data.test_split}",
        test_images=fingerprint_images(test),
        teachers=teachers,
        fingerprints={role: fingerprint_classifier(teacher) for role, teacher in teachers.items()},
        attacks=AttackPlan(),
        argv=list(argv),
    )
    plan.attacks = choose_attacks(arguments.attacks, surrogate=teachers.get("robust"), **plan.evaluation_ball)
    _identify(plan)
    if arguments.with_teachers:
        _add_teachers(plan)
    _require_known(arguments.only, plan)
    return plan


def _refuse_single(config: BMTARDConfig) -> None:
    defaults = {entry.name: entry.default for entry in fields(BMTARDConfig)}
    for name, instead in (("seed", "--seeds"), ("method", "--methods")):
        if getattr(config, name) != defaults[name]:
            raise ValueError(f"{name}={getattr(config, name)!r} is for a single run: pass {instead} instead")


def _read_run(argv: Sequence[str], row: Row, seed: int, root: Path) -> Run:
    directory = root / row.folder / f"seed{seed}"
    words = [*argv, *row.words(), "--seed", str(seed), "--output_dir", str(directory)]
    messages = io.StringIO()
    try:
        with contextlib.redirect_stderr(messages):
            _, models, _, config = parse(TYPES, words, defaults=DEFAULTS)
            make_method(config)
            require_metric(config)
    except SystemExit:
        raise ValueError(f"row {row.label!r}: {messages.getvalue().strip().splitlines()[-1]}") from None
    except ValueError as error:
        raise ValueError(f"row {row.label!r}: {error}") from error
    return Run(row, seed, directory, config, models, {})


def _require_teachers(models: ModelArguments, runs: Sequence[Run]) -> None:
    missing: dict[str, list[str]] = {}
    for run in runs:
        for role in make_method(run.config).teachers:
            labels = missing.setdefault(role, [])
            if getattr(models, f"{role}_teacher", None) is None and run.row.label not in labels:
                labels.append(run.row.label)
    wanted = [f"--{role}_teacher for {', '.join(labels)}" for role, labels in missing.items() if labels]
    if wanted:
        raise ValueError(f"teachers are missing: pass {'; '.join(wanted)}")


def _identify(plan: Plan) -> None:
    images = {"train": fingerprint_images(plan.train), "validation": fingerprint_images(plan.validation)}
    pixels = plan.train.pixels(slice(0, 2))
    for role, teacher in plan.teachers.items():
        try_classifier(f"{role}{TEACHER}", teacher, pixels)
    for run in plan.runs:
        try:
            first = plan.first_student(run)
            try_classifier("student", first, pixels)
        except (ValueError, OSError) as error:
            raise ValueError(f"row {run.row.label!r}: {error}") from error
        used = {role: plan.fingerprints[role] for role in plan.needed_teachers(run)}
        run.identity = run_identity(run.config, (run.models.student, first), used, images)


def _add_teachers(plan: Plan) -> None:
    rows = [Row(f"{role}{TEACHER}", f"{role}{TEACHER}") for role in plan.teachers]
    runs = []
    for row, (role, fingerprint) in zip(rows, plan.fingerprints.items(), strict=True):
        directory = plan.directory.resolve() / "teachers" / role
        runs.append(Run(row, None, directory, plan.config, plan.models, {"teacher": fingerprint}))
    plan.rows, plan.runs = [*rows, *plan.rows], [*runs, *plan.runs]


def _require_known(only: Sequence[str] | None, plan: Plan) -> None:
    names = [run.name for run in plan.runs]
    unknown = [name for name in only or [] if name not in names]
    if unknown:
        raise ValueError(f"--only {' '.join(unknown)}: the runs are {', '.join(names)}")
