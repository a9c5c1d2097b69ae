"""What IAD and AdaIAD share: from some epoch on the student also trusts itself, the more the less it trusts the teacher."""

from __future__ import annotations

from torch import Tensor

from bmtard_hooks.functional import kl_between
from bmtard_hooks.state import DistillationState


def has_begun(state: DistillationState, share: float) -> bool:
    """Tell whether that share of the run's epochs is finished."""
    return state.epoch >= round(share * state.epochs)


def trust(teacher_probs: Tensor, labels: Tensor, power: float) -> Tensor:
    """Measure how far a teacher can be trusted on each image.

    Formula: ``t_i = q_i[y_i] ** power``.

    Args:
        teacher_probs: ``(B, C)`` on adversarial images.
        labels: ``(B,)``.
        power: 0 or more; near 0 every teacher is trusted.

    Returns:
        ``(B,)`` in [0, 1], without gradient.
    """
    return teacher_probs.detach().gather(1, labels[:, None]).squeeze(1) ** power


def introspection(adv_logits: Tensor, clean_logits: Tensor, trusted: Tensor) -> Tensor:
    """Pull the student's adversarial prediction to its own clean one where the teacher is not trusted.

    Formula: ``mean_i (1 - t_i) * KL(S(x_i), S(x_adv_i))``. The gradient flows into both predictions.

    Args:
        adv_logits: ``(B, C)`` of the student.
        clean_logits: ``(B, C)`` of the student.
        trusted: ``(B,)`` in [0, 1].

    Returns:
        0-dim: summed over classes, averaged over the batch.
    """
    return ((1 - trusted) * kl_between(adv_logits, clean_logits)).mean()
