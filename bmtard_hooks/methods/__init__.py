"""Methods by name. Importing this package registers them all."""

from bmtard_hooks.methods.base import LossOutput, Method, method_class, method_names, register
from bmtard_hooks.methods.bmtard import BMTARD, MTARD, Baseline
from bmtard_hooks.methods.natural import Natural
from bmtard_hooks.methods.sat import SAT
from bmtard_hooks.methods.trades import TRADES

__all__ = [
    "BMTARD",
    "MTARD",
    "SAT",
    "TRADES",
    "Baseline",
    "LossOutput",
    "Method",
    "Natural",
    "method_class",
    "method_names",
    "register",
]
