"""Somebody else's attack, torchattacks' or a user's own, as an evaluation attack."""

from __future__ import annotations

import math
import random
from collections.abc import Callable
from contextlib import nullcontext
from dataclasses import dataclass, field
from numbers import Real
from typing import Any, ClassVar

import numpy as np
import torch
from torch import Tensor, nn

from bmtard_hooks.attacks.base import Attack, Draws, Found, Target
from bmtard_hooks.attacks.guard import attack_mode
from bmtard_hooks.randomness import keyed_generator, untouched_randomness


@dataclass(frozen=True, kw_only=True)
class Foreign(Attack):
    """Run a torchattacks object, or any callable from images and labels to adversarial images.

    It attacks the model that it was made for and that it holds, ``attacked_model``, whatever is evaluated. That
    model's modes, gradients and buffers and the global random numbers of Python, numpy and torch are put back
    afterwards. A callable without a ``.model`` gets the latter only.

    Global random numbers are seeded from the evaluation's key and the first image of the batch. So a run can be
    repeated, but other than for the package's own attacks its result depends on the batch size, and torchattacks'
    Square even draws one square for a whole batch.

    Args:
        run: called with images ``(B, C, H, W)`` float32 in [0, 1], contiguous, and labels ``(B,)``; returns images of
            the same shape.
        name: what reports call it; by default the name of the class or function.
        eps: radius; by default the object's own ``.eps``, and needed if it has none.
        norm: ``linf`` or ``l2``; by default what the object's ``.norm`` or a class name such as ``PGDL2`` say, else
            ``linf``.
        images: see ``Attack``.

    Raises:
        TypeError: if ``run`` cannot be called.
        ValueError: without a radius, for one that is not the object's own, for a torchattacks object with a
            normalisation, or one on another device than the images; when called, for an answer of another shape or
            type or one that is not finite.
    """

    run: Callable[[Tensor, Tensor], Tensor] = field(repr=False)
    name: str = ""
    eps: float = math.nan
    norm: str = "auto"

    norms: ClassVar[tuple[str, ...]] = ("linf", "l2")
    foreign: ClassVar[bool] = True

    def __post_init__(self) -> None:
        if not callable(self.run):
            raise TypeError(f"run is {type(self.run).__name__}: expected a callable (images, labels) -> images")
        self._refuse_normalisation()
        settled = {
            "name": self.name or getattr(self.run, "__name__", type(self.run).__name__),
            "eps": self._radius(),
            "norm": _norm_of(self.run) if self.norm == "auto" else self.norm,
        }
        for name, value in settled.items():
            object.__setattr__(self, name, value)
        super().__post_init__()

    @property
    def attacked_model(self) -> nn.Module | None:
        """The model that the attack holds, or None if it does not tell."""
        model = getattr(self.run, "model", None)
        return model if isinstance(model, nn.Module) else None

    def __call__(self, target: Target, images: Tensor, labels: Tensor, draws: Draws) -> Found:
        """See ``Attack``; ``target`` is not used."""
        self._refuse_normalisation()
        self._check_device(images)
        model = self.attacked_model
        guard = nullcontext() if model is None else attack_mode(model, foreign=True)
        with untouched_randomness(images.device), guard:
            _seed_everything(draws)
            # The copies are for code that changes its input or calls .view on channels-last images.
            given = images.detach().float().clone(memory_format=torch.contiguous_format)
            answer = self.run(given, labels.clone())
        return Found(self._checked(answer, images))

    def _radius(self) -> float:
        own = getattr(self.run, "eps", None)
        own = float(own) if isinstance(own, Real) else None
        if math.isnan(self.eps):
            if own is None:
                raise ValueError(
                    f"{type(self.run).__name__} has no eps, so its answers could not be checked: pass "
                    "Foreign(run=…, eps=8 / 255)"
                )
            return own
        if own is not None and not math.isclose(own, self.eps, rel_tol=1e-6):
            raise ValueError(
                f"eps={self.eps:g}, but the attack has eps={own:g}: make it with the radius to be evaluated"
            )
        return self.eps

    def _refuse_normalisation(self) -> None:
        if getattr(self.run, "normalization_used", None) is not None:
            raise ValueError(
                f"{type(self.run).__name__} has set_normalization_used, which takes and gives normalised images, but "
                "images here are pixels in [0, 1]: put the normalisation into the model instead, for example with "
                "as_classifier, and make the attack for that model"
            )

    def _check_device(self, images: Tensor) -> None:
        device = getattr(self.run, "device", None)
        if isinstance(device, (str, torch.device)) and torch.device(device).type != images.device.type:
            raise ValueError(
                f"{self.name} was made for {device}, the images are on {images.device}: move the model first, then "
                "make the attack"
            )

    def _checked(self, answer: Any, images: Tensor) -> Tensor:
        if not isinstance(answer, Tensor) or not answer.is_floating_point():
            kind = answer.dtype if isinstance(answer, Tensor) else type(answer).__name__
            raise ValueError(f"{self.name} returned {kind}: expected a float tensor of adversarial images in [0, 1]")
        if answer.shape != images.shape:
            raise ValueError(f"{self.name} returned shape {tuple(answer.shape)} for images {tuple(images.shape)}")
        answer = answer.detach().to(images.device, images.dtype)
        if not bool(torch.isfinite(answer).all()):
            raise ValueError(f"{self.name} returned pixels that are NaN or infinite: expected images in [0, 1]")
        return answer

    def passes(self, num_classes: int) -> int:
        """Guess from the object's ``steps`` (a forward and a backward each) or ``n_queries``, for ordering only."""
        steps, queries = getattr(self.run, "steps", None), getattr(self.run, "n_queries", None)
        if isinstance(queries, int):
            return max(1, queries)
        return max(1, 2 * steps) if isinstance(steps, int) else 1

    def identity(self) -> dict[str, Any] | None:
        """Nobody can know what somebody else's code depends on, so its outcomes are never taken from disk."""
        return None

    def settings(self) -> dict[str, Any]:
        """See ``Attack``; ``run`` is given by its class or function, ``options`` are its plain attributes."""
        kind: Any = self.run if hasattr(self.run, "__qualname__") else type(self.run)
        options = {name: value for name, value in getattr(self.run, "__dict__", {}).items() if _is_plain(name, value)}
        return {
            "class": type(self).__name__,
            "name": self.name,
            "run": f"{kind.__module__}.{kind.__qualname__}",
            "eps": self.eps,
            "norm": self.norm,
            "images": self.images,
            "options": options,
        }


def _norm_of(run: Any) -> str:
    told = getattr(run, "norm", None)
    if not isinstance(told, str):
        told = "l2" if type(run).__name__.lower().endswith("l2") else "linf"
    return told.lower()


def _is_plain(name: str, value: Any) -> bool:
    plain = isinstance(value, (bool, int, str)) or (isinstance(value, float) and math.isfinite(value))
    return plain and not name.startswith("_")


def _seed_everything(draws: Draws) -> None:
    seed = keyed_generator(*draws.key, "foreign", *draws.indices[:1]).initial_seed()
    torch.manual_seed(seed)
    random.seed(seed)
    np.random.seed(seed % 2**32)
