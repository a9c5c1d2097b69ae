"""Writes pyproject.toml's lower bounds as exact requirements: all that the package, its recipes and its tests need."""

import re
import sys
from pathlib import Path

try:
    import tomllib
except ModuleNotFoundError:  # Python 3.10
    from pip._vendor import tomli as tomllib

EXTRAS = ("recipes", "test")


def lower_bounds(project):
    """Read the bounds of a pyproject's ``[project]`` table.

    Raises:
        ValueError: for a requirement without a lower bound.
    """
    wanted = [*project["dependencies"], *(line for name in EXTRAS for line in project["optional-dependencies"][name])]
    wanted = [line for line in wanted if not line.startswith(project["name"] + "[")]
    for line in wanted:
        found = re.fullmatch(r"([\w.-]+)>=([\w.]+)", line)
        if not found:
            raise ValueError(f"{line!r} in pyproject.toml has no lower bound of its own: write name>=version")
        yield f"{found[1]}=={found[2]}"


if __name__ == "__main__":
    text = (Path(__file__).parents[1] / "pyproject.toml").read_text()
    sys.stdout.writelines(line + "\n" for line in lower_bounds(tomllib.loads(text)["project"]))
