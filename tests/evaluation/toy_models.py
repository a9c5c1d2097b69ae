"""Small classifiers of handwritten digits: two honest ones, and four that only look robust or spoil an attack."""

import numpy as np
import torch
import torch.nn.functional as F
from sklearn.datasets import load_digits
from torch import nn

from bmtard_hooks import ImageTensors
from bmtard_hooks.attacks.guard import attack_mode
from bmtard_hooks.attacks.losses import cross_entropy
from bmtard_hooks.attacks.pgd import PGDSettings, pgd
from bmtard_hooks.models.pixels import PixelClassifier

CONTRAST = 0.25  # so that 8/255 hurts as it does on photographs
TRAINING_IMAGES = 1400
TRAINING_ATTACK = PGDSettings(step_size=3 / 255, steps=5, start="uniform", clip_start=True)


def digits():
    """Tinted, noisy 3x16x16 digits of low contrast, for training and for testing."""
    bunch = load_digits()
    generator = torch.Generator().manual_seed(0)
    order = torch.randperm(len(bunch.target), generator=generator)
    grey = torch.tensor(bunch.images, dtype=torch.float32)[order, None] / 16
    grey = F.interpolate(grey, size=16, mode="bilinear")
    tint = 0.6 + 0.4 * torch.rand((len(grey), 3, 1, 1), generator=generator)
    noise = 0.02 * torch.randn((len(grey), 3, 16, 16), generator=generator)
    pixels = 0.5 + CONTRAST * (grey - 0.5) * tint + noise
    data = ImageTensors((pixels.clamp(0, 1) * 255).round().to(torch.uint8), torch.tensor(bunch.target)[order])
    return data.subset(range(TRAINING_IMAGES)), data.subset(range(TRAINING_IMAGES, len(data)))


class DigitNet(nn.Sequential):
    """Four convolutions."""

    def __init__(self, width=12):
        super().__init__(
            *(nn.Conv2d(3, width, 3, stride=2, padding=1), nn.ReLU()),
            *(nn.Conv2d(width, 2 * width, 3, padding=1), nn.ReLU()),
            *(nn.Conv2d(2 * width, 2 * width, 3, stride=2, padding=1), nn.ReLU()),
            *(nn.Conv2d(2 * width, 2 * width, 3, padding=1), nn.ReLU()),
            *(nn.Flatten(), nn.Linear(2 * width * 16, 10)),
        )


def train(data, *, epochs, adversarial, seed=0, batch_size=50, learning_rate=0.006):
    """Train naturally or on PGD-5; the radius grows over the first third."""
    with torch.random.fork_rng([]):
        torch.manual_seed(seed)
        model = PixelClassifier(DigitNet(), [0.5] * 3, [CONTRAST] * 3)
        steps = epochs * (len(data) // batch_size)
        optimizer = torch.optim.Adam(model.parameters(), learning_rate)
        schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, learning_rate, total_steps=steps)
        for step in range(steps):
            if step % (steps // epochs) == 0:
                order = torch.randperm(len(data))
            chosen = order[step * batch_size % (len(data) // batch_size * batch_size) :][:batch_size]
            images, labels = data.images[chosen].float() / 255, data.labels[chosen]
            if adversarial:
                attack = TRAINING_ATTACK.replace(eps=TRAINING_ATTACK.eps * min(1, 0.1 + 3 * step / steps))
                with attack_mode(model):
                    images = pgd(model, images, cross_entropy(labels), attack)
            loss = F.cross_entropy(model(images), labels)
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            schedule.step()
    return model.eval()


class Wrapped(nn.Module):
    """A classifier with something done before or after it."""

    def __init__(self, inner, before=None, after=None):
        super().__init__()
        self.inner, self.before, self.after = inner, before, after

    def forward(self, pixels):
        logits = self.inner(pixels if self.before is None else self.before(pixels))
        return logits if self.after is None else self.after(logits)


def wrapped(inner, **how):
    return PixelClassifier(Wrapped(inner, **how)).eval()


def make_toys(data):
    """Train the two honest models and make the four others of them; also a second natural one as a surrogate."""
    standard = train(data, epochs=3, adversarial=False)
    robust = train(data, epochs=8, adversarial=True)
    surrogate = train(data, epochs=3, adversarial=False, seed=1)
    return {
        "standard": standard,
        "AT": robust,
        "logits x200": wrapped(standard, after=lambda logits: 200 * logits),
        "rounding": wrapped(standard, before=lambda pixels: (pixels * 31).round() / 31),
        "noise": wrapped(standard, before=lambda pixels: pixels + 0.03 * torch.randn_like(pixels)),
        "softmax": wrapped(robust, after=lambda logits: logits.softmax(dim=1)),
    }, surrogate


def accuracy(model, data):
    with torch.no_grad():
        return float((model(data.images.float() / 255).argmax(dim=1) == data.labels).float().mean())


def fill(report, runner, attacks):
    """Run attacks on every correct image, each a column."""
    for name, attack in attacks.items():
        indices = np.flatnonzero(runner.correct[: attack.images])
        report.outcomes[name] = runner.run(attack, name, indices)
        report.columns[name] = [name]
    return report
