"""Attacks on pixels in [0, 1]: the PGD engine, its objectives, and the guard that leaves no trace."""

from bmtard_hooks.attacks.guard import attack_mode
from bmtard_hooks.attacks.losses import cross_entropy, divergence, margin
from bmtard_hooks.attacks.pgd import PGDSettings, pgd

__all__ = ["PGDSettings", "attack_mode", "cross_entropy", "divergence", "margin", "pgd"]
