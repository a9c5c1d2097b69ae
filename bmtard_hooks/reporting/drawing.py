"""What all figures of a report share: size, fonts that fit a phone, colours, safe names."""

from __future__ import annotations

import io
import warnings
from dataclasses import dataclass
from typing import Any

# Okabe and Ito's palette in an order that also differs in brightness; the markers serve black-and-white prints.
STYLES = (
    ("#0072B2", "o"),
    ("#D55E00", "s"),
    ("#009E73", "^"),
    ("#CC79A7", "D"),
    ("#E69F00", "v"),
    ("#56B4E9", "P"),
    ("#000000", "X"),
)

WIDTH = 4.0
"""Inches; so few that text of 10 points stays legible where a page is 330 pixels wide."""
DPI = 220
LONGEST_NAME = 36


@dataclass(frozen=True)
class Picture:
    """A figure as PNG.

    Args:
        name: of its file, without ending.
        title: what it shows.
        alt: the same for those who cannot see it, with the main numbers.
        png: the file's bytes.
    """

    name: str
    title: str
    alt: str
    png: bytes


def styles_of(count: int) -> list[tuple[str, str]]:
    """Give every model a colour and a marker that differ from all others'."""
    colors, markers = [color for color, _ in STYLES], [marker for _, marker in STYLES]
    # From the eighth model on, colours come again with another marker.
    return [
        (colors[index % len(STYLES)], markers[(index + index // len(STYLES)) % len(STYLES)]) for index in range(count)
    ]


def add_legend(figure: Any, axes: Any) -> None:
    """Write the legend below the axes, where it hides nothing."""
    handles, labels = axes.get_legend_handles_labels()
    columns = 2 if all(len(label) <= LONGEST_NAME // 2 for label in labels) else 1
    figure.legend(handles, labels, loc="outside lower center", ncols=columns, frameon=False, fontsize=9)


def plain(text: str, longest: int = LONGEST_NAME) -> str:
    """Keep matplotlib from reading a name as a formula or as hidden, and shorten it to fit."""
    text = " ".join(text.split())
    text = text if len(text) <= longest else f"{text[: longest - 1]}…"
    shown = f" {text}" if text.startswith("_") else text
    return shown.replace("$", r"\$")


def new_figure(height: float, width: float = WIDTH) -> Any:
    """Make an empty figure, without touching the user's backend.

    Args:
        height: in inches.
        width: in inches; by default that of a report's figures.

    Raises:
        ImportError: if matplotlib is missing.
    """
    try:
        from matplotlib.figure import Figure  # here, because only figures need it; no pyplot, no global backend
    except ImportError as error:
        raise ImportError("figures need matplotlib: pip install 'bmtard_hooks[recipes]'") from error
    return Figure(figsize=(width, height), layout="constrained")


def to_png(figure: Any, dpi: int) -> bytes:
    """Render a figure; signs that the font lacks become boxes without a warning for each."""
    return render(figure, "png", dpi)


def render(figure: Any, kind: str, dpi: int = DPI) -> bytes:
    """Render a figure as a PNG, a PDF with whole fonts (which journals ask for), or an SVG; the same bytes every time.

    Args:
        figure: a matplotlib figure.
        kind: ``png``, ``pdf`` or ``svg``.
        dpi: pixels per inch of a PNG.
    """
    import matplotlib

    stream = io.BytesIO()
    undated = {"pdf": {"CreationDate": None}, "svg": {"Date": None}}.get(kind, {})
    with warnings.catch_warnings(), matplotlib.rc_context({"pdf.fonttype": 42, "svg.hashsalt": "bmtard"}):
        warnings.filterwarnings("ignore", message=r"Glyph .* missing from")
        figure.savefig(stream, format=kind, dpi=dpi, metadata=undated)
    return stream.getvalue()
