"""Clean and PGD accuracy of any pixel-space classifier, and a table of several."""

from __future__ import annotations

from collections.abc import Callable, Mapping

import numpy as np
import torch
from torch import Tensor, nn

from bmtard_hooks.attacks.guard import attack_mode
from bmtard_hooks.attacks.losses import cross_entropy
from bmtard_hooks.attacks.pgd import PGDSettings, draw_noise_by_image, pgd
from bmtard_hooks.evaluation.metrics import robust_metrics
from bmtard_hooks.image_tensors import ImageTensors


def pgd_accuracy(
    model: nn.Module,
    data: ImageTensors,
    settings: PGDSettings,
    *,
    batch_size: int = 256,
    seed: int = 42,
    device: torch.device | str = "cpu",
    progress: Callable[[int], None] | None = None,
) -> dict[str, float]:
    """Attack every image of a data set once, in float32, with the noise of ``BMTARDTrainer.evaluate``.

    Args:
        model: pixels in [0, 1] to logits; its mode is restored.
        data: the images.
        settings: the attack.
        batch_size: images at a time; does not change the result.
        seed: of the noise.
        device: where to compute.
        progress: called with the number of images done.

    Returns:
        ``clean_accuracy``, ``robust_accuracy``, ``w_robust`` in [0, 1].
    """
    clean, adversarial = [], []
    model.to(device)
    with attack_mode(model):
        for start in range(0, len(data), batch_size):
            indices = range(start, min(start + batch_size, len(data)))
            images = data.pixels(slice(indices.start, indices.stop)).to(device)
            images = images.contiguous(memory_format=torch.channels_last)
            labels = data.labels[indices.start : indices.stop].to(device)
            noise = draw_noise_by_image(indices, images.shape[1:], settings, seed, "eval")
            attacked = pgd(model, images, cross_entropy(labels), settings, noise=noise)
            with torch.no_grad():
                clean.append(_numpy(model(images)))
                adversarial.append(_numpy(model(attacked)))
            if progress is not None:
                progress(indices.stop)
    return robust_metrics(np.concatenate(clean), np.concatenate(adversarial), data.labels.numpy())


def accuracy_table(rows: Mapping[str, Mapping[str, float]], attack: str = "PGD-20") -> str:
    """Write accuracies as a Markdown table in percent.

    Args:
        rows: model name to what ``pgd_accuracy`` returned.
        attack: name of the attack, for the header.
    """
    width = max(len(name) for name in [*rows, "model"])
    lines = [
        f"| {'model':<{width}} | clean  | {attack} | W-Robust |",
        f"|{'-' * (width + 2)}|-------:|-------:|---------:|",
    ]
    for name, row in rows.items():
        values = [row[key] * 100 for key in ("clean_accuracy", "robust_accuracy", "w_robust")]
        lines.append(f"| {name:<{width}} | {values[0]:6.2f} | {values[1]:6.2f} | {values[2]:8.2f} |")
    return "\n".join(lines)


def _numpy(logits: Tensor) -> np.ndarray:
    return logits.float().cpu().numpy()
