"""Checks against false robustness: whether a robust accuracy is real, or gradients are only hidden."""

from bmtard_hooks.evaluation.checks.registry import CHECKS, PASSES_PER_IMAGE, run_checks

__all__ = ["CHECKS", "PASSES_PER_IMAGE", "run_checks"]
