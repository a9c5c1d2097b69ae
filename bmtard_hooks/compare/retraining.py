"""How much training again moves a result, and what that means for the error of a difference between two methods."""

from __future__ import annotations

import math
from collections.abc import Iterable
from dataclasses import dataclass

import numpy as np
from scipy import stats

ENOUGH = 3
"""Degrees of freedom from which on the spread between seeds is known well enough to take single images' part out of it."""


@dataclass(frozen=True)
class Retraining:
    """How much the mean of a row over images moves when the row is trained again, taken to be the same for all rows.

    Args:
        variance: between seeds of one row.
        of_images: the part of it that comes from single images, which change sides by chance; it would vanish with many
            images, and is in the error over images too.
        freedom: degrees of freedom behind it, the sum over rows of their seeds less one.
    """

    variance: float
    of_images: float
    freedom: int


def retraining(rows: Iterable[np.ndarray]) -> Retraining | None:
    """Pool the variances between seeds over all rows that were trained more than once.

    Two seeds say little about how much training again moves one row, so all rows together estimate one variance.

    Args:
        rows: of each row ``(S, n)`` numbers, a line per seed, on the same images.

    Returns:
        None if no row has two seeds.
    """
    several = [values for values in rows if len(values) > 1]
    freedom = sum(len(values) - 1 for values in several)
    if not freedom:
        return None
    between = of_images = 0.0
    for values in several:
        means = values.mean(axis=1, keepdims=True)
        between += float(((means - means.mean()) ** 2).sum())
        alone = values - means
        of_images += float(((alone - alone.mean(axis=0)) ** 2).sum()) / values.shape[1] ** 2
    return Retraining(between / freedom, of_images / freedom, freedom)


@dataclass(frozen=True)
class Uncertainty:
    """Of a mean difference.

    Args:
        error: standard error.
        freedom: its degrees of freedom; infinite where only images count.
    """

    error: float
    freedom: float = math.inf

    def p(self, value: float) -> float:
        """Two-sided p-value of Student's t for a difference of ``value``, under the hypothesis that there is none."""
        if self.error <= 0:
            return float(value == 0)
        return float(2 * stats.t.sf(abs(value) / self.error, self.freedom))


def uncertainty(over_images: float, again: Retraining | None, seeds: int, trained: int = 2) -> Uncertainty:
    """Put together what the choice of images and training again do to a difference of two rows.

    Formula: with images and seeds as crossed random factors, ``error^2 = over_images^2 + k / S * (variance - of_images)``
    where ``k`` rows of the pair were trained; the bracket is at least 0. With fewer than three degrees of freedom
    ``of_images`` is not subtracted, because too small a spread would too often pass for none: the error is then rather too
    large. Degrees of freedom: Satterthwaite's, for the variance between seeds alone.

    Args:
        over_images: standard error of the mean difference over images, these models taken as they are.
        again: see ``retraining``; None if nothing was trained twice.
        seeds: ``S``, pairs of runs.
        trained: ``k``, 2 for two students, 1 for a student and a teacher, 0 for two teachers.
    """
    if again is None or not trained:
        return Uncertainty(over_images)
    share = trained / seeds
    common = again.variance - (again.of_images if again.freedom >= ENOUGH else 0.0)
    squared = over_images**2 + share * max(0.0, common)
    of_seeds = share * again.variance
    freedom = again.freedom * (squared / of_seeds) ** 2 if of_seeds > 0 else math.inf
    return Uncertainty(math.sqrt(squared), freedom)
