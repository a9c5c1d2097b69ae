"""Every method, with what its authors' code does in one step."""

import itertools
from collections import Counter
from typing import NamedTuple

from conftest import sharp_net
from torch import nn
from transformers import TrainerCallback


class Case(NamedTuple):
    """A method with options.

    Args:
        options: of the config.
        moves: how often a step with 10 attack steps moves the student's BatchNorm statistics.
        asked: how often it asks each teacher.
    """

    options: dict
    moves: int
    asked: dict


def case(method, moves, robust=0, clean=0, robust_l2=0, **options):
    asked = {"robust": robust, "clean": clean, "robust_l2": robust_l2}
    return Case({"method": method, **options}, moves, {name: count for name, count in asked.items() if count})


CASES = {
    "natural": case("natural", 1),
    "sat": case("sat", 1),
    "sat, training mode": case("sat", 11, attack_train_mode=True),
    "trades": case("trades", 3),
    "score": case("score", 2),
    "ard": case("ard", 12, robust=1),
    "fair_ard": case("fair_ard", 12, robust=1),
    "rslad": case("rslad", 2, robust=1),
    "absld": case("absld", 2, robust=1),
    "iad 1, before": case("iad", 13, robust=1, iad_begin=1.0),
    "iad 1, after": case("iad", 14, robust=2, iad_begin=0.0),
    "iad 2, before": case("iad", 11, robust=1, clean=1, iad_variant=2, iad_begin=1.0),
    "iad 2, after": case("iad", 12, robust=1, clean=1, iad_variant=2, iad_begin=0.0),
    "baseline": case("baseline", 2, robust=1, clean=1),
    "mtard": case("mtard", 2, robust=1, clean=1),
    "bmtard": case("bmtard", 2, robust=1, clean=1),
    "lmtn": case("lmtn", 2, robust=2, clean=2),
    "lmtn, clean input": case("lmtn", 2, robust=1, clean=1, lmtn_teacher_input="clean"),
    "bmtard_union": case("bmtard_union", 3, robust=1, clean=1, robust_l2=1),
    "adaad": case("adaad", 2, robust=11),  # in every step of the attack, and once on its end
    "adaad, no clean forward": case("adaad", 1, robust=11, adaad_clean_forward=False),
    "adaad, alpha 0.5": case("adaad", 2, robust=12, adaad_alpha=0.5),
    "adaiad, before": case("adaiad", 3, robust=11, iad_begin=1.0),
    "adaiad, after": case("adaiad", 4, robust=11, iad_begin=0.0),
    "saad": case("saad", 3, robust=3, weight_averaging="none"),
    "saad-c": case("saad", 3, robust=4, saad_clean_weight=1.0, weight_averaging="none"),
    "ciard": case("ciard", 2, robust=2, clean=2),
    "ciard, weighted": case("ciard", 2, robust=2, clean=2, ciard_weighted=True),
    "igdm on bmtard": case("bmtard", 3, robust=2, clean=1, igdm_weight=1.0),
    "igdm on rslad": case("rslad", 3, robust=3, igdm_weight=1.0),
    "igdm on adaad": case("adaad", 2, robust=12, igdm_weight=1.0, adaad_clean_forward=False),
    "awp on trades": case("trades", 3, awp_gamma=0.05),
    "awp on bmtard": case("bmtard", 2, robust=1, clean=1, awp_gamma=0.05),
}

ASKED = Counter()
"""Name of a ``Counted`` network to the number of its forwards."""


class Counted(nn.Module):
    """A teacher that counts how often it is asked, and its copies with it."""

    num_classes = 4

    def __init__(self, name, seed, scale=4.0):
        super().__init__()
        self.name, self.net = name, sharp_net(seed, scale, batch_norm=True)

    def forward(self, pixel_values):
        ASKED[self.name] += 1
        return self.net(pixel_values)


def counted_teachers():
    ASKED.clear()
    return {"clean": Counted("clean", 1, 8.0), "robust": Counted("robust", 2), "robust_l2": Counted("robust_l2", 3)}


class Moves(TrainerCallback):
    """Counts how often each step moves BatchNorm's statistics."""

    def __init__(self):
        self.counts = [0]

    def on_step_end(self, args, state, control, model=None, **kwargs):
        self.counts.append(model.norm.num_batches_tracked.item())

    @property
    def by_step(self):
        return [now - before for before, now in itertools.pairwise(self.counts)]


def plain_collator(rows):
    """A collator that knows nothing of attacks."""
    from bmtard_hooks import PGDCollator

    return PGDCollator()(rows)


def everything(trainer):
    """Collect all that a run leaves behind, as tensors and numbers by name."""
    callbacks = trainer.distillation_callbacks()
    found = {f"student.{name}": value for name, value in trainer.model.state_dict().items()}
    for role, teacher in trainer.teachers.items():
        found |= {f"{role}.{name}": value for name, value in teacher.state_dict().items()}
    for index, callback in enumerate(callbacks):
        found |= {f"{index}.{name}": value for name, value in callback.tensors().items()}
    momenta = trainer.optimizer.state_dict()["state"].values()
    found |= {f"momentum {index}": value["momentum_buffer"] for index, value in enumerate(momenta)}
    return found, {"state": trainer.distillation.state_dict(), "callbacks": [c.state_dict() for c in callbacks]}
