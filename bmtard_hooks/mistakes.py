"""Programs say in one line what was wrong with their command line or input, in place of a traceback."""

from __future__ import annotations

import logging
import sys
from collections.abc import Callable
from typing import Any

MISTAKE = 2
"""Exit code for a mistake in the command line or the input, and for a run that diverged."""


def exit_code(program: str, work: Callable[[], Any]) -> int:
    """Do a program's work, and print a mistake in one line.

    Args:
        program: how the line calls it, for example ``bmtard train``.
        work: the program; what it returns is not used.

    Returns:
        0 if all went well, 2 for a mistake. Anything else that goes wrong, an error of this library, keeps its traceback.
    """
    logging.basicConfig(level=logging.WARNING, format="%(levelname)s: %(message)s")
    try:
        work()
    except (ValueError, OSError, FloatingPointError) as error:
        # OSError: files, directories, and hubs that cannot be reached; FloatingPointError: a loss that is no number
        print(f"{program}: {error}", file=sys.stderr)
        return MISTAKE
    return 0
