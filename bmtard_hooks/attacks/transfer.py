"""Transfer: attack another model and try the answer on the target."""

from __future__ import annotations

import hashlib
from dataclasses import dataclass, field
from typing import Any, ClassVar

import torch
from torch import Tensor, nn

from bmtard_hooks.attacks.base import Attack, Draws, Found, NonFiniteLogits, Target
from bmtard_hooks.attacks.foreign import Foreign
from bmtard_hooks.attacks.gradient import PGD_TRADES
from bmtard_hooks.attacks.guard import attack_mode


@dataclass(frozen=True, kw_only=True)
class Transfer(Attack):
    """Attack a surrogate with full access and answer with what came out, whether or not it fooled the surrogate.

    The target is not asked: its single query is the evaluation's verdict. Passes through the surrogate are reported to
    the target's progress bar, but are not its ``forwards`` and not ``Found.queries``. A surrogate that taught some of
    the compared students is not a neutral attacker; add one that taught none of them.

    Args:
        surrogate: module from pixels in [0, 1] to a tensor of logits; wrap anything else with ``as_classifier``. It is
            moved to the images' device at the first batch and stays there; the rest of it is left as it was.
        attack: the attack on the surrogate; its ``eps``, ``norm`` and ``images`` are replaced by the ones here.
        surrogate_name: what reports call the surrogate; by default its class.
        eps: see ``Attack``.
        norm: ``linf`` or ``l2``, if the inner attack knows it.
        images: see ``Attack``.

    Raises:
        ValueError: if ``attack`` does not attack the model that it is given.
        TypeError: if the surrogate is not a module, or does not answer with a tensor.
    """

    surrogate: nn.Module = field(repr=False)
    attack: Attack = PGD_TRADES
    surrogate_name: str = ""

    norms: ClassVar[tuple[str, ...]] = ("linf", "l2")
    access: ClassVar[str] = "transfer"

    def __post_init__(self) -> None:
        super().__post_init__()
        if not isinstance(self.surrogate, nn.Module):
            raise TypeError(f"surrogate is {type(self.surrogate).__name__}: expected a module from pixels to logits")
        if isinstance(self.attack, (Foreign, Transfer)):
            raise ValueError(
                f"attack={type(self.attack).__name__} attacks a model of its own, not the surrogate: pass an attack "
                "of this package such as PGD_TRADES, or use Foreign with a run that was made for the surrogate"
            )
        if not self.surrogate_name:
            object.__setattr__(self, "surrogate_name", type(self.surrogate).__name__)
        object.__setattr__(self, "attack", self.attack.replace(eps=self.eps, norm=self.norm, images=self.images))

    def __call__(self, target: Target, images: Tensor, labels: Tensor, draws: Draws) -> Found:
        """See ``Attack``."""
        self.surrogate.to(images.device)
        surrogate = Target(self._logits, target.on_pass)
        with attack_mode(self.surrogate):
            found = self.attack(surrogate, images, labels, draws)
        try:
            surrogate.require_finite()
        except NonFiniteLogits as error:
            raise NonFiniteLogits(f"surrogate {self.surrogate_name}: {error}") from error
        return Found(found.images)

    def _logits(self, pixels: Tensor) -> Tensor:
        logits = self.surrogate(pixels)
        if not isinstance(logits, torch.Tensor):
            raise TypeError(
                f"surrogate {self.surrogate_name} returned {type(logits).__name__}: expected a tensor of logits, wrap "
                "the surrogate with as_classifier"
            )
        return logits

    def passes(self, num_classes: int) -> int:
        """Count the passes through the surrogate."""
        return self.attack.passes(num_classes)

    def identity(self) -> dict[str, Any] | None:
        """See ``Attack``; two surrogates of one name differ by their weights, buffers and structure."""
        digest = hashlib.sha256(repr(self.surrogate).encode())
        for tensor in (*self.surrogate.parameters(), *self.surrogate.buffers()):  # also buffers that are not saved
            digest.update(tensor.detach().cpu().contiguous().flatten().view(torch.uint8).numpy().tobytes())
        return {**self.settings(), "weights": digest.hexdigest()[:16]}

    def settings(self) -> dict[str, Any]:
        """See ``Attack``; the surrogate is given by its name, the inner attack by its settings."""
        outer = {"class": type(self).__name__, "eps": self.eps, "norm": self.norm, "images": self.images}
        return {**outer, "surrogate": self.surrogate_name, "attack": self.attack.settings()}
