"""The arithmetic of B-MTARD as pure functions on tensors: no state, no model, no Trainer."""

from __future__ import annotations

import math

import torch
import torch.nn.functional as F
from torch import Tensor

LOG_EPS = 1e-5
"""Added inside the teacher's logarithm by the authors' code (equations.md, 12 and 21)."""


def soften(logits: Tensor, temperature: Tensor | float = 1.0) -> Tensor:
    """Turn logits into probabilities at a temperature.

    Formula: ``p_k = exp(z_k / T) / sum_j exp(z_j / T)`` (Eq. 5).

    Args:
        logits: ``(B, C)``, any real numbers.
        temperature: ``T > 0``, a number or a 0-dim tensor; higher is softer.

    Returns:
        ``(B, C)`` probabilities, each row sums to 1.
    """
    return F.softmax(logits / temperature, dim=-1)


def kl_to_teacher(student_logits: Tensor, teacher_probs: Tensor, log_eps: float = LOG_EPS) -> Tensor:
    """Measure how far the student is from the teacher, image by image.

    Formula: ``KL_i = sum_k q_ik * (log(q_ik + log_eps) - log softmax(z_i)_k)``. The expectation is under the teacher.
    ``log_eps`` changes the reported value by at most ``C * log_eps`` and never the student's gradient; with 0 it is the
    true Kullback-Leibler divergence.

    Args:
        student_logits: ``(B, C)``, the student's temperature is 1 (authors' code).
        teacher_probs: ``(B, C)``, rows sum to 1.
        log_eps: non-negative number added inside the teacher's logarithm.

    Returns:
        ``(B,)``: summed over classes, not reduced over the batch; nats.

    Reference: Eq. 21 of B-MTARD.
    """
    log_student = F.log_softmax(student_logits, dim=-1)
    negative_entropy = torch.special.xlogy(teacher_probs, teacher_probs + log_eps)
    return (negative_entropy - teacher_probs * log_student).sum(dim=-1)


def kl_between(student_logits: Tensor, target_logits: Tensor) -> Tensor:
    """Compare two predictions when the target needs a gradient too (TRADES).

    Formula: ``KL_i = sum_k p_ik * (log p_ik - log softmax(z_i)_k)`` with ``p = softmax(target_logits)``. Working from logits
    keeps the target's gradient finite where a probability underflows to 0.

    Args:
        student_logits: ``(B, C)``.
        target_logits: ``(B, C)``.

    Returns:
        ``(B,)``: summed over classes, not reduced over the batch; nats.
    """
    log_target = F.log_softmax(target_logits, dim=-1)
    return (log_target.exp() * (log_target - F.log_softmax(student_logits, dim=-1))).sum(dim=-1)


def entropy(probs: Tensor, log_eps: float = 0.0) -> Tensor:
    """Measure how undecided a prediction is.

    Formula: ``H_i = -sum_k p_ik * log(p_ik + log_eps)``, with ``0 log 0 = 0``.

    Args:
        probs: ``(B, C)``, rows sum to 1.
        log_eps: 0 for the true entropy; 1e-5 for what the authors' code compares. With it, a teacher that is certain
            to within 1e-5 gets a slightly negative value.

    Returns:
        ``(B,)`` nats in ``[0, log C]`` (for ``log_eps=0``).
    """
    return -torch.special.xlogy(probs, probs + log_eps).sum(dim=-1)


def renyi_entropy(probs: Tensor, order: float = 1.0) -> Tensor:
    """Measure how undecided a prediction is, by an entropy that weighs likely classes more the higher its order.

    Formula: ``H_i = log(sum_k p_ik ** order + 1e-12) / (1 - order)``; ``-sum_k p_ik * log(p_ik + 1e-12)`` for order 1.

    Args:
        probs: ``(B, C)``, rows sum to 1.
        order: positive; 1 is Shannon's entropy.

    Returns:
        ``(B,)`` nats in ``[0, log C]``.
    """
    if order == 1:
        return entropy(probs, 1e-12)
    return torch.log((probs**order).sum(dim=-1) + 1e-12) / (1 - order)


def knowledge_scale(entropies: Tensor, num_classes: int) -> Tensor:
    """Express an entropy as the teacher's distance from knowing nothing.

    Formula: ``K = log C - H`` (Eq. 7): the KL divergence to the uniform prediction.

    Args:
        entropies: any shape, nats.
        num_classes: ``C``.

    Returns:
        Same shape, nats in ``[0, log C]``.
    """
    return math.log(num_classes) - entropies


def entropy_slope(logits: Tensor, temperature: Tensor | float) -> Tensor:
    """Differentiate the entropy of a softened prediction with respect to its temperature.

    Formula: ``dH/dT = Var_{k~p}(z_k) / T^3 >= 0`` (Eq. 8): entropy never falls as temperature rises.

    Args:
        logits: ``(B, C)``.
        temperature: ``T > 0``.

    Returns:
        ``(B,)``, nats per unit of temperature.
    """
    probs = soften(logits, temperature)
    mean = (probs * logits).sum(dim=-1, keepdim=True)
    return (probs * (logits - mean) ** 2).sum(dim=-1) / temperature**3


def balance_weights(relative_losses: Tensor, power: float = 1.0) -> Tensor:
    """Give each loss the share of the weight that its remaining fraction asks for.

    Formula: ``r_k = L_k^power / sum_j L_j^power`` with relative losses ``L_k`` (Eq. 17 and 18; K = 2 is the paper).

    Args:
        relative_losses: ``(K,)`` non-negative, loss now over loss at the first step.
        power: beta of the paper, 1 by default; larger reacts more sharply.

    Returns:
        ``(K,)`` non-negative, sums to 1; equal shares if every relative loss is 0.
    """
    positive = relative_losses.clamp_min(torch.finfo(relative_losses.dtype).tiny)
    # The largest becomes 1, so that no power overflows or ends at 0 / 0.
    powered = (positive / positive.max()) ** power
    return powered / powered.sum()


def sum_by_class(values: Tensor, labels: Tensor, classes: int) -> Tensor:
    """Add up what belongs to the images of each class; in a fixed order and without asking the device for anything.

    Args:
        values: ``(B,)``.
        labels: ``(B,)`` class indices.
        classes: ``C``.

    Returns:
        ``(C,)`` float64 (float32 where a device lacks it), 0 for a class without images.
    """
    exact = values.detach().to(torch.float32 if values.device.type == "mps" else torch.float64)
    return (F.one_hot(labels, classes) * exact[:, None]).sum(dim=0)


def w_robust(clean_accuracy: float, robust_accuracy: float, clean_weight: float = 0.5) -> float:
    """Combine clean and robust accuracy into the paper's single number.

    Formula: ``W = w * clean + (1 - w) * robust`` (Eq. 22).

    Args:
        clean_accuracy: share in ``[0, 1]`` (or percent, if both are).
        robust_accuracy: the same under a named attack.
        clean_weight: ``w`` in ``[0, 1]``; the paper uses one half.

    Raises:
        ValueError: if ``clean_weight`` is outside ``[0, 1]``.
    """
    if not 0 <= clean_weight <= 1:
        raise ValueError(f"clean_weight={clean_weight} is outside [0, 1]: the robust weight is 1 - clean_weight")
    return clean_weight * clean_accuracy + (1 - clean_weight) * robust_accuracy
