"""What a pair of teachers would do in B-MTARD, before any training: how much each knows, and where they meet."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor, nn

from bmtard_hooks.attacks.guard import attack_mode
from bmtard_hooks.attacks.losses import cross_entropy
from bmtard_hooks.attacks.pgd import PGDSettings, draw_noise_by_image, pgd
from bmtard_hooks.evaluation.attacking import judge
from bmtard_hooks.functional import LOG_EPS, entropy, knowledge_scale, soften
from bmtard_hooks.image_tensors import ImageTensors
from bmtard_hooks.models.create import as_classifier
from bmtard_hooks.models.pixels import PixelClassifier
from bmtard_hooks.models.teachers import try_classifier

Pair = tuple[float, float]
"""A number of the clean teacher and one of the robust teacher."""

ROLES = ("clean", "robust")
CURVE_POINTS = 37
BISECTIONS = 40


@dataclass(frozen=True)
class Meeting:
    """Where the temperatures go if Entropy-Based Balance moves them until the entropies are equal.

    Args:
        temperatures: at the end of the way.
        entropies: there, in nats.
        met: True if the entropies are equal there; False if both temperatures hit their bounds first.
        steps: optimizer steps to get there at a constant rate.
    """

    temperatures: Pair
    entropies: Pair
    met: bool
    steps: int


@dataclass(frozen=True)
class TeacherPreview:
    """What ``preview_teachers`` measured; every pair is (clean teacher, robust teacher).

    Formula: ``K = log C - H`` (Eq. 7), with the clean teacher's mean entropy on clean images and the robust teacher's on
    adversarial ones. The robust teacher's numbers are an approximation of what happens in training, where the images are
    made against the student: on images made against itself it is usually less sure and less accurate.

    Args:
        images: number of images.
        num_classes: ``C``.
        accuracies: of the clean teacher on clean images and of the robust teacher on adversarial ones, in [0, 1].
        temperatures: at the start.
        entropies: mean entropy at the start, in nats.
        meeting: where the temperatures meet.
        curve: ``(temperature, clean teacher's entropy, robust teacher's entropy)`` over the allowed temperatures.
        rate: step of a temperature per optimizer step.
        bounds: lowest and highest temperature.
        attacked: what the adversarial images were made against.

    Reference: Table I and section 3.3 of B-MTARD.
    """

    images: int
    num_classes: int
    accuracies: Pair
    temperatures: Pair
    entropies: Pair
    meeting: Meeting
    curve: list[tuple[float, float, float]]
    rate: float
    bounds: Pair
    attacked: str

    def knowledge_scales(self, entropies: Pair) -> Pair:
        """Turn entropies into knowledge scales (Eq. 7)."""
        clean, robust = knowledge_scale(torch.tensor(entropies, dtype=torch.float64), self.num_classes).tolist()
        return clean, robust

    def to_markdown(self) -> str:
        """Write the paper's Table I for these teachers, and where their temperatures meet."""
        before, after = self.knowledge_scales(self.entropies), self.knowledge_scales(self.meeting.entropies)
        lines = [
            "| teacher | sees | accuracy | temperature | entropy | knowledge scale | temperature after | entropy after "
            "| knowledge scale after |",
            "|---|---|---:|---:|---:|---:|---:|---:|---:|",
        ]
        for index, (role, sees) in enumerate(zip(ROLES, ("clean images", "adversarial images"), strict=True)):
            numbers = (
                f"{100 * self.accuracies[index]:.2f} %",
                f"{self.temperatures[index]:.3f}",
                f"{self.entropies[index]:.4f}",
                f"{before[index]:.4f}",
                f"{self.meeting.temperatures[index]:.3f}",
                f"{self.meeting.entropies[index]:.4f}",
                f"{after[index]:.4f}",
            )
            lines.append(f"| {role} | {sees} | {' | '.join(numbers)} |")
        lines += ["", self._verdict(), *self._doubts(), "", self._origin()]
        return "\n".join(lines)

    def _verdict(self) -> str:
        (clean, robust), low_high = self.meeting.temperatures, f"[{self.bounds[0]:g}, {self.bounds[1]:g}]"
        pace = f"{self.meeting.steps:,} optimizer steps of {self.rate:g}"
        if self.meeting.met:
            return (
                f"The entropies meet at temperatures {clean:.3f} (clean) and {robust:.3f} (robust), after {pace} at a "
                "constant rate; with a schedule that lowers the rate it takes longer."
            )
        gap = abs(self.meeting.entropies[0] - self.meeting.entropies[1])
        return (
            f"The entropies do not meet within {low_high}: after {pace} the temperatures stay at {clean:.3f} (clean) and "
            f"{robust:.3f} (robust), {gap:.4f} nats apart. Widen the bounds or choose another pair of teachers."
        )

    def _doubts(self) -> list[str]:
        robust = self.accuracies[1]
        if robust > 1 / self.num_classes:
            return []
        return ["", f"The robust teacher is right on {100 * robust:.1f} % of attacked images: are the two exchanged?"]

    def _origin(self) -> str:
        return (
            f"{self.images} images in nats, log C = {math.log(self.num_classes):.4f}; adversarial images from an attack on "
            f"{self.attacked}, in place of the student. Training attacks the student as it is at each step, so its entropies on adversarial images, "
            "and the meeting, will be near these and not equal to them."
        )


