"""Whether the first rows of a data set stand for all of it: folders of pictures are sorted by class."""

from __future__ import annotations

import math
from collections.abc import Sequence

UNLIKELY = 0.01
"""Probability below which absent classes are not called an accident."""


def absent_classes(labels: Sequence[int], num_classes: int) -> str | None:
    """Say how many classes the first rows leave out, if they are more than rows in random order would.

    Args:
        labels: of the first rows.
        num_classes: of the whole data set.

    Returns:
        The middle of a sentence, or None.
    """
    count, present = len(labels), len(set(labels))
    left_out = num_classes - present
    # The expected number of sets of as many classes that random rows of classes of equal size leave out, which bounds the
    # probability that there is one; in logarithms, because with thousands of classes it is too large for a float.
    chance = _log_choices(num_classes, left_out) + count * _log(1 - left_out / num_classes)
    if left_out == 0 or chance > math.log(UNLIKELY):
        return None
    return f"the first {count} rows hold {present} of {num_classes} classes, as in a data set sorted by class"


def _log_choices(many: int, chosen: int) -> float:
    return math.lgamma(many + 1) - math.lgamma(chosen + 1) - math.lgamma(many - chosen + 1)


def _log(share: float) -> float:
    return math.log(share) if share > 0 else -math.inf
