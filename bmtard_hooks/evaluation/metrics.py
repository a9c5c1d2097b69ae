"""Accuracies from logits."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
from transformers import EvalPrediction

from bmtard_hooks.functional import w_robust


def robust_metrics(
    clean_logits: np.ndarray, adv_logits: np.ndarray | None, labels: np.ndarray, clean_weight: float = 0.5
) -> dict[str, float]:
    """Compute clean accuracy, robust accuracy and W-Robust.

    An image counts as robust if it is classified correctly both clean and attacked.

    Args:
        clean_logits: ``(N, C)``.
        adv_logits: ``(N, C)`` for the attacked images, or None without an attack.
        labels: ``(N,)``.
        clean_weight: weight of clean accuracy in W-Robust (Eq. 22).

    Returns:
        ``clean_accuracy`` and, with an attack, ``robust_accuracy`` and ``w_robust``, all in [0, 1].
    """
    clean = clean_logits.argmax(axis=1) == labels
    metrics = {"clean_accuracy": float(clean.mean())}
    if adv_logits is not None:
        robust = clean & (adv_logits.argmax(axis=1) == labels)
        metrics["robust_accuracy"] = float(robust.mean())
        metrics["w_robust"] = w_robust(metrics["clean_accuracy"], metrics["robust_accuracy"], clean_weight)
    return metrics


def with_robust_metrics(
    users: Callable[[EvalPrediction], dict[str, Any]] | None, clean_weight: float
) -> Callable[[EvalPrediction], dict[str, Any]]:
    """Add the robust metrics to a user's ``compute_metrics``, which sees the clean logits as it always did."""

    def compute(prediction: EvalPrediction) -> dict[str, Any]:
        """Split what ``prediction_step`` returned into clean and adversarial logits, and measure both."""
        logits: Any = prediction.predictions
        labels: Any = prediction.label_ids
        clean, adversarial = logits if isinstance(logits, tuple) else (logits, None)
        metrics = robust_metrics(clean, adversarial, labels, clean_weight)
        if users is None:
            return metrics
        prediction.predictions = clean
        return {**metrics, **users(prediction)}

    return compute
