"""Reports of evaluations: JSON, Markdown, figures, and one HTML page."""

from bmtard_hooks.reporting.outputs import write_report
from bmtard_hooks.reporting.report_file import load_report, save_report

__all__ = ["load_report", "save_report", "write_report"]
