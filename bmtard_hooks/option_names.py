"""What somebody may have meant by the name of an option that does not exist."""

from __future__ import annotations

import difflib
import functools
from collections.abc import Callable, Iterable
from dataclasses import fields
from typing import Any, TypeVar

Options = TypeVar("Options", bound=type)

SYNONYMS = {
    "batch_size": ("per_device_train_batch_size",),
    "epochs": ("num_train_epochs",),
    "epsilon": ("eps",),
    "evaluation_strategy": ("eval_strategy",),
    "lr": ("learning_rate",),
    "num_epochs": ("num_train_epochs",),
    "num_steps": ("steps",),
    "temperature": ("clean_temperature", "robust_temperature"),
    "train_batch_size": ("per_device_train_batch_size",),
}
"""Names that options have elsewhere, in attacks, scripts and older releases of transformers."""


def near_options(name: str, known: Iterable[str]) -> list[str]:
    """List the options that a name may have meant: what it is called elsewhere, or else those that are spelt alike.

    Args:
        name: of an option that does not exist.
        known: names of those that do.
    """
    known = sorted(known)
    meant = [option for option in SYNONYMS.get(name.lower(), ()) if option in known]
    return meant or difflib.get_close_matches(name.lower(), known, n=3)


def naming_unknown_options(kind: Options) -> Options:
    """Decorate a dataclass of options: a keyword that is none of them is refused with those that may have been meant."""
    original: Callable[..., None] = kind.__init__  # type: ignore[misc]
    known = {entry.name for entry in fields(kind) if entry.init}

    @functools.wraps(original)
    def checked(self: Any, *args: Any, **options: Any) -> None:
        if type(self) is kind:  # a dataclass made of this one may know more
            for name in options.keys() - known:
                near = near_options(name, known)
                hint = f"did you mean {', '.join(near)}?" if near else "its documentation lists all options"
                raise TypeError(f"{kind.__name__} has no option {name}={options[name]!r:.60}: {hint}")
        original(self, *args, **options)

    kind.__init__ = checked  # type: ignore[misc]
    return kind
