"""The fenced blocks of the Markdown pages, with where they stand."""

import re
import sys
from pathlib import Path
from typing import NamedTuple

ROOT = Path(__file__).parents[2]
DOCS = ROOT / "docs"
sys.path += [str(ROOT / folder) for folder in ("recipes", "benchmarks", "tests/recipes")]

PAGES = [*sorted(DOCS.rglob("*.md")), ROOT / "README.md"]


class Block(NamedTuple):
    """A fenced block."""

    page: Path
    line: int
    language: str
    code: str

    @property
    def name(self):
        return f"{self.page.relative_to(ROOT)}:{self.line} {self.language}"


def blocks_of(page):
    """Read a page's blocks in order; ``line`` is that of the opening fence, from 1."""
    found, opened = [], None
    for number, text in enumerate(page.read_text().splitlines(), 1):
        fence = re.match(r"\s*(```+|~~~+)\s*(.*)", text)
        if fence and opened is None:
            opened = Block(page, number, fence[2].strip(), ""), fence[1], []
        elif fence and fence[1] == opened[1] and not fence[2]:
            block, _, lines = opened
            found.append(block._replace(code="".join(line + "\n" for line in lines)))
            opened = None
        elif opened is not None:
            opened[2].append(text)
    assert opened is None, f"{page}: the block of line {opened[0].line} never ends"
    return found


def all_blocks():
    """Read the blocks of every page."""
    return [block for page in PAGES for block in blocks_of(page)]
