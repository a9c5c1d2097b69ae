"""CIARD: B-MTARD with a robust teacher that goes on learning and a push away from the fooled clean one."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

import torch
import torch.nn.functional as F
from torch import Tensor

from bmtard_hooks.callbacks.base import DistillationCallback
from bmtard_hooks.callbacks.entropy_balance import EntropyBalance
from bmtard_hooks.callbacks.loss_balance import LossBalance
from bmtard_hooks.callbacks.push_scale import PushScale
from bmtard_hooks.callbacks.teacher_training import TeacherTraining
from bmtard_hooks.distributed import average_over_ranks
from bmtard_hooks.functional import entropy, kl_to_teacher, soften
from bmtard_hooks.methods.base import Batch, Classifier, LossOutput, Method, register
from bmtard_hooks.state import DistillationState

if TYPE_CHECKING:
    from bmtard_hooks.config import BMTARDConfig

RATE_EPOCHS = (215, 260, 285)
"""Epochs of 300, from 1, in which (or after which) the balance rates shrink."""


@register("ciard")
class CIARD(Method):
    """Cyclic iterative adversarial robustness distillation.

    Formula: ``L = L_robust + L_clean - c * P`` with B-MTARD's two losses, and ``P`` the mean KL from the clean teacher to the
    student (its temperature ``ciard_push_temperature``) over those adversarial images of the step that fool the clean teacher.
    ``c`` is the power of ten that gives ``P`` the order of the smaller loss, see ``PushScale``. The robust teacher is in training mode, so its targets use
    batch statistics, and learns from the cross-entropy on the student's adversarial images after a sixth of the run.

    The student sees the clean images before the attack, which therefore knows their BatchNorm statistics. ``ciard_weighted``
    weighs the two losses by Normalization Loss Balance as the first release did; the newest one adds them up.

    Reference: ICCV 2025, the authors' released code.
    """

    balances_entropy = True
    unbalanced = ("push", "teacher")
    trained_teachers = ("robust",)

    def __init__(self, config: BMTARDConfig) -> None:
        super().__init__(config)
        self.balances_losses = config.ciard_weighted  # type: ignore[misc]

    @property
    def teachers(self) -> tuple[str, ...]:
        """Both."""
        return ("robust", "clean")

    @property
    def part_weights(self) -> dict[str, float]:
        """One each, or one half with ``ciard_weighted``; that of the push is known only with the losses."""
        each = 0.5 if self.config.ciard_weighted else 1.0
        return {"robust": each, "clean": each, "push": 0.0, "teacher": 1.0}

    def temperatures(self) -> dict[str, float]:
        """Start at the configured temperatures."""
        return {"robust": self.config.robust_temperature, "clean": self.config.clean_temperature}

    def before_attack(
        self, student: Classifier, teachers: Mapping[str, Classifier], batch: Batch, state: DistillationState
    ) -> dict[str, Tensor]:
        """Show the clean images to the student and to the robust teacher, whose answer is not used."""
        with torch.no_grad():
            teachers["robust"](batch["pixel_values"])
        return {"clean_logits": student(batch["pixel_values"])}

    def prepare(
        self, teachers: Mapping[str, Classifier], batches: Sequence[Batch], state: DistillationState
    ) -> Sequence[Batch]:
        """Find the images that fool the clean teacher; how many they are is averaged over the whole step."""
        fooled = [teachers["clean"](batch["adv_pixel_values"]).argmax(dim=1) != batch["labels"] for batch in batches]
        share = torch.stack([images.float().mean() for images in fooled]).mean()
        share = average_over_ranks({"fooled": share})["fooled"]
        return [
            {**batch, "fooled": images, "fooled_share": share} for batch, images in zip(batches, fooled, strict=True)
        ]

    def loss_parts(
        self, student: Classifier, teachers: Mapping[str, Classifier], batch: Batch, state: DistillationState
    ) -> LossOutput:
        """Compare, push, and teach the teacher."""
        images, adversarial, labels = batch["pixel_values"], batch["adv_pixel_values"], batch["labels"]
        adv_logits, learns = student(adversarial), teacher_learns(state)
        with torch.set_grad_enabled(learns and torch.is_grad_enabled()):
            robust_logits = teachers["robust"](adversarial)
        # the clean logits are gone if the weights have moved since
        clean_logits = batch["clean_logits"] if "clean_logits" in batch else student(images)
        output = LossOutput({}, coefficients={"teacher": float(learns), "push": -self.config.ciard_push_weight})
        for part, logits, teacher_logits in (
            ("robust", adv_logits, robust_logits.detach()),
            ("clean", clean_logits, teachers["clean"](images)),
        ):
            target = soften(teacher_logits, state.temperatures[part])
            output.parts[part] = self.loss_scale * kl_to_teacher(logits, target, self.config.log_eps).mean()
            output.entropies[part] = entropy(target, self.config.log_eps).mean()
        output.parts["push"] = self._push(adv_logits, teachers["clean"](adversarial), batch)
        output.parts["teacher"] = F.cross_entropy(robust_logits, labels)
        return output

    def _push(self, adv_logits: Tensor, teacher_logits: Tensor, batch: Batch) -> Tensor:
        softer = adv_logits / self.config.ciard_push_temperature
        kl = kl_to_teacher(softer, soften(teacher_logits), self.config.log_eps)
        share = torch.where(batch["fooled_share"] > 0, batch["fooled_share"], 1).to(kl.dtype)
        return self.loss_scale * torch.where(batch["fooled"], kl, 0).mean() / share

    def lr_factor(self, epoch: int, epochs: float) -> float:
        """Stay constant for half of the run, then fall like a cosine to 0 in the last epoch."""
        return 1.0 if epoch + 1 < epochs / 2 else decay(epoch + 1, epochs / 2, epochs)

    def callbacks(self) -> list[DistillationCallback]:
        """B-MTARD's balance at rates of its own, and the training of the robust teacher."""
        config = self.config
        callbacks = super().callbacks()
        for callback in callbacks:
            if isinstance(callback, EntropyBalance | LossBalance) and config.balance_follows_lr:
                callback.schedule = self.rate_factor
        optimizer = (config.ciard_teacher_lr, config.ciard_teacher_momentum, config.ciard_teacher_weight_decay)
        return [*callbacks, PushScale(), TeacherTraining("robust", *optimizer, teacher_lr_factor, teacher_learns)]

    def rate_factor(self, state: Any) -> float:
        """Return the factor on the balance rates in the step after ``global_step`` finished ones."""
        per_epoch = state.max_steps / 300
        if not self.config.ciard_rates_per_step:
            return 0.1 ** sum(state.global_step >= round(epoch * per_epoch) for epoch in RATE_EPOCHS)
        done = sum(
            min(max(state.global_step - round((epoch - 1) * per_epoch), 0), max(round(per_epoch), 1))
            for epoch in RATE_EPOCHS
        )
        return 0.1 ** min(done, 300)


def decay(epoch: float, begin: float, end: float) -> float:
    """Fall from 1 at ``begin`` to 0 at ``end``: half a cosine times a slow exponential; epochs count from 1."""
    share = (epoch - begin) / (end - begin)
    return (0.5 + 0.5 * math.cos(math.pi * share)) * math.exp(-0.01 * share**2)


def teacher_lr_factor(epoch: int, epochs: float) -> float:
    """Return the factor on the teacher's rate: 0 in the first sixth of the run, then a decay to 0. ``epoch`` is 0-based."""
    begin = epochs / 6
    return 0.0 if epoch + 1 < begin else decay(epoch + 1, begin, epochs)


def teacher_learns(state: DistillationState) -> bool:
    """Tell whether the teacher's weights move in this epoch: after the first sixth of the run."""
    return state.epoch + 1 > state.epochs / 6
