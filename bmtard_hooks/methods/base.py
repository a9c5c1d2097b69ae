"""What a method is: an inner attack, named loss parts, and the callbacks that move their weights."""

from __future__ import annotations

import difflib
from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, ClassVar, TypeVar

from torch import Tensor

from bmtard_hooks.attacks.losses import MovingTarget, Objective, cross_entropy
from bmtard_hooks.callbacks.base import DistillationCallback
from bmtard_hooks.callbacks.entropy_balance import EntropyBalance
from bmtard_hooks.callbacks.loss_balance import LossBalance
from bmtard_hooks.state import DistillationState

if TYPE_CHECKING:
    from bmtard_hooks.config import BMTARDConfig

Classifier = Callable[[Tensor], Tensor]
"""Maps pixels ``(B, C, H, W)`` in [0, 1] to logits ``(B, K)``."""

Batch = Mapping[str, Tensor]
"""``pixel_values`` and ``adv_pixel_values`` ``(B, C, H, W)`` in [0, 1], ``labels`` ``(B,)``, and what a method added."""

ADVERSARIAL = "adv_pixel_values"


@dataclass
class LossOutput:
    """What a method computed on one micro-batch.

    Args:
        parts: name to 0-dim loss, each reduced as the method's docstring says.
        entropies: teacher name to the 0-dim mean entropy of its softened prediction in nats, for the balance and the log.
        coefficients: part name to a factor on top of its weight, which the balance does not see; 1 if left out.
        class_sums: name to ``(K,)`` sums over the images of each class, for callbacks that balance classes.
    """

    parts: dict[str, Tensor]
    entropies: dict[str, Tensor] = field(default_factory=dict)
    coefficients: dict[str, float | Tensor] = field(default_factory=dict)
    class_sums: dict[str, Tensor] = field(default_factory=dict)


