"""The step as a user would write it from the paper, and the same with torchattacks."""

from __future__ import annotations

from collections.abc import Iterator

import torch
import torch.nn.functional as F
import torchattacks
from torch import Tensor

from bmtard_hooks import ImageTensors
from step.pacing import Phases
from step.scene import Networks, Scene, bare

EPS, STEP_SIZE, STEPS = 8 / 255, 2 / 255, 10
PADDING = 4
LOG_EPS = 1e-5
TEMPERATURE_RATE, WEIGHT_RATE = 0.001, 0.025


class PlainLoop:
    """One B-MTARD step after another: float32, NCHW, numbers as Python floats.

    Args:
        scene: sizes and device.
        networks: the three models.
        data: the training set.
        phases: told what is going on.
    """

    def __init__(self, scene: Scene, networks: Networks, data: ImageTensors, phases: Phases) -> None:
        self.scene, self.phases = scene, phases
        self.images, self.labels = data.images, data.labels
        self.student = bare(networks.student).to(scene.device)
        self.teachers = {
            "robust": bare(networks.robust_teacher).to(scene.device).eval().requires_grad_(False),
            "clean": bare(networks.clean_teacher).to(scene.device).eval().requires_grad_(False),
        }
        self.optimizer = torch.optim.SGD(self.student.parameters(), lr=0.1, momentum=0.9, weight_decay=2e-4)
        self.temperatures = {"robust": 1.0, "clean": 1.0}
        self.weights = {"robust": 0.5, "clean": 0.5}
        self.first_losses: dict[str, float] | None = None
        torch.manual_seed(scene.seed)
        self.batches = self._batches()

    def _batches(self) -> Iterator[tuple[Tensor, Tensor]]:
        size = self.scene.batch_size
        while True:
            order = torch.randperm(len(self.images))
            for start in range(0, len(order) - size + 1, size):
                chosen = order[start : start + size]
                images = self.images[chosen].to(self.scene.device).float() / 255
                yield crop_and_flip(images), self.labels[chosen].to(self.scene.device)

    def attack(self, images: Tensor, labels: Tensor) -> Tensor:
        """Run PGD-10 on the student in eval mode."""
        self.student.eval()
        adversarial = images + 0.001 * torch.randn_like(images)
        for _ in range(STEPS):
            adversarial.requires_grad_(True)
            loss = F.cross_entropy(self.student(adversarial), labels)
            gradient = torch.autograd.grad(loss, adversarial)[0]
            adversarial = adversarial.detach() + STEP_SIZE * gradient.sign()
            adversarial = torch.min(torch.max(adversarial, images - EPS), images + EPS).clamp(0, 1)
        return adversarial.detach()

    def step(self) -> None:
        """Make one training step."""
        part = self.phases.part
        with part("data"):
            images, labels = next(self.batches)
        with part("attack"):
            adversarial = self.attack(images, labels)
        self.student.train()
        losses, negative_entropies = {}, {}
        for name, pixels in (("robust", adversarial), ("clean", images)):
            with part("student"):
                log_student = F.log_softmax(self.student(pixels), dim=1)
            with part("teachers"), torch.no_grad():
                logits = self.teachers[name](pixels)
            with part("student"):
                target = F.softmax(logits / self.temperatures[name], dim=1)
                losses[name] = (target * ((target + LOG_EPS).log() - log_student)).mean()
            with part("balance"):
                negative_entropies[name] = (target * (target + LOG_EPS).log()).mean().item()
        with part("balance"):
            self.balance({name: loss.item() for name, loss in losses.items()}, negative_entropies)
        with part("student"):
            loss = self.weights["robust"] * losses["robust"] + self.weights["clean"] * losses["clean"]
            self.optimizer.zero_grad()
            loss.backward()
            self.optimizer.step()

    def balance(self, losses: dict[str, float], negative_entropies: dict[str, float]) -> None:
        """Move weights for this step and temperatures for the next one."""
        robust, clean = negative_entropies["robust"], negative_entropies["clean"]
        direction = (robust > clean) - (robust < clean)  # the surer teacher has the larger one, and gets warmer
        for name, sign in (("robust", direction), ("clean", -direction)):
            moved = self.temperatures[name] + TEMPERATURE_RATE * sign
            self.temperatures[name] = min(10.0, max(1.0, moved))
        self.first_losses = self.first_losses or losses
        relative = {name: loss / self.first_losses[name] for name, loss in losses.items()}
        for name in self.weights:
            target = relative[name] / sum(relative.values())
            self.weights[name] += WEIGHT_RATE * (target - self.weights[name])


class TorchattacksLoop(PlainLoop):
    """The same with torchattacks' PGD."""

    def __init__(self, scene: Scene, networks: Networks, data: ImageTensors, phases: Phases) -> None:
        super().__init__(scene, networks, data, phases)
        self.foreign = torchattacks.PGD(self.student, eps=EPS, alpha=STEP_SIZE, steps=STEPS)

    def attack(self, images: Tensor, labels: Tensor) -> Tensor:
        """Let torchattacks do it; it sets the mode and puts it back."""
        return self.foreign(images, labels)


def crop_and_flip(images: Tensor) -> Tensor:
    """Cut every image out of its zero-padded self at a random place, and mirror half of them."""
    count, channels, height, width = images.shape
    padded = F.pad(images, (PADDING,) * 4)
    tops = torch.randint(0, 2 * PADDING + 1, (count, 1, 1, 1), device=images.device)
    lefts = torch.randint(0, 2 * PADDING + 1, (count, 1, 1, 1), device=images.device)
    rows = (tops + torch.arange(height, device=images.device).view(1, 1, -1, 1)).expand(-1, channels, -1, width)
    columns = lefts + torch.arange(width, device=images.device).view(1, 1, 1, -1)
    numbers = torch.arange(count, device=images.device).view(-1, 1, 1, 1)
    planes = torch.arange(channels, device=images.device).view(1, -1, 1, 1)
    cropped = padded[numbers, planes, rows, columns]
    mirrored = torch.rand(count, device=images.device) < 0.5
    return torch.where(mirrored.view(-1, 1, 1, 1), cropped.flip(3), cropped)
