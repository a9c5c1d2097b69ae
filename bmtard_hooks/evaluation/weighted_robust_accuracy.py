"""W-Robust as a metric of the ``evaluate`` library; needs no network.

Either ``WeightedRobustAccuracy()``, or ``evaluate.load(PATH)`` with the path of this file.
"""

from __future__ import annotations

from typing import Any

import datasets
import evaluate
import numpy as np

from bmtard_hooks.evaluation.statistics import per_class_accuracy, weighted_error
from bmtard_hooks.functional import w_robust

# evaluate.load takes the first metric class it finds among this file's names. So none may be imported by name.

DESCRIPTION = """
W-Robust weighs accuracy on clean images against accuracy on attacked ones:
clean_weight * clean_accuracy + (1 - clean_weight) * robust_accuracy.
An image counts as robust only if it is classified correctly both clean and attacked.
"""

INPUTS = """
Args:
    predictions (list of int): classes predicted for the clean images.
    adversarial_predictions (list of int): classes predicted for the same images under attack, in the same order.
    references (list of int): true classes, 0 or more.
    clean_weight (float): weight of clean accuracy in [0, 1], 0.5 if it was not given to the constructor either.

Returns:
    clean_accuracy, robust_accuracy, w_robust (shares in [0, 1]), w_robust_error (standard error over images),
    worst_class_robust_accuracy (over the classes among the references).

Example:
    >>> metric = WeightedRobustAccuracy()
    >>> metric.compute(predictions=[0, 1, 1], adversarial_predictions=[0, 0, 1], references=[0, 1, 1])["w_robust"]
    0.8333333333333333
"""

CITATION = """
@article{zhao2024mitigating,
  title={Mitigating Accuracy-Robustness Trade-off via Balanced Multi-Teacher Adversarial Distillation},
  author={Zhao, Shiji and Wang, Xizhe and Wei, Xingxing},
  journal={IEEE Transactions on Pattern Analysis and Machine Intelligence},
  year={2024}
}
"""


class WeightedRobustAccuracy(evaluate.Metric):
    """Compute clean accuracy, robust accuracy and W-Robust from predicted classes.

    Formula: ``W = w * clean + (1 - w) * robust`` (Eq. 22).

    In ``evaluate.combine`` add the predictions with ``add_batch`` and call ``compute()`` without arguments, because it
    passes those on to every metric, and the others do not know ``adversarial_predictions``.

    Args:
        *args: see ``evaluate.Metric``.
        clean_weight: ``w`` in [0, 1], unless ``compute`` is given another.
        **kwargs: see ``evaluate.Metric``.

    Raises:
        ValueError: from ``compute``, for a weight outside [0, 1], a reference that is not a class, or inputs that differ in
            length.

    Reference: Zhao, Wang, Wei: Mitigating Accuracy-Robustness Trade-off via Balanced Multi-Teacher Adversarial
        Distillation, TPAMI 2024.
    """

    def __init__(self, *args: Any, clean_weight: float = 0.5, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self.clean_weight = clean_weight

    def _info(self) -> evaluate.MetricInfo:
        names = ("predictions", "adversarial_predictions", "references")
        return evaluate.MetricInfo(
            description=DESCRIPTION,
            citation=CITATION,
            inputs_description=INPUTS,
            features=datasets.Features({name: datasets.Value("int64") for name in names}),
        )

    def _compute(
        self, predictions: Any, adversarial_predictions: Any, references: Any, clean_weight: float | None = None
    ) -> dict[str, float]:
        weight = self.clean_weight if clean_weight is None else clean_weight
        # evaluate passes lists or, before 0.4.6, columns of a data set; slicing reads both.
        labels = np.asarray(references[:])
        if labels.min() < 0:
            raise ValueError(f"a reference is {labels.min()}: classes are 0 or more, leave images without a label out")
        clean = np.asarray(predictions[:]) == labels
        robust = clean & (np.asarray(adversarial_predictions[:]) == labels)
        clean_accuracy, robust_accuracy = float(clean.mean()), float(robust.mean())
        return {
            "clean_accuracy": clean_accuracy,
            "robust_accuracy": robust_accuracy,
            "w_robust": w_robust(clean_accuracy, robust_accuracy, weight),
            "w_robust_error": weighted_error(clean, robust, weight),
            "worst_class_robust_accuracy": float(np.nanmin(per_class_accuracy(labels, robust, int(labels.max()) + 1))),
        }
