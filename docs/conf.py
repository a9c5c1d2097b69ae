"""Builds the pages of this folder into a site: `make docs`. No network is needed."""

from __future__ import annotations

import dataclasses
import inspect
import re
from typing import Any

from sphinx.application import Sphinx

from bmtard_hooks import __version__

project = "bmtard_hooks"
author = "the authors of bmtard_hooks"
version = release = __version__

extensions = ["myst_parser", "sphinx.ext.autodoc", "sphinx.ext.napoleon", "sphinx.ext.viewcode"]
myst_heading_anchors = 3
autodoc_member_order = "bysource"
autodoc_typehints = (
    "none"  # docstrings say what is taken, with shapes and ranges; types are in the source that is linked
)
napoleon_google_docstring, napoleon_numpy_docstring = True, False

html_theme = "furo"
html_title = f"bmtard_hooks {__version__}"
html_show_copyright = False

OUTSIDE = re.compile(r"(?<!!)\[([^\]]+)\]\(\.\./[^)]+\)")
"""A link that leaves this folder: right on a code host and in a checkout, and without a target in the site."""


def unlink_outside(app: Sphinx, docname: str, source: list[str]) -> None:
    """Leave the words of links to files of the repository that are no pages."""
    source[0] = OUTSIDE.sub(r"\1", source[0])


def list_options(app: Sphinx, what: str, name: str, obj: Any, options: Any, lines: list[str]) -> None:
    """Add the options that a dataclass declares, with default and help, to its description."""
    if what != "class" or not dataclasses.is_dataclass(obj):
        return
    own = {
        key
        for kind in obj.__mro__
        if kind.__module__.startswith("bmtard_hooks")
        for key in vars(kind).get("__annotations__", ())
    }
    found = [entry for entry in dataclasses.fields(obj) if entry.name in own and "help" in entry.metadata]
    if found:
        lines += ["", "**Options of this library:**", ""]
    for entry in found:
        default = entry.default
        if default is dataclasses.MISSING:
            default = entry.default_factory() if callable(entry.default_factory) else ""
        lines.append(
            f"* ``{entry.name}`` = ``{default!r}``: {inspect.cleandoc(entry.metadata['help']).replace('*', chr(92) + '*')}"
        )


def setup(app: Sphinx) -> None:
    """Register what is above."""
    app.connect("source-read", unlink_outside)
    app.connect("autodoc-process-docstring", list_options)
