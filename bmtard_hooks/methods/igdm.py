"""IGDM: a loss part for any method that matches the student's input gradient with the robust teacher's."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from bmtard_hooks.answers import Answers
from bmtard_hooks.functional import kl_to_teacher, soften
from bmtard_hooks.methods.base import ADVERSARIAL, Batch, Classifier, LossOutput, Method
from bmtard_hooks.state import DistillationState

if TYPE_CHECKING:
    from bmtard_hooks.config import BMTARDConfig

PART = "igdm"


def gradient_matching(
    student_ahead: Tensor, student_behind: Tensor, teacher_ahead: Tensor, teacher_behind: Tensor
) -> Tensor:
    """Compare how the student's and the teacher's logits change along the perturbation.

    Formula: ``KL_i = KL(softmax(z_T(x + d) - z_T(x - d)), softmax(z_S(x + d) - z_S(x - d)))``. The difference is about twice the
    input gradient times ``d``.

    Args:
        student_ahead: ``(B, C)`` logits at ``x + d``.
        student_behind: ``(B, C)`` logits at ``x - d``, which may lie outside [0, 1].
        teacher_ahead: the teacher's, likewise.
        teacher_behind: the teacher's, likewise.

    Returns:
        ``(B,)``: summed over classes, not reduced over the batch; nats.

    Reference: Lee et al., Indirect Gradient Matching for Adversarial Robust Distillation, ICLR 2025.
    """
    return kl_to_teacher(student_ahead - student_behind, soften(teacher_ahead - teacher_behind), log_eps=0.0)


class Recalling:
    """A classifier that remembers its first answer on each batch of images.

    Answers that some methods ask for without gradient, only to move BatchNorm's statistics, are not remembered.

    Args:
        classifier: the classifier.
    """

    def __init__(self, classifier: Classifier) -> None:
        self.classifier = classifier
        self._answers = Answers()
        self._follows = torch.is_grad_enabled()

    def __call__(self, pixels: Tensor) -> Tensor:
        """Ask, and remember."""
        logits = self.classifier(pixels)
        if torch.is_grad_enabled() == self._follows and self._answers.find(pixels) is None:
            self._answers.keep(pixels, logits)
        return logits

    def recall(self, pixels: Tensor) -> Tensor:
        """Return the answer on these very images, or ask now."""
        known = self._answers.find(pixels)
        return self(pixels) if known is None else known


class _IGDM(Method):
    """Adds the part ``igdm`` to a method; its weight grows with the epochs, outside the balance unless ``igdm_balanced``.

    Formula: ``L = L_host + igdm_weight * e / E * L_igdm``, e the epoch from 1 and E their number; the part is averaged over
    the batch and multiplied by the host's ``loss_scale``, so that it has the scale of the host's own KLs.
    """

    def __init__(self, config: BMTARDConfig) -> None:
        super().__init__(config)
        balances = self.balances_losses if config.loss_balance is None else config.loss_balance
        if config.igdm_balanced and not balances:
            raise ValueError(
                f"igdm_balanced=True has nothing to do: method {self.name!r} does not balance its losses; pass "
                "loss_balance=True too"
            )
        if not config.igdm_balanced:
            self.unbalanced = (*self.unbalanced, PART)  # type: ignore[misc]

    @property
    def teachers(self) -> tuple[str, ...]:
        """The host's and the robust one."""
        return tuple(dict.fromkeys((*super().teachers, "robust")))

    @property
    def part_weights(self) -> dict[str, float]:
        """The host's and 1; with ``igdm_balanced`` all balanced parts are equal and sum to 1."""
        host = super().part_weights  # type: ignore[safe-super]
        if not self.config.igdm_balanced:
            return {**host, PART: 1.0}
        balanced = [*(part for part in host if part not in self.unbalanced), PART]
        return {**host, **dict.fromkeys(balanced, 1 / len(balanced))}

    def loss_parts(
        self, student: Classifier, teachers: Mapping[str, Classifier], batch: Batch, state: DistillationState
    ) -> LossOutput:
        """Compute the host's parts, then look to the other side of the image."""
        seen = Recalling(student)
        asked = {name: Recalling(teacher) for name, teacher in teachers.items()}
        output = super().loss_parts(seen, asked, batch, state)  # type: ignore[safe-super]
        matched = look_around(self, seen, asked["robust"], batch)
        output.parts[PART] = self.loss_scale * matched.mean()
        output.coefficients[PART] = (self.config.igdm_weight or 0.0) * ramp(state)
        return output


def look_around(method: Method, student: Recalling, teacher: Recalling, batch: Batch) -> Tensor:
    """Forward student and teacher where they have not answered yet, and compare; returns ``(B,)``."""
    config, images, adversarial = method.config, batch["pixel_values"], batch[ADVERSARIAL]
    delta = adversarial - images
    ahead = adversarial if config.igdm_forward == 1 else images + config.igdm_forward * delta
    behind = images - config.igdm_backward * delta if config.igdm_backward else images
    # detached, because some methods train the teacher
    targets = teacher.recall(ahead).detach(), teacher.recall(behind).detach()
    return gradient_matching(student.recall(ahead), student.recall(behind), *targets)


def ramp(state: DistillationState) -> float:
    """Return the share of the run's epochs that are finished or under way."""
    return min(1.0, (state.epoch + 1) / state.epochs)


def with_igdm(host: type[Method]) -> type[Method]:
    """Make a method's class with IGDM.

    Raises:
        ValueError: if the method has no adversarial images.
    """
    if host.attack is None:
        raise ValueError(f"igdm_weight needs adversarial images, and method {host.name!r} has none")
    return type(f"{host.__name__}WithIGDM", (_IGDM, host), {"name": host.name})
