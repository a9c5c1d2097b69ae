"""The command `bmtard`: train a student, evaluate it, put reports side by side, draw runs, look at teachers beforehand."""

from __future__ import annotations

import difflib
import sys
from collections.abc import Callable, Sequence

from bmtard_hooks._version import __version__
from bmtard_hooks.commands.evaluate import evaluate
from bmtard_hooks.commands.plot import plot
from bmtard_hooks.commands.preview import preview
from bmtard_hooks.commands.report import report
from bmtard_hooks.commands.train import train
from bmtard_hooks.mistakes import MISTAKE, exit_code

COMMANDS: dict[str, Callable[[Sequence[str]], str]] = {
    "train": train,
    "evaluate": evaluate,
    "report": report,
    "plot": plot,
    "preview": preview,
}


def main(argv: Sequence[str] | None = None) -> int:
    """Run a command.

    Args:
        argv: the command line without the program's name.

    Returns:
        0 if all went well, 2 for a mistake in the command line or the input or a run that diverged, which is printed in
        one line.
    """
    arguments = list(sys.argv[1:] if argv is None else argv)
    if not arguments or arguments[0] in ("-h", "--help") or arguments[0] not in COMMANDS | {"--version": None}:
        unknown = bool(arguments) and arguments[0] not in ("-h", "--help")
        print(_usage(arguments[0] if unknown else None), file=sys.stderr if unknown else sys.stdout)
        return MISTAKE if unknown else 0
    if arguments[0] == "--version":
        print(__version__)
        return 0
    return exit_code(f"bmtard {arguments[0]}", lambda: _run(COMMANDS[arguments[0]], arguments[1:]))


def _run(command: Callable[[Sequence[str]], str], words: Sequence[str]) -> None:
    shown = command(words)
    if shown:  # nothing but on the main process
        print(shown)


def _usage(unknown: str | None) -> str:
    near = difflib.get_close_matches(str(unknown), COMMANDS, n=1)
    hint = f": did you mean bmtard {near[0]}?" if near else f": the commands are {', '.join(COMMANDS)}"
    lines = [f"bmtard: unknown command {unknown!r}{hint}", ""] if unknown else []
    lines += ["usage: bmtard COMMAND …   (bmtard COMMAND --help lists its options)", ""]
    lines += [f"  {name:<10} {(command.__doc__ or '').splitlines()[0]}" for name, command in COMMANDS.items()]
    return "\n".join(lines)


if __name__ == "__main__":
    sys.exit(main())