def preview_teachers(
    clean_teacher: nn.Module,
    robust_teacher: nn.Module,
    data: ImageTensors,
    *,
    temperatures: Pair = (1.0, 1.0),
    attack: PGDSettings = PGDSettings(),
    attacked: nn.Module | None = None,
    images: int | None = None,
    min_temperature: float = 1.0,
    max_temperature: float = 10.0,
    rate: float = 0.001,
    batch_size: int = 256,
    seed: int = 42,
    device: torch.device | str = "cpu",
    progress: Callable[[int], None] | None = None,
) -> TeacherPreview:
    """Measure how much two teachers know, without training, and where Entropy-Based Balance takes their temperatures.

    Training attacks the student, which does not exist yet. Here ``attacked`` stands for it, by default the robust teacher
    itself; that is an approximation, see ``TeacherPreview``.

    Args:
        clean_teacher: pixels in [0, 1] to logits; its mode is restored.
        robust_teacher: the same, with as many classes.
        data: the images, best those of the training set.
        temperatures: at the start, of the clean and of the robust teacher.
        attack: the training attack, with cross-entropy and the attacked model in eval mode.
        attacked: the model that is attacked instead of the student, for example a student trained otherwise.
        images: use only the first so many; None for all.
        min_temperature: lower bound of the temperatures, positive.
        max_temperature: upper bound.
        rate: step of a temperature per optimizer step, positive.
        batch_size: images at a time; does not change the result.
        seed: of the attack's start noise, each image's own.
        device: where to compute.
        progress: called with the number of images done.

    Raises:
        ValueError: for temperatures outside the bounds, a rate that is not positive, no images, models that cannot take them
            or differ in classes, and logits that are NaN or infinite.
    """
    bounds = (min_temperature, max_temperature)
    _check(temperatures, bounds, rate)
    chosen = data if images is None else data.subset(range(min(images, len(data))))
    models = [as_classifier(model).to(device) for model in (clean_teacher, robust_teacher, attacked or robust_teacher)]
    logits = _answers(models, chosen, attack, batch_size, seed, progress)
    name = "the model that was given" if attacked is not None else "the robust teacher itself"
    return _summarise(logits, chosen.labels, temperatures, bounds, rate, name)


def _summarise(
    logits: Sequence[Tensor], labels: Tensor, temperatures: Pair, bounds: Pair, rate: float, attacked: str
) -> TeacherPreview:
    def entropies(clean: float, robust: float) -> Pair:
        softened = [soften(answer, value) for answer, value in zip(logits, (clean, robust), strict=True)]
        values = [float(entropy(probs, LOG_EPS).mean()) for probs in softened]  # as training compares them
        return values[0], values[1]

    right = [float((answer.argmax(dim=1) == labels).double().mean()) for answer in logits]
    grid = np.unique(np.linspace(*bounds, CURVE_POINTS)).tolist()
    return TeacherPreview(
        images=len(labels),
        num_classes=logits[0].shape[1],
        accuracies=(right[0], right[1]),
        temperatures=temperatures,
        entropies=entropies(*temperatures),
        meeting=find_meeting(entropies, temperatures, bounds, rate),
        curve=[(temperature, *entropies(temperature, temperature)) for temperature in grid],
        rate=rate,
        bounds=bounds,
        attacked=attacked,
    )


