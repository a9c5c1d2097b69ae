"""Archives of comparisons that never took place, and the way to the benchmarks' package for the tests of it."""

import sys
from pathlib import Path

import numpy as np

from bmtard_hooks.evaluation.report import AttackOutcome, RobustnessReport

ROOT = Path(__file__).parents[2]
sys.path.insert(0, str(ROOT / "benchmarks"))

from claims.archive import Archive  # noqa: E402

IMAGES = 2000


def report(clean, robust, seed):
    """A model that is right on a share of the images, and stays right on a share."""
    order = np.random.default_rng([seed, round(1000 * clean)]).permutation(IMAGES)
    right, left = order < clean * IMAGES, order < robust * IMAGES
    return RobustnessReport(
        model="m",
        dataset="d",
        labels=np.zeros(IMAGES, dtype=int),
        predictions=np.where(right, 0, 1),
        num_classes=2,
        label_names=None,
        outcomes={"pgd_trades": AttackOutcome({"norm": "linf", "eps": 8 / 255}, right, right & ~left)},
        columns={"pgd_trades": ["pgd_trades"]},
    )


def archive(shares, logs=None):
    """Label to (clean, robust) of a row with two seeds."""
    rows = [{"label": label, "method": label.split("+")[0], "options": {}} for label in shares]
    reports = {label: {seed: report(*pair, seed) for seed in (0, 1)} for label, pair in shares.items()}
    return Archive(Path("."), {"rows": rows, "columns": ["pgd_trades"]}, reports, logs or {})


def verdict_of(found, words):
    return next(verdict for verdict in found if words in verdict.claim)
