"""Methods by name. Importing this package registers them all."""

from bmtard_hooks.methods.absld import ABSLD
from bmtard_hooks.methods.adaad import AdaAD, AdaIAD
from bmtard_hooks.methods.ard import ARD
from bmtard_hooks.methods.base import Classifier, LossOutput, Method, method_class, method_names, register
from bmtard_hooks.methods.bmtard import BMTARD, MTARD, Baseline
from bmtard_hooks.methods.bmtard_union import BMTARDUnion
from bmtard_hooks.methods.ciard import CIARD
from bmtard_hooks.methods.fair_ard import FairARD
from bmtard_hooks.methods.iad import IAD
from bmtard_hooks.methods.lmtn import LMTN
from bmtard_hooks.methods.making import make_method
from bmtard_hooks.methods.natural import Natural
from bmtard_hooks.methods.rslad import RSLAD
from bmtard_hooks.methods.saad import SAAD
from bmtard_hooks.methods.sat import SAT
from bmtard_hooks.methods.score import SCORE
from bmtard_hooks.methods.trades import TRADES

__all__ = [
    "ABSLD",
    "ARD",
    "BMTARD",
    "CIARD",
    "IAD",
    "LMTN",
    "MTARD",
    "RSLAD",
    "SAAD",
    "SAT",
    "SCORE",
    "TRADES",
    "AdaAD",
    "AdaIAD",
    "BMTARDUnion",
    "Baseline",
    "Classifier",
    "FairARD",
    "LossOutput",
    "Method",
    "Natural",
    "make_method",
    "method_class",
    "method_names",
    "register",
]
