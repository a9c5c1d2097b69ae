"""What a method is: an inner attack, named loss parts, and the callbacks that move their weights."""

from __future__ import annotations

import difflib
from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, ClassVar, TypeVar

from torch import Tensor

from bmtard_hooks.attacks.losses import Objective, cross_entropy
from bmtard_hooks.callbacks.base import DistillationCallback
from bmtard_hooks.state import DistillationState

if TYPE_CHECKING:
    from bmtard_hooks.config import BMTARDConfig

Classifier = Callable[[Tensor], Tensor]
"""Maps pixels ``(B, C, H, W)`` in [0, 1] to logits ``(B, K)``."""

Batch = Mapping[str, Tensor]
"""``pixel_values`` and ``adv_pixel_values`` ``(B, C, H, W)`` in [0, 1], ``labels`` ``(B,)``."""


@dataclass
class LossOutput:
    """What a method computed on one micro-batch.

    Args:
        parts: name to 0-dim loss, each reduced as the method's docstring says.
        entropies: teacher name to the 0-dim mean entropy of its softened prediction in nats, for the balance and the log.
    """

    parts: dict[str, Tensor]
    entropies: dict[str, Tensor] = field(default_factory=dict)


class Method(ABC):
    """A way to train a student. One subclass per file; ``register`` gives it its name.

    Args:
        config: the run's options.
    """

    name: ClassVar[str]
    attack: ClassVar[Mapping[str, object] | None] = {}
    """Changes to B-MTARD's PGD settings for the inner loop; None for a method without adversarial images."""

    def __init__(self, config: BMTARDConfig) -> None:
        self.config = config

    @property
    def teachers(self) -> tuple[str, ...]:
        """Names of the teachers the method needs."""
        return ()

    @property
    @abstractmethod
    def weights(self) -> dict[str, float]:
        """Loss part name to its weight at the first step."""

    @abstractmethod
    def loss_parts(
        self, student: Classifier, teachers: Mapping[str, Classifier], batch: Batch, state: DistillationState
    ) -> LossOutput:
        """Compute the named losses of one micro-batch.

        Args:
            student: in train mode, every call is one forward with gradient.
            teachers: frozen, called without gradient, logits in float32.
            batch: the clean and the adversarial images and the labels.
            state: temperatures and weights of this step, to be read only.
        """

    def attack_objective(self, student: Classifier, teachers: Mapping[str, Classifier], batch: Batch) -> Objective:
        """Say what the inner attack makes larger; the default is the student's cross-entropy (Eq. 4).

        Called once per attack, with the student in the attack's mode.
        """
        return cross_entropy(batch["labels"])

    def temperatures(self) -> dict[str, float]:
        """Teacher name to its temperature at the first step."""
        return {}

    def callbacks(self) -> list[DistillationCallback]:
        """Make the callbacks the method consists of; leaving one out is an ablation."""
        return []


_METHODS: dict[str, type[Method]] = {}
MethodType = TypeVar("MethodType", bound=type[Method])


def register(name: str) -> Callable[[MethodType], MethodType]:
    """Give a method its name in configs and on the command line."""

    def decorate(cls: MethodType) -> MethodType:
        cls.name = name
        _METHODS[name] = cls
        return cls

    return decorate


def method_names() -> list[str]:
    """List the registered methods."""
    return sorted(_METHODS)


def method_class(name: str) -> type[Method]:
    """Look a method up.

    Raises:
        ValueError: for an unknown name, with the nearest ones.
    """
    if name not in _METHODS:
        near = difflib.get_close_matches(name, _METHODS, n=3, cutoff=0.4)
        hint = f"did you mean {', '.join(near)}? " if near else ""
        raise ValueError(f"unknown method {name!r}: {hint}methods are {', '.join(method_names())}")
    return _METHODS[name]
