"""Reading a YAML file of options, and saying in one line what is wrong with one."""

from __future__ import annotations

from collections.abc import Hashable
from pathlib import Path
from typing import Any

import yaml


class _StrictLoader(yaml.SafeLoader):
    """A safe loader that refuses a key which stands twice, of which YAML would silently keep the last."""

    def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict[Hashable, Any]:
        """Build a mapping from distinct keys."""
        seen: set[Any] = set()
        for key_node, _ in node.value:
            key = key_node.value if isinstance(key_node, yaml.ScalarNode) else None
            if key in seen and key != "<<":
                raise yaml.constructor.ConstructorError(
                    None, None, f"option {key!r} stands there twice, expected once: delete one", key_node.start_mark
                )
            seen.add(key)
        return super().construct_mapping(node, deep)


def read_yaml(path: Path) -> dict[str, Any]:
    """Read the ``option: value`` lines of a file; an empty file has none.

    Args:
        path: an existing file.

    Raises:
        ValueError: if it is no text, no YAML, holds anything else or an option twice; the message names the line.
    """
    try:
        text = path.read_bytes().decode("utf-8-sig")
    except UnicodeDecodeError as error:
        raise ValueError(
            f"{path} is not a text file in UTF-8 (byte {error.start} is {error.object[error.start]:#04x}): expected YAML with "
            "`option: value` lines. Pass the file of options, or save it as UTF-8"
        ) from error
    try:
        content = yaml.load(text, Loader=_StrictLoader)
    except (yaml.YAMLError, ValueError, RecursionError) as error:
        raise ValueError(
            f"{path} cannot be read as YAML: {_what_is_wrong(error)}. Expected `option: value` lines, indented with spaces"
        ) from error
    if content is None:
        return {}
    if not isinstance(content, dict):
        raise ValueError(
            f"{path} must hold `option: value` lines, it holds a {type(content).__name__}: {content!r:.40}"
        )
    return content


def _what_is_wrong(error: Exception) -> str:
    mark = getattr(error, "problem_mark", None)
    problem = getattr(error, "problem", None) or str(error).splitlines()[0]
    where = f"line {mark.line + 1}, column {mark.column + 1}: " if mark is not None else ""
    return f"{where}{problem}"