def find_meeting(entropies: Callable[[float, float], Pair], start: Pair, bounds: Pair, rate: float) -> Meeting:
    """Follow two temperatures until the entropies are equal or both temperatures have hit their bounds.

    The surer teacher's temperature rises, the other's falls by equal steps, each stopping at its bound (Eq. 12 and 13).
    Entropy rises with temperature (Eq. 8), so the gap shrinks all the way and can be bisected.

    Args:
        entropies: maps the temperatures of the clean and the robust teacher to their entropies.
        start: temperatures to start from, within the bounds.
        bounds: lowest and highest temperature.
        rate: length of one step.
    """
    low, high = bounds
    clean, robust = entropies(*start)
    sign = 1.0 if clean < robust else -1.0  # the surer teacher's temperature rises

    def at(way: float) -> Pair:
        moved = (start[0] + sign * way, start[1] - sign * way)
        return min(max(moved[0], low), high), min(max(moved[1], low), high)

    def gap(way: float) -> float:
        now = entropies(*at(way))
        return sign * (now[1] - now[0])

    longest = max(high - start[0], start[1] - low) if sign > 0 else max(start[0] - low, high - start[1])
    met = gap(0.0) == 0 or gap(longest) <= 0
    near, far = 0.0, longest if gap(0.0) != 0 else 0.0
    for _ in range(BISECTIONS if met else 0):
        middle = (near + far) / 2
        near, far = (middle, far) if gap(middle) > 0 else (near, middle)
    return Meeting(at(far), entropies(*at(far)), met, math.ceil(far / rate - 1e-9))


def _answers(
    models: Sequence[PixelClassifier],
    data: ImageTensors,
    attack: PGDSettings,
    batch_size: int,
    seed: int,
    progress: Callable[[int], None] | None,
) -> list[Tensor]:
    clean, robust, victim = models
    answers: list[list[Tensor]] = [[], []]
    device = next(clean.parameters(), torch.empty(0)).device
    _try_models(models, data, device)
    with attack_mode(clean), attack_mode(robust), attack_mode(victim):
        for start in range(0, len(data), batch_size):
            indices = range(start, min(start + batch_size, len(data)))
            pixels = (data.images[indices.start : indices.stop].float() / 255).to(device)
            pixels = pixels.contiguous(memory_format=torch.channels_last)
            labels = data.labels[indices.start : indices.stop].to(device)
            noise = draw_noise_by_image(indices, pixels.shape[1:], attack, seed, "preview")
            adversarial = pgd(victim, pixels, cross_entropy(labels), attack, noise=noise)
            for teacher, seen, answer in zip((clean, robust), (pixels, adversarial), answers, strict=True):
                answer.append(judge(teacher, seen).cpu().double())
            if progress is not None:
                progress(indices.stop)
    return [torch.cat(answer) for answer in answers]


def _try_models(models: Sequence[PixelClassifier], data: ImageTensors, device: torch.device) -> None:
    if not len(data):
        raise ValueError("there are no images: pass at least one, and images=None or a positive number")
    pixels = data.images[:1].to(device).float() / 255
    names = ("clean teacher", "robust teacher", "attacked model")
    classes = [try_classifier(name, model, pixels)[1] for name, model in zip(names, models, strict=True)]
    if len(set(classes)) > 1:
        told = ", ".join(f"{name} {count}" for name, count in zip(names, classes, strict=True))
        raise ValueError(f"the models differ in their number of classes: {told}; they must agree")
    if int(data.labels.max()) >= classes[0]:
        raise ValueError(
            f"a label is {int(data.labels.max())}, but the models have {classes[0]} classes: 0 to {classes[0] - 1}"
        )


def _check(temperatures: Pair, bounds: Pair, rate: float) -> None:
    low, high = bounds
    if not 0 < low <= high:
        raise ValueError(f"temperature bounds [{low}, {high}] are crossed or not positive: the paper has [1, 10]")
    for role, value in zip(ROLES, temperatures, strict=True):
        if not low <= value <= high:
            raise ValueError(
                f"the {role} teacher's temperature {value} is outside [{low}, {high}]: move it or the bounds"
            )
    if not rate > 0:
        raise ValueError(f"rate={rate}: pass a positive step of the temperatures, the paper has 0.001")
