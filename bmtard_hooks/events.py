"""Events that only distillation callbacks have, fired the way Trainer fires its own."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from transformers import Trainer

from bmtard_hooks.callbacks.base import DistillationCallback


class FiresEvents(Trainer):
    """Calls callbacks by the name of an event; those that lack it are left alone."""

    callback_handler: Any

    def fire(self, event: str, **kwargs: Any) -> None:
        """Call an event on every callback that has it."""
        handler = self.callback_handler
        for react in self.listeners(event):
            control = react(
                self.args,
                self.state,
                self.control,
                model=handler.model,
                optimizer=handler.optimizer,
                lr_scheduler=handler.lr_scheduler,
                **kwargs,
            )
            self.control = control if control is not None else self.control

    def listeners(self, event: str) -> list[Callable[..., Any]]:
        """Find the callbacks that do something in an event; ``DistillationCallback`` itself does nothing in any."""
        nothing = getattr(DistillationCallback, event, None)
        found = [getattr(callback, event, None) for callback in self.callback_handler.callbacks]
        return [react for react in found if callable(react) and getattr(react, "__func__", react) is not nothing]

    def add_callback(self, callback: Any) -> None:
        """Add a callback and show it this Trainer. See ``Trainer``."""
        super().add_callback(callback)
        self.attach_callbacks()

    def attach_callbacks(self) -> None:
        """Show every distillation callback the Trainer it belongs to, as soon as that is whole."""
        if not hasattr(self, "distillation"):
            return  # transformers' constructor adds callbacks before there are teachers
        for callback in self.distillation_callbacks():
            callback.attach(self)

    def distillation_callbacks(self) -> list[DistillationCallback]:
        """List the callbacks whose state belongs into a checkpoint, in order."""
        return [c for c in self.callback_handler.callbacks if isinstance(c, DistillationCallback)]
