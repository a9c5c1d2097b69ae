"""LMTN: the mean of both teachers' logits is the target."""

from __future__ import annotations

from collections.abc import Mapping

from bmtard_hooks.functional import kl_to_teacher, soften
from bmtard_hooks.methods.base import Batch, Classifier, LossOutput, Method, register
from bmtard_hooks.state import DistillationState


@register("lmtn")
class LMTN(Method):
    """Learning from multiple teacher networks, inside adversarial training.

    Formula: ``L = 1/2 * KL(softmax(m(x_adv)), S(x_adv)) + 1/2 * KL(softmax(m(x)), S(x))`` with ``m`` the mean of the clean
    and the robust teacher's logits; each KL summed over classes, averaged over the batch and multiplied by
    ``loss_scale``. With ``lmtn_teacher_input=clean`` the first target is ``m(x)`` too. No code of this comparison is
    published: both weights of one half are this library's reading of the paper.

    Reference: You et al., Learning from Multiple Teacher Networks, KDD 2017, as used by Zhao, Wang, Wei, TPAMI 2024.
    """

    @property
    def teachers(self) -> tuple[str, ...]:
        """Both."""
        return ("robust", "clean")

    @property
    def part_weights(self) -> dict[str, float]:
        """Equal."""
        return {"robust": 0.5, "clean": 0.5}

    def loss_parts(
        self, student: Classifier, teachers: Mapping[str, Classifier], batch: Batch, state: DistillationState
    ) -> LossOutput:
        """Forward in B-MTARD's order: adversarial, clean."""
        output, targets = LossOutput({}), {}
        for part, view in (("robust", "adv_pixel_values"), ("clean", "pixel_values")):
            student_logits = student(batch[view])
            asked = "pixel_values" if self.config.lmtn_teacher_input == "clean" else view
            if asked not in targets:
                targets[asked] = soften((teachers["clean"](batch[asked]) + teachers["robust"](batch[asked])) / 2)
            kl = kl_to_teacher(student_logits, targets[asked], self.config.log_eps)
            output.parts[part] = self.loss_scale * kl.mean()
        return output
