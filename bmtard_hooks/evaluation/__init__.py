"""Measuring clean and robust accuracy."""

from bmtard_hooks.evaluation.metrics import robust_metrics

__all__ = ["robust_metrics"]
