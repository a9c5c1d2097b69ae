"""All outputs of an evaluation in one directory."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path

from bmtard_hooks.evaluation.report import RobustnessReport
from bmtard_hooks.reporting.figures import draw_figures
from bmtard_hooks.reporting.files import write_file
from bmtard_hooks.reporting.page import write_page
from bmtard_hooks.reporting.presentation import require_reports
from bmtard_hooks.reporting.report_file import save_report
from bmtard_hooks.reporting.table import Table
from bmtard_hooks.reporting.tables import to_markdown


def write_report(
    reports: Sequence[RobustnessReport], directory: str | Path, extra: Mapping[str, str | Table] | None = None
) -> dict[str, Path]:
    """Write ``report.json`` (of a single report), ``report.md``, ``report.html`` and the PNGs in ``figures/``.

    The JSON is written first, so that nothing that goes wrong later costs the measurement. Without matplotlib there are
    no figures, and the page says so.

    Args:
        reports: the models.
        directory: where to write; made if missing.
        extra: further sections of the page and the Markdown, heading to text or table; see ``write_page`` and
            ``to_markdown``.

    Returns:
        What was written: ``json``, ``markdown``, ``html``, and ``figures/NAME`` for each figure.

    Raises:
        ValueError: without reports.
    """
    require_reports(reports)
    directory = Path(directory)
    written: dict[str, Path] = {}
    if len(reports) == 1:
        written["json"] = save_report(reports[0], directory / "report.json")
    written["markdown"] = write_file(directory / "report.md", to_markdown(reports, extra))
    try:
        pictures = draw_figures(reports)
    except ImportError:
        pictures = None
    for picture in pictures or []:
        path = directory / "figures" / f"{picture.name}.png"
        written[f"figures/{picture.name}"] = write_file(path, picture.png)
    written["html"] = write_page(reports, directory / "report.html", extra, pictures)
    return written
