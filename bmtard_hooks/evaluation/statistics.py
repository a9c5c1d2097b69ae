"""Errors of accuracies, and comparisons of two models on the same images."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from scipy import stats


def accuracy_error(share: float, images: int) -> float:
    """Compute the standard error of an accuracy over images.

    Formula: ``sqrt(p (1 - p) / n)``.

    Args:
        share: accuracy in [0, 1].
        images: number of images, positive.
    """
    return math.sqrt(share * (1 - share) / images)


def wilson_interval(correct: int, images: int, confidence: float = 0.95) -> tuple[float, float]:
    """Compute Wilson's interval of an accuracy, which stays honest near 0 and 1.

    Args:
        correct: number of correct images.
        images: number of images, positive.
        confidence: in (0, 1).

    Returns:
        Lower and upper end in [0, 1].
    """
    interval = stats.binomtest(correct, images).proportion_ci(confidence, method="wilson")
    return float(interval.low), float(interval.high)


def weighted_outcomes(clean: np.ndarray, robust: np.ndarray, clean_weight: float = 0.5) -> np.ndarray:
    """Give every image its share of W-Robust.

    Formula: ``w_i = w c_i + (1 - w) r_i``; their mean is W-Robust (Eq. 22).

    Args:
        clean: ``(N,)`` bool, correct when clean.
        robust: ``(N,)`` bool, correct clean and attacked.
        clean_weight: ``w`` in [0, 1].

    Returns:
        ``(N,)`` in [0, 1].
    """
    return clean_weight * clean.astype(float) + (1 - clean_weight) * robust.astype(float)


def weighted_error(clean: np.ndarray, robust: np.ndarray, clean_weight: float = 0.5) -> float:
    """Compute the standard error of W-Robust over images.

    Formula: ``sd(w_i) / sqrt(n)``, with the divisor n. Adding the errors of the two accuracies as if they were independent would
    understate it, because an image that is wrong when clean is not robust either.

    Args:
        clean: ``(N,)`` bool.
        robust: ``(N,)`` bool.
        clean_weight: ``w`` in [0, 1].
    """
    return float(weighted_outcomes(clean, robust, clean_weight).std() / math.sqrt(len(clean)))


def per_class_accuracy(labels: np.ndarray, correct: np.ndarray, num_classes: int) -> np.ndarray:
    """Compute the accuracy of every class; NaN for a class without images.

    Args:
        labels: ``(N,)`` true classes.
        correct: ``(N,)`` bool.
        num_classes: ``C``.

    Returns:
        ``(C,)`` in [0, 1].
    """
    images = np.bincount(labels, minlength=num_classes).astype(float)
    hits = np.bincount(labels, weights=correct.astype(float), minlength=num_classes)
    return np.divide(hits, images, out=np.full(num_classes, np.nan), where=images > 0)


@dataclass(frozen=True)
class McNemar:
    """McNemar's exact test of two models on the same images.

    Args:
        only_first: images that only the first model got right.
        only_second: images that only the second got right.
        p_value: two-sided, under the hypothesis that both are equally good.
    """

    only_first: int
    only_second: int
    p_value: float


def mcnemar(first: np.ndarray, second: np.ndarray) -> McNemar:
    """Test whether two models differ, from the images on which just one of them is right.

    Args:
        first: ``(N,)`` bool, the first model's outcomes.
        second: ``(N,)`` bool, the second's on the same images.
    """
    _require_paired(first, second)
    only_first, only_second = int((first & ~second).sum()), int((~first & second).sum())
    total = only_first + only_second
    p_value = float(stats.binomtest(only_first, total).pvalue) if total else 1.0
    return McNemar(only_first, only_second, p_value)


@dataclass(frozen=True)
class Difference:
    """A paired difference of means: its value, standard error and bootstrap interval."""

    value: float
    error: float
    low: float
    high: float


def paired_difference(
    first: np.ndarray, second: np.ndarray, *, resamples: int = 10_000, confidence: float = 0.95, seed: int = 0
) -> Difference:
    """Compare two means over the same images by resampling images.

    Args:
        first: ``(N,)`` numbers of the first model, for example ``weighted_outcomes``.
        second: ``(N,)`` numbers of the second.
        resamples: of the percentile bootstrap.
        confidence: of the interval.
        seed: of the resampling.
    """
    _require_paired(first, second)
    differences = first.astype(float) - second.astype(float)
    error = float(differences.std() / math.sqrt(len(differences)))
    value = float(differences.mean())
    if error == 0:
        return Difference(value, 0.0, value, value)
    # Differences take few distinct values, so that drawing how often each comes up is drawing images, only faster.
    values, counts = np.unique(differences, return_counts=True)
    drawn = np.random.default_rng(seed).multinomial(len(differences), counts / len(differences), size=resamples)
    means = drawn @ values / len(differences)
    tail = (1 - confidence) / 2
    low, high = (float(end) for end in np.quantile(means, [tail, 1 - tail]))
    return Difference(value, error, low, high)


def holm(p_values: Sequence[float]) -> list[float]:
    """Adjust p-values of several comparisons by Holm's step-down rule.

    Args:
        p_values: one per comparison.

    Returns:
        Adjusted values in the same order, each in [0, 1].
    """
    order = np.argsort(p_values)
    adjusted, highest = [0.0] * len(p_values), 0.0
    for rank, position in enumerate(order):
        highest = max(highest, min(1.0, (len(p_values) - rank) * p_values[position]))
        adjusted[position] = highest
    return adjusted


def _require_paired(first: np.ndarray, second: np.ndarray) -> None:
    if first.shape != second.shape or first.ndim != 1 or not len(first):
        raise ValueError(
            f"outcomes of shapes {first.shape} and {second.shape}: pass one number per image, the same images for both"
        )
