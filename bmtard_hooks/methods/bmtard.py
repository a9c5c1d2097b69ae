"""B-MTARD, and the paper's ablations of it: each teacher answers on the images it is good at."""

from __future__ import annotations

from collections.abc import Mapping
from typing import ClassVar

from bmtard_hooks.functional import entropy, kl_to_teacher, soften
from bmtard_hooks.methods.base import Batch, Classifier, LossOutput, Method, register
from bmtard_hooks.state import DistillationState


@register("bmtard")
class BMTARD(Method):
    """Balanced multi-teacher adversarial robustness distillation.

    Formula: ``L = w_robust * KL(T_robust(x_adv; tau_robust), S(x_adv)) + w_clean * KL(T_clean(x; tau_clean), S(x))``
    (Eq. 21), each KL summed over classes, averaged over the batch and multiplied by ``loss_scale``.

    Reference: Zhao, Wang, Wei, TPAMI 2024.
    """

    balances_entropy = True
    balances_losses = True
    views: ClassVar[Mapping[str, str]] = {"robust": "adv_pixel_values", "clean": "pixel_values"}
    """Which images each teacher and the student see for each part, in the order of the student's forwards."""

    @property
    def teachers(self) -> tuple[str, ...]:
        """One teacher per loss part."""
        return tuple(self.views)

    @property
    def part_weights(self) -> dict[str, float]:
        """Equal weights that sum to 1."""
        return dict.fromkeys(self.views, 1 / len(self.views))

    def temperatures(self) -> dict[str, float]:
        """Start at the configured temperatures."""
        given = {"robust": self.config.robust_temperature, "clean": self.config.clean_temperature}
        return {teacher: given.get(teacher, 1.0) for teacher in self.teachers}

    def loss_parts(
        self, student: Classifier, teachers: Mapping[str, Classifier], batch: Batch, state: DistillationState
    ) -> LossOutput:
        """Compare the student with each teacher on that teacher's images."""
        # the teachers first: their large feature maps are gone before the student's, kept for the backward, come to be
        targets = {
            part: soften(teachers[part](batch[view]), state.temperatures[part]) for part, view in self.views.items()
        }
        output = LossOutput({})
        for part, view in self.views.items():
            kl = kl_to_teacher(student(batch[view]), targets[part], self.config.log_eps)
            output.parts[part] = self.loss_scale * kl.mean()
            output.entropies[part] = entropy(targets[part], self.config.log_eps).mean()
        return output


@register("mtard")
class MTARD(BMTARD):
    """MTARD: the loss weights move, the temperatures stay (ECCV 2022)."""

    balances_entropy = False


@register("baseline")
class Baseline(BMTARD):
    """The ablations' starting point: two teachers, fixed temperatures and weights (Eq. 3)."""

    balances_entropy = False
    balances_losses = False
