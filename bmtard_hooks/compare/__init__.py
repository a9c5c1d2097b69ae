"""Methods side by side under one budget: trained, measured with the same attacks, and written as one table."""

from bmtard_hooks.compare.arguments import CompareArguments
from bmtard_hooks.compare.jobs import run_comparison
from bmtard_hooks.compare.plan import Plan, make_plan

__all__ = ["CompareArguments", "Plan", "make_plan", "run_comparison"]