class Method(ABC):
    """A way to train a student. One subclass per file; ``register`` gives it its name.

    ``loss_parts`` and ``part_weights`` are all that a method must have; everything else has the paper's default.

    Args:
        config: the run's options.
    """

    name: ClassVar[str]
    attack: ClassVar[Mapping[str, object] | None] = {}
    """Changes to B-MTARD's PGD settings for the inner loop; None for a method without adversarial images."""
    counts_correct_steps: ClassVar[bool] = False
    """Add ``correct_steps`` ``(B,)`` to the batch: how many iterates of the attack were still classified correctly."""
    scale: ClassVar[float] = 0.1
    """Default of ``loss_scale``: 0.1 where the authors average over 10 classes too, 1 where they sum over classes."""
    milestones: ClassVar[tuple[float, ...]] = (215 / 300, 260 / 300, 285 / 300)
    """Shares of the run after which the learning rate falls, unless ``lr_milestones`` says otherwise."""
    balances_entropy: ClassVar[bool] = False
    balances_losses: ClassVar[bool] = False
    unbalanced: ClassVar[tuple[str, ...]] = ()
    """Parts that Normalization Loss Balance leaves alone."""
    trained_teachers: ClassVar[tuple[str, ...]] = ()
    """Teachers that are in training mode and get gradients. The Trainer trains a copy of what the user passed."""
    includes_igdm: ClassVar[bool] = False
    """The method has IGDM's part already."""
    averaging: ClassVar[tuple[str, float] | None] = None
    """Weight averaging that belongs to the method: its kind and the share of the run before it starts."""

    def __init__(self, config: BMTARDConfig) -> None:
        self.config = config
        self.loss_scale = self.scale if config.loss_scale is None else config.loss_scale

    @property
    def teachers(self) -> tuple[str, ...]:
        """Names of the teachers the method needs."""
        return ()

    @property
    @abstractmethod
    def part_weights(self) -> dict[str, float]:
        """Loss part name to its weight at the first step, as the authors have it."""

    @property
    def weights(self) -> dict[str, float]:
        """The weights at the first step: the method's, or the configured two scaled to what the method gives these parts.

        Other parts keep the method's.
        """
        own = self.part_weights
        chosen = {"clean": self.config.clean_weight, "robust": self.config.robust_weight}
        for part, weight in chosen.items():
            if weight is not None and part not in own:
                raise ValueError(
                    f"{part}_weight={weight} has nothing to weigh: method {self.name!r} has {', '.join(own)} as loss parts"
                )
        given = {part: own[part] if weight is None else weight for part, weight in chosen.items() if part in own}
        if given and sum(given.values()) <= 0:
            raise ValueError(f"the weights of method {self.name!r} are all 0 ({given}): give one of its parts weight")
        total = sum(own[part] for part in given)
        return {**own, **{part: total * weight / sum(given.values()) for part, weight in given.items()}}

    @abstractmethod
    def loss_parts(
        self, student: Classifier, teachers: Mapping[str, Classifier], batch: Batch, state: DistillationState
    ) -> LossOutput:
        """Compute the named losses of one micro-batch.

        Args:
            student: in train mode, every call is one forward with gradient.
            teachers: frozen, called without gradient unless the images ask for one, logits in float32.
            batch: the clean and the adversarial images and the labels.
            state: temperatures, weights and epoch of this step, to be read only.
        """

    def attack_objective(
        self, student: Classifier, teachers: Mapping[str, Classifier], batch: Batch, state: DistillationState
    ) -> Objective | MovingTarget:
        """Say what the inner attack makes larger; the default is the student's cross-entropy (Eq. 4).

        Called once per attack, with the student in the attack's mode.
        """
        return cross_entropy(batch["labels"])

    @property
    def adversarial_views(self) -> dict[str, Mapping[str, Any]]:
        """Name of each batch entry that is crafted to changes of the attack's settings; empty without an attack."""
        return {} if self.attack is None else {ADVERSARIAL: {}}

    def before_attack(
        self, student: Classifier, teachers: Mapping[str, Classifier], batch: Batch, state: DistillationState
    ) -> dict[str, Tensor]:
        """Return entries to add to a batch between augmentation and attack, with the student in train mode."""
        return {}

    def prepare(
        self, teachers: Mapping[str, Classifier], batches: Sequence[Batch], state: DistillationState
    ) -> Sequence[Batch]:
        """Look at all crafted micro-batches of an optimizer step at once, and return them, perhaps with entries added."""
        return batches

    def temperatures(self) -> dict[str, float]:
        """Teacher name to its temperature at the first step."""
        return {}

    def per_class(self) -> dict[str, float]:
        """Name to the value that every class starts with, for methods that treat classes differently."""
        return {}

    @property
    def lr_drops(self) -> tuple[float, ...]:
        """Shares of the run after which the learning rate falls: ``milestones``, unless an option changes them."""
        return self.milestones

    def lr_factor(self, epoch: int, epochs: float) -> float | None:
        """Return the factor on the learning rate in an epoch (0-based), or None for ``milestones``."""
        return None

    def callbacks(self) -> list[DistillationCallback]:
        """Make the callbacks the method consists of; leaving one out is an ablation."""
        config = self.config
        callbacks: list[DistillationCallback] = []
        parts = [part for part in self.part_weights if part not in self.unbalanced]
        self._refuse_idle_balance(parts)
        if self.balances_entropy if config.entropy_balance is None else config.entropy_balance:
            self._refuse_ratio_of_many()
            callbacks.append(
                EntropyBalance(
                    config.temperature_rate,
                    config.min_temperature,
                    config.max_temperature,
                    config.entropy_rule,
                    config.balance_follows_lr,
                )
            )
        if self.balances_losses if config.loss_balance is None else config.loss_balance:
            callbacks.append(
                LossBalance(config.weight_rate, config.loss_balance_power, parts, config.balance_follows_lr)
            )
        return callbacks

    def _refuse_idle_balance(self, parts: Sequence[str]) -> None:
        if self.config.entropy_balance and len(self.temperatures()) < 2:
            raise ValueError(
                f"entropy_balance=True has nothing to do: method {self.name!r} has no two teachers with temperatures"
            )
        if self.config.loss_balance and len(parts) < 2:
            raise ValueError(
                f"loss_balance=True has nothing to do: method {self.name!r} has {len(parts)} loss part to weigh"
            )

    def _refuse_ratio_of_many(self) -> None:
        teachers = self.temperatures()
        if self.config.entropy_rule == "ratio" and len(teachers) > 2:
            raise ValueError(
                f"entropy_rule='ratio' compares two teachers, and method {self.name!r} balances {', '.join(teachers)}: pass "
                "entropy_rule='difference'"
            )


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
        near = difflib.get_close_matches(name.lower(), _METHODS, n=3, cutoff=0.4)
        hint = f"did you mean {', '.join(near)}? " if near else ""
        raise ValueError(f"unknown method {name!r}: {hint}methods are {', '.join(method_names())}")
    return _METHODS[name]
