"""Asking the teachers, and looking at a step without leaving a trace in it."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from functools import partial

import torch
from torch import Tensor

from bmtard_hooks.buffers import kept_buffers
from bmtard_hooks.finite_guard import FiniteGuard
from bmtard_hooks.frozen_forwards import FrozenForwards
from bmtard_hooks.methods import Classifier
from bmtard_hooks.randomness import untouched_randomness
from bmtard_hooks.window import AccumulationWindow


class AsksTeachers(FrozenForwards):
    """Asks each teacher about the same images only once, and lets an attack look through it if the images ask for that."""

    _window: AccumulationWindow
    _finite: FiniteGuard

    def ask_teachers(self, remember: bool = False) -> dict[str, Classifier]:
        """Return a classifier for every teacher.

        Args:
            remember: keep answers for the next time the same images are asked about in this step.
        """
        return {name: partial(self._ask, name, remember) for name in self._asked}

    def _ask(self, name: str, remember: bool, pixels: Tensor) -> Tensor:
        trained = name in self.method.trained_teachers

        def ask(pixels: Tensor) -> Tensor:
            # an attack may look through a teacher
            follow = torch.is_grad_enabled() and (trained or pixels.requires_grad)
            with torch.set_grad_enabled(follow), self.accelerator.autocast():
                logits = self._asked[name](pixels)
            if not follow:
                self._finite.note("teacher", f"the {name} teacher's logits", logits)
            return logits.clone() if self.args.torch_compile else logits  # CUDA graphs reuse their output buffers

        if trained or pixels.requires_grad:
            return ask(pixels)
        answer = self._window.answer(name, pixels, ask)
        return self._window.remember(name, pixels, answer) if remember else answer

    @contextmanager
    def without_trace(self) -> Iterator[None]:
        """Put random numbers and the buffers of everything that is in training mode back afterwards."""
        trained = [self.model, *(self.teachers[name] for name in self.method.trained_teachers)]
        put_back = kept_buffers(*trained)
        try:
            with untouched_randomness(self.args.device):
                yield
        finally:
            put_back()
