"""Putting the parts of a run together from what a user passed."""

from __future__ import annotations

import copy
import logging
from collections.abc import Mapping, Sequence
from typing import Any

from torch import nn
from transformers import TrainerCallback, set_seed

from bmtard_hooks.collator import PGDCollator
from bmtard_hooks.config import BMTARDConfig
from bmtard_hooks.data import class_count
from bmtard_hooks.methods import Method
from bmtard_hooks.models.architectures import is_saved
from bmtard_hooks.models.create import as_student
from bmtard_hooks.models.pixels import PixelClassifier
from bmtard_hooks.models.precision import require_float32
from bmtard_hooks.models.teachers import as_teacher, naming_what_cannot_load

logger = logging.getLogger(__name__)

ARGUMENTS = ("clean", "robust")
"""Roles with an argument of the Trainer; others go into ``teachers``."""

ROLES = (*ARGUMENTS, "robust_l2")
"""Roles with an option on command lines."""


def choose_student(
    model: Any, args: BMTARDConfig, collator: Any, rows: Any, processor: Any
) -> tuple[PixelClassifier, Any]:
    """Build or wrap the student, and fill in the collator.

    Args:
        model: see ``as_student``.
        args: the run's options.
        collator: a ``PGDCollator``, a foreign collator, or None.
        rows: the training set, which tells a named student its class count.
        processor: image processor with the student's normalisation, or None.

    Returns:
        The student, and the collator to use: a filled copy of a ``PGDCollator``, a foreign one as it is.
    """
    if isinstance(model, str):
        set_seed(args.seed)  # a named student's first weights depend on the seed, as everything else does
    column = collator.label_column if isinstance(collator, PGDCollator) else None
    classes = class_count(rows, column)
    if isinstance(model, str) and classes is None and not is_saved(model):
        raise ValueError(
            f"train_dataset does not say how many classes {model!r} has to tell apart: name the column of its labels, "
            "PGDCollator(label_column=…), if that is a ClassLabel, or pass create_model(name, num_classes=…) as the student"
        )
    with naming_what_cannot_load("student", model):
        student = as_student(model, classes, processor)
    if collator is None or isinstance(collator, PGDCollator):
        collator = (collator or PGDCollator()).resolved(args, student.num_classes)
    return student, collator


def by_role(clean: Any, robust: Any, others: Any) -> dict[str, Any]:
    """Gather the teachers that a user passed under their roles.

    Args:
        clean: the clean teacher, or None.
        robust: the robust teacher, or None.
        others: role to teacher; may name these two instead.

    Raises:
        TypeError: if ``others`` does not say which teacher is which.
    """
    if others is not None and not isinstance(others, Mapping):
        raise TypeError(
            f"teachers is a {type(others).__name__}, which does not say who is who: pass a dictionary, "
            'teachers={"clean": …, "robust": …}, or clean_teacher=… and robust_teacher=…'
        )
    return {"clean": clean, "robust": robust, **(others or {})}


def require_teachers(method: Method, given: Mapping[str, Any]) -> None:
    """Refuse a run that lacks a teacher of its method.

    Args:
        method: the method.
        given: role to what the user passed, None for nothing.

    Raises:
        ValueError: naming the teachers that it needs, those that are missing, and how both Python and a command line name them.
    """
    needed = sorted(method.teachers)
    missing = [role for role in needed if given.get(role) is None]
    if not missing:
        return
    others = [repr(name) for name in given if name not in (*ROLES, *needed)]
    unknown = f" ({', '.join(others)} is none of them)" if others else ""
    extra = ", ".join(f'"{role}": …' for role in missing if role not in ARGUMENTS)
    words = [f"{role}_teacher=…" for role in missing if role in ARGUMENTS] + [f"teachers={{{extra}}}"] * bool(extra)
    options = " ".join(f"--{role}_teacher DIR" for role in missing if role in ROLES)
    count = {1: "one teacher", 2: "two teachers", 3: "three teachers"}.get(len(needed), f"{len(needed)} teachers")
    raise ValueError(
        f"method {method.name!r} needs {count}, {_listed(needed)}{unknown}; missing: {', '.join(missing)}. "
        f"Pass {_listed(words)}" + (f" ({options})" if options else "")
    )


def _listed(words: Sequence[str]) -> str:
    *others, last = words
    return f"{', '.join(others)} and {last}" if others else last


def choose_teachers(
    method: Method, student: PixelClassifier, given: Mapping[str, str | nn.Module | None]
) -> dict[str, PixelClassifier]:
    """Load and freeze the teachers that a method needs.

    Args:
        method: the method.
        student: the student.
        given: role to what the user passed.

    Returns:
        Role to frozen teacher, in the method's order.

    Raises:
        ValueError: if one is missing, cannot be loaded, shares weights with the student, or is to be trained in half precision.
        TypeError: if one is neither a module nor a name.
    """
    require_teachers(method, given)
    unused = [name for name, teacher in given.items() if teacher is not None and name not in method.teachers]
    if unused:
        logger.warning("method %r does not use the %s teacher", method.name, " and ".join(unused))
    chosen = {name: given[name] for name in method.teachers}
    own = {id(weights) for weights in student.parameters()}
    for name, teacher in chosen.items():
        if not isinstance(teacher, (str, nn.Module)):
            raise TypeError(
                f"the {name} teacher is {teacher!r:.60}, a {type(teacher).__name__}: pass a torch.nn.Module from pixels to "
                "logits, load_teacher(…), or the name of a directory or a hub id as a string"
            )
        shared = 0 if isinstance(teacher, str) else sum(id(weights) in own for weights in teacher.parameters())
        if shared:
            raise ValueError(
                f"the {name} teacher and the student are the same object, or share {shared} tensors of weights: training would change "
                "the teacher. Pass copy.deepcopy(…) of one"
            )
    roles = {}
    for name, teacher in chosen.items():
        with naming_what_cannot_load(f"{name} teacher", teacher):
            roles[name] = as_teacher(teacher)  # type: ignore[arg-type]
    for name in method.trained_teachers:
        roles[name] = copy.deepcopy(roles[name]).requires_grad_(True)  # what the user passed stays as it is
        require_float32(f"{name} teacher, which is trained too,", roles[name])
        roles[name].frozen = False
    return roles


def with_method_callbacks(own: list[Any], users: list[Any] | None) -> list[Any]:
    """Join a method's callbacks with a user's, which replace those of their class or of a class they inherit from."""
    users = list(users or [])
    for callback in users:
        kind = callback if isinstance(callback, type) else type(callback)
        if not issubclass(kind, TrainerCallback):
            raise TypeError(
                f"callbacks has {callback!r:.60}, a {kind.__name__}: pass objects or classes of transformers.TrainerCallback"
            )
    given = tuple(callback if isinstance(callback, type) else type(callback) for callback in users)
    return users + [callback for callback in own if not any(issubclass(kind, type(callback)) for kind in given)]
