"""The named attacks of the paper, and lists of them."""

from __future__ import annotations

from bmtard_hooks.attacks.apgd import APGD_CE, APGD_DLR, APGD_T
from bmtard_hooks.attacks.base import Attack
from bmtard_hooks.attacks.fab import FAB_T
from bmtard_hooks.attacks.gradient import CW_INF, FGSM, FGSM_RANDOM_START, PGD_SAT, PGD_TRADES
from bmtard_hooks.attacks.rays import RAYS_100
from bmtard_hooks.attacks.spsa import NES_KWTA, SPSA_PAPER
from bmtard_hooks.attacks.square import SQUARE_100, SQUARE_100_LITERAL, SQUARE_5000

ATTACKS: dict[str, Attack] = {
    "fgsm": FGSM,
    "fgsm_rs": FGSM_RANDOM_START,
    "pgd_sat": PGD_SAT,
    "pgd_trades": PGD_TRADES,
    "cw_inf": CW_INF,
    "apgd_ce": APGD_CE,
    "apgd_dlr": APGD_DLR,
    "apgd_t": APGD_T,
    "fab_t": FAB_T,
    "square_5000": SQUARE_5000,
    "square": SQUARE_100,
    "square_literal": SQUARE_100_LITERAL,
    "rays": RAYS_100,
    "spsa": SPSA_PAPER,
    "nes": NES_KWTA,
}
"""Every attack that needs nothing but the model, by name."""

TRANSFERRED = {"transfer_pgd": PGD_TRADES, "transfer_cw": CW_INF}
"""Attacks that are made on a surrogate model."""

UNIONS = {"autoattack": ("apgd_ce", "apgd_t", "fab_t", "square_5000")}
"""Attacks that are the union of others, each on what the earlier ones left (Croce and Hein 2020)."""

PRESETS: dict[str, tuple[str, ...]] = {
    "paper": (
        "fgsm",
        "pgd_sat",
        "pgd_trades",
        "cw_inf",
        "autoattack",
        "transfer_pgd",
        "transfer_cw",
        "square",
        "square_literal",
        "rays",
        "spsa",
    ),
    "white_box": ("fgsm", "pgd_sat", "pgd_trades", "cw_inf", "autoattack"),
    "black_box": ("transfer_pgd", "transfer_cw", "square", "square_literal", "rays"),
    "quick": ("fgsm", "pgd_sat", "cw_inf", "apgd_t", "square"),
}
"""Lists of attacks by name; ``paper`` is Tables III to VI and the gradient estimation of its section 4.4."""
