"""The library's kernels in a bare loop: what remains of a step without Trainer, callbacks and collator."""

from __future__ import annotations

from collections.abc import Callable, Iterator

import torch
from torch import Tensor

from bmtard_hooks import ImageTensors
from bmtard_hooks.attacks.guard import attack_mode
from bmtard_hooks.attacks.losses import cross_entropy
from bmtard_hooks.attacks.pgd import PGDSettings, pgd
from bmtard_hooks.data import augment
from bmtard_hooks.functional import LOG_EPS, balance_weights, entropy, kl_to_teacher, soften
from bmtard_hooks.models.folding import FoldedClassifier
from bmtard_hooks.models.pixels import PixelClassifier
from step.loops import PADDING, TEMPERATURE_RATE, WEIGHT_RATE
from step.pacing import Phases
from step.scene import Networks, Scene, bare

LOSS_SCALE = 0.1
COMPARED = 8


class SameKernelsLoop:
    """One B-MTARD step after another: channels_last, the library's functions, numbers as tensors on the device.

    Args:
        scene: sizes and device.
        networks: the three models.
        data: the training set.
        phases: told what is going on.
    """

    def __init__(self, scene: Scene, networks: Networks, data: ImageTensors, phases: Phases) -> None:
        self.scene, self.data, self.phases = scene, data, phases
        for network in networks:
            network.to(scene.device).to(memory_format=torch.channels_last)
        self.student = bare(networks.student)
        some = data.pixels(slice(0, COMPARED)).to(scene.device)
        self.copy = FoldedClassifier.checked(networks.student, some)
        self.teachers: dict[str, Callable[[Tensor], Tensor]] = {
            "robust": _frozen(networks.robust_teacher, some),
            "clean": _frozen(networks.clean_teacher, some),
        }
        self.optimizer = torch.optim.SGD(self.student.parameters(), lr=0.1, momentum=0.9, weight_decay=2e-4)
        self.settings = PGDSettings()
        self.generator = torch.Generator(device=scene.device).manual_seed(scene.seed)
        self.temperatures = {name: self._number(1.0) for name in self.teachers}
        self.weights = {name: self._number(0.5) for name in self.teachers}
        self.first_losses: dict[str, Tensor] = {}
        self.batches = self._batches()

    def _number(self, value: float) -> Tensor:
        return torch.tensor(value, dtype=torch.float64, device=self.scene.device)

    def _batches(self) -> Iterator[tuple[Tensor, Tensor]]:
        size, device = self.scene.batch_size, self.scene.device
        order_generator = torch.Generator().manual_seed(self.scene.seed)
        while True:
            order = torch.randperm(len(self.data), generator=order_generator)
            for start in range(0, len(order) - size + 1, size):
                chosen = order[start : start + size]
                images = self.data.images[chosen].to(device).float() / 255
                images = augment(
                    images.contiguous(memory_format=torch.channels_last), "crop_flip", PADDING, self.generator
                )
                yield images, self.data.labels[chosen].to(device)

    def attack(self, images: Tensor, labels: Tensor) -> Tensor:
        """Run PGD-10 on the student in eval mode, or on its folded copy."""
        if self.copy is not None:
            self.copy.refresh()
        attacked = self.copy or self.student
        with attack_mode(self.student):
            return pgd(attacked, images, cross_entropy(labels), self.settings, generator=self.generator)

    def step(self) -> None:
        """Make one training step."""
        part = self.phases.part
        with part("data"):
            images, labels = next(self.batches)
        with part("attack"):
            adversarial = self.attack(images, labels)
        self.student.train()
        losses, entropies = {}, {}
        for name, pixels in (("robust", adversarial), ("clean", images)):
            with part("student"):
                student_logits = self.student(pixels)
            with part("teachers"), torch.no_grad():
                logits = self.teachers[name](pixels)
            with part("student"):
                target = soften(logits, self.temperatures[name])
                losses[name] = LOSS_SCALE * kl_to_teacher(student_logits, target).mean()
                entropies[name] = entropy(target, LOG_EPS).mean()
        with part("balance"):
            self.balance({name: loss.detach() for name, loss in losses.items()}, entropies)
        with part("student"):
            loss = torch.stack([self.weights[name].float() * value for name, value in losses.items()]).sum()
            self.optimizer.zero_grad()
            loss.backward()
            self.optimizer.step()

    def balance(self, losses: dict[str, Tensor], entropies: dict[str, Tensor]) -> None:
        """Move weights for this step and temperatures for the next one, without waiting for the device."""
        names = list(losses)
        values = torch.stack([entropies[name] for name in names]).double()
        directions = torch.sign(values - values.mean())
        for name, direction in zip(names, directions, strict=True):
            self.temperatures[name] = (self.temperatures[name] - TEMPERATURE_RATE * direction).clamp(1, 10)
        self.first_losses = self.first_losses or losses
        relative = torch.stack([losses[name] / self.first_losses[name] for name in names]).double()
        weights = torch.stack([self.weights[name] for name in names])
        moved = weights + WEIGHT_RATE * (balance_weights(relative) - weights)
        self.weights = dict(zip(names, moved.unbind(), strict=True))


def _frozen(teacher: PixelClassifier, pixels: Tensor) -> Callable[[Tensor], Tensor]:
    network = bare(teacher.eval().requires_grad_(False))
    return FoldedClassifier.checked(teacher, pixels) or network
