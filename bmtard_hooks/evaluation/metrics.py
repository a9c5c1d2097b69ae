"""Accuracies from logits."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
from transformers import EvalPrediction
from transformers.trainer_utils import PredictionOutput

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

    Raises:
        FloatingPointError: if a logit is not finite, because its argmax would count as an answer.
    """
    _require_finite("clean", clean_logits)
    if adv_logits is not None:
        _require_finite("adversarial", adv_logits)
    clean = clean_logits.argmax(axis=1) == labels
    metrics = {"clean_accuracy": float(clean.mean())}
    if adv_logits is not None:
        robust = clean & (adv_logits.argmax(axis=1) == labels)
        metrics["robust_accuracy"] = float(robust.mean())
        metrics["w_robust"] = w_robust(metrics["clean_accuracy"], metrics["robust_accuracy"], clean_weight)
    return metrics


def _require_finite(kind: str, logits: np.ndarray) -> None:
    bad = int((~np.isfinite(logits)).any(axis=1).sum())
    if bad:
        raise FloatingPointError(
            f"the model answered {bad} of {len(logits)} {kind} images with logits that are NaN or infinite: expected finite "
            "ones. Check its weights, and, if only adversarial images are concerned, the gradient at its input"
        )


class RobustPrediction(PredictionOutput):
    """What ``predict`` returns: a ``PredictionOutput`` of the clean logits, which also has those of the attacked images.

    Attributes:
        attacked_predictions: ``(N, C)`` logits in the order of ``predictions``, or None without an attack.
    """

    attacked_predictions: np.ndarray | None = None

    @classmethod
    def divide(cls, output: PredictionOutput) -> RobustPrediction:
        """Take what the evaluation loop returned, clean and attacked logits or clean ones alone, apart."""
        logits: Any = output.predictions
        clean, attacked = logits if isinstance(logits, tuple) else (logits, None)
        divided = cls(clean, output.label_ids, output.metrics)
        divided.attacked_predictions = attacked
        return divided


@dataclass(frozen=True)
class RobustMetrics:
    """A ``compute_metrics`` that measures clean and adversarial logits, and adds what a user's own finds in the clean ones.

    Args:
        users: the user's ``compute_metrics``, or None.
        clean_weight: weight of clean accuracy in W-Robust.
    """

    users: Callable[[EvalPrediction], dict[str, Any]] | None
    clean_weight: float

    def __call__(self, prediction: EvalPrediction) -> dict[str, Any]:
        """Split what ``prediction_step`` returned into clean and adversarial logits, and measure both."""
        logits: Any = prediction.predictions
        labels: Any = prediction.label_ids
        clean, adversarial = logits if isinstance(logits, tuple) else (logits, None)
        metrics = robust_metrics(clean, adversarial, labels, self.clean_weight)
        if self.users is None:
            return metrics
        prediction.predictions = clean
        return {**metrics, **self.users(prediction)}


def with_robust_metrics(
    users: Callable[[EvalPrediction], dict[str, Any]] | None, clean_weight: float
) -> RobustMetrics:
    """Add the robust metrics to a user's ``compute_metrics``, which sees the clean logits as it always did.

    Raises:
        TypeError: if ``users`` cannot be called.
    """
    if users is not None and not callable(users):
        raise TypeError(
            f"compute_metrics is {users!r:.40}, a {type(users).__name__}: pass a function from EvalPrediction to a dictionary, or "
            "None for clean accuracy, robust accuracy and W-Robust"
        )
    return RobustMetrics(users, clean_weight)
