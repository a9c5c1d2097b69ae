"""The parent's side: children that wait for their turn, and an end for all of them whatever happens."""

from __future__ import annotations

import multiprocessing
import os
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, suppress
from types import TracebackType
from typing import Any

PATIENCE = 20
"""Seconds that a child has for ending by itself."""


class ChildDied(RuntimeError):
    """A child failed; the message holds its traceback or exit code."""


class Child:
    """A process that works only when it is asked.

    Args:
        target: importable function ``(connection, *arguments)``, which sends ``("done", reply)`` or ``("error", text)``.
        arguments: the rest of its arguments.
        name: for messages.
        environment: variables the process starts with.
    """

    def __init__(
        self, target: Callable[..., None], arguments: tuple[Any, ...], name: str, environment: Mapping[str, str]
    ) -> None:
        context = multiprocessing.get_context("spawn")  # a forked child could not use a GPU
        self.name = name
        self.connection, theirs = context.Pipe()
        self.process = context.Process(target=target, args=(theirs, *arguments), name=name, daemon=True)
        with _environment(environment):
            self.process.start()
        theirs.close()  # so that the end of the child is the end of the pipe

    def receive(self) -> dict[str, Any]:
        """Wait for a reply.

        Raises:
            ChildDied: if the child failed.
        """
        try:
            kind, reply = self.connection.recv()
        except (EOFError, ConnectionResetError):
            self.process.join()
            code = self.process.exitcode
            raise ChildDied(
                f"{self.name} ended without a word (exit code {code}; -9 may mean too little memory)"
            ) from None
        if kind == "error":
            raise ChildDied(f"{self.name} failed:\n{reply}")
        return reply

    def ask(self, command: str, what: Any) -> dict[str, Any]:
        """Send a command and wait for the reply.

        Raises:
            ChildDied: if the child failed.
        """
        with suppress(BrokenPipeError):  # what it had to say is still in the pipe
            self.connection.send((command, what))
        return self.receive()

    def dismiss(self) -> None:
        """Ask the child to end, and see to it that it does."""
        with suppress(BrokenPipeError, ConnectionResetError):
            self.connection.send(("stop", 0))
            self.process.join(PATIENCE)
        self.kill()

    def kill(self) -> None:
        """End the child now."""
        if self.process.is_alive():
            self.process.kill()
        self.process.join()
        self.connection.close()


class Crew:
    """Starts children one after another, and ends all of them when the ``with`` block is left.

    Args:
        environment: variables every child starts with.
    """

    def __init__(self, environment: Mapping[str, str]) -> None:
        self.environment = dict(environment)
        self.children: list[Child] = []

    def __enter__(self) -> Crew:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        for child in self.children:
            if kind is None:
                child.dismiss()
            else:
                child.kill()

    def start(
        self,
        target: Callable[..., None],
        arguments: tuple[Any, ...],
        name: str,
        environment: Mapping[str, str] | None = None,
    ) -> tuple[Child, dict[str, Any]]:
        """Start a child, with variables of its own if it has some, and wait for its first reply.

        Returns:
            The child and the reply.

        Raises:
            ChildDied: if it fails before.
        """
        child = Child(target, arguments, name, {**self.environment, **(environment or {})})
        self.children.append(child)
        return child, child.receive()


@contextmanager
def _environment(changes: Mapping[str, str]) -> Iterator[None]:
    before = {name: os.environ.get(name) for name in changes}
    os.environ.update(changes)
    try:
        yield
    finally:
        for name, value in before.items():
            if value is None:
                del os.environ[name]
            else:
                os.environ[name] = value
