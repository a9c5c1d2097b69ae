"""A grid of images: clean, what the attack added, adversarial."""

from __future__ import annotations

from typing import Any

import numpy as np

from bmtard_hooks.evaluation.report import Example, RobustnessReport
from bmtard_hooks.reporting.drawing import Picture, new_figure, plain, to_png
from bmtard_hooks.reporting.presentation import attack_name, class_name, model_name

MOST_EXAMPLES = 6
ROW_HEIGHT = 1.5
LONGEST_NAME = 17
MIDDLE = 128


def draw_examples(report: RobustnessReport, name: str, dpi: int) -> Picture:
    """Draw the first examples of a report, a row each.

    Args:
        report: with at least one example.
        name: of the picture.
        dpi: pixels per inch.
    """
    examples = report.examples[:MOST_EXAMPLES]
    factor = magnification(examples)
    figure = new_figure(0.3 + ROW_HEIGHT * len(examples))
    grid = figure.subplots(len(examples), 3, squeeze=False)
    for axes, title in zip(grid[0], ("clean", f"perturbation × {factor}", "adversarial"), strict=True):
        axes.set_title(title, fontsize=9)
    told = []
    for line, example in zip(grid, examples, strict=True):
        label, prediction = class_name(report, example.label), class_name(report, example.prediction)
        outcome = f"→ {prediction}" if example.prediction != example.label else f"still {prediction}"
        pictures = (example.clean, magnified(example, factor), example.adversarial)
        words = (label, attack_name(example.attack), outcome)
        for axes, picture, text in zip(line, pictures, words, strict=True):
            _show(axes, picture)
            axes.set_xlabel(plain(text, LONGEST_NAME), fontsize=9)
        told.append(f"image {example.index} {label} {outcome} under {attack_name(example.attack)}")
    title = f"{model_name(report)}: images before and after an attack"
    alt = f"{title}: {'; '.join(told)}. The perturbation is shown {factor} times as strong, grey means no change."
    return Picture(name, title, alt, to_png(figure, dpi))


def magnification(examples: list[Example]) -> int:
    """Find the whole factor by which the strongest perturbation nearly fills the range of bytes."""
    strongest = max(int(np.abs(_difference(example)).max(initial=0)) for example in examples)
    return max(1, (MIDDLE - 1) // strongest) if strongest else 1


def magnified(example: Example, factor: int) -> np.ndarray:
    """Return ``(C, H, W)`` uint8, the perturbation times ``factor`` around middle grey."""
    return np.clip(MIDDLE + factor * _difference(example), 0, 255).astype(np.uint8)


def _difference(example: Example) -> np.ndarray:
    return example.adversarial.astype(np.int64) - example.clean.astype(np.int64)


def _show(axes: Any, picture: np.ndarray) -> None:
    if picture.shape[0] == 3:
        axes.imshow(picture.transpose(1, 2, 0), interpolation="nearest")
    else:
        axes.imshow(picture.mean(axis=0), cmap="gray", vmin=0, vmax=255, interpolation="nearest")
    axes.set(xticks=[], yticks=[])
