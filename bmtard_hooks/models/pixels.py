"""A classifier that takes pixels in [0, 1] and gives logits, whatever is inside."""

from __future__ import annotations

import logging
from collections.abc import Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from bmtard_hooks.decoding import as_pixels
from bmtard_hooks.models.processors import normalisation_of, usual_processor

logger = logging.getLogger(__name__)

RGB = 3

Normalisation = tuple[Sequence[float], Sequence[float]]


class PixelClassifier(nn.Module):
    """Carries a network's normalisation, so that attacks, data and metrics live in pixel space.

    Formula: ``logits = backbone((x - mean) / std)``.

    Args:
        backbone: a transformers image classifier, a timm model or any module from images to logits.
        mean: one number per channel; None for what this library recorded in the backbone's config, and without a
            record for a backbone that takes pixels as they are. Zeros, with a std of ones, never normalise.
        std: one positive number per channel, or None.
        record: note the normalisation in a transformers backbone's config, so that a saved directory remembers it.

    Attributes:
        remembered: the normalisation is the one that was in the backbone's config already, so nobody guessed it here.

    Shape:
        Input ``(B, C, H, W)``, floats in [0, 1] or uint8; output ``(B, K)`` logits, never in half precision.

    Raises:
        ValueError: if only one of ``mean`` and ``std`` is given, their lengths differ or a std is not positive.
    """

    mean: Tensor | None
    std: Tensor | None

    def __init__(
        self,
        backbone: nn.Module,
        mean: Sequence[float] | None = None,
        std: Sequence[float] | None = None,
        record: bool = True,
    ) -> None:
        super().__init__()
        self.backbone = backbone
        self.frozen = False
        self.image_shape: tuple[int, int, int] | None = None
        # timm's LeViT and its kin keep attention biases between forwards in eval mode, and with them the weights of then
        self._forgetful: list[Any] = [
            module for module in backbone.modules() if hasattr(module, "attention_bias_cache")
        ]
        self.register_buffer("mean", None, persistent=False)
        self.register_buffer("std", None, persistent=False)
        if (mean is None) != (std is None):
            raise ValueError(f"mean={mean} and std={std}: pass both or neither")
        recorded = recorded_normalisation(backbone)
        if mean is None:
            mean, std = recorded or (None, None)
        self.remembered = recorded is not None and (list(mean or ()), list(std or ())) == tuple(map(list, recorded))
        if mean is not None and std is not None:
            self._set_normalisation(mean, std)
            if record:
                self._record_normalisation(mean, std)

    def _set_normalisation(self, mean: Sequence[float], std: Sequence[float]) -> None:
        if len(mean) != len(std) or min(std) <= 0:
            raise ValueError(f"mean={list(mean)}, std={list(std)}: pass one of each per channel, every std positive")
        if any(value != 0 for value in mean) or any(value != 1 for value in std):
            self.mean = torch.tensor(mean, dtype=torch.float32).view(1, -1, 1, 1)
            self.std = torch.tensor(std, dtype=torch.float32).view(1, -1, 1, 1)

    def _record_normalisation(self, mean: Sequence[float], std: Sequence[float]) -> None:
        config = getattr(self.backbone, "config", None)
        if config is not None:
            config.pixel_mean, config.pixel_std = [float(m) for m in mean], [float(s) for s in std]
            if getattr(config, "model_type", None) == "timm_wrapper":
                config.pretrained_cfg = timm_pretrained_cfg(self.backbone, mean, std)

    def record_image_size(self, channels: int, height: int, width: int) -> None:
        """Note the size of the images: transformers' image processor scales pictures to it.

        Without it a saved network would be shown pictures of its architecture's usual size, 224x224 for most. A timm
        backbone has it in its config, any other in the settings that ``processor_settings`` gives.
        """
        self.image_shape = (channels, height, width)
        config = getattr(self.backbone, "config", None)
        known = getattr(config, "pretrained_cfg", None)
        if config is not None and known:
            size = {"input_size": [channels, height, width], "crop_pct": 1.0, "interpolation": "bicubic"}
            config.pretrained_cfg = {**known, **size}  # a new one: timm shares its own between networks

    def processor_settings(self) -> dict[str, Any] | None:
        """Describe an image processor of transformers that shows pictures to the backbone as this classifier does.

        Returns:
            What a ``preprocessor_config.json`` holds; None for a backbone that is none of transformers' or has its own
            description (timm), for images that are not RGB, and while their size is not known.
        """
        config = getattr(self.backbone, "config", None)
        if getattr(config, "model_type", None) in (None, "timm_wrapper") or self.image_shape is None:
            return None
        channels, height, width = self.image_shape
        if channels != RGB:
            return None  # the processor makes every picture RGB
        if self.mean is None or self.std is None:
            mean, std = [0.0] * channels, [1.0] * channels
        else:
            mean, std = self.mean.flatten().tolist(), self.std.flatten().tolist()
        return usual_processor(height, width, mean, std)

    @property
    def num_classes(self) -> int | None:
        """Number of logits, if the backbone tells."""
        return num_classes_of(self.backbone)

    def normalise(self, pixels: Tensor) -> Tensor:
        """Apply the backbone's normalisation to pixels ``(B, C, H, W)``, floats in [0, 1] or uint8.

        Raises:
            TypeError: for other whole numbers, of which nobody knows the range.
        """
        pixels = as_pixels(pixels)
        if not pixels.is_floating_point():
            raise TypeError(f"the pixels are {pixels.dtype}: pass uint8 (0 to 255) or floats in [0, 1]")
        if self.mean is None or self.std is None:
            return pixels
        mean, std = (values.to(device=pixels.device, dtype=pixels.dtype) for values in (self.mean, self.std))
        return (pixels - mean) / std

    def logits(self, module: nn.Module, pixels: Tensor) -> Tensor:
        """Classify pixels through ``module``: the backbone itself, or the same wrapped for DDP or compiled."""
        for attention in self._forgetful:
            attention.attention_bias_cache = {}
        logits = logits_of(module(self.normalise(pixels)))
        return logits.float() if logits.dtype in (torch.float16, torch.bfloat16) else logits

    def forward(
        self, pixels: Tensor | None = None, *, pixel_values: Tensor | None = None, labels: Tensor | None = None
    ) -> Any:
        """Classify pixels ``(B, C, H, W)``, floats in [0, 1] or uint8; returns logits ``(B, K)``.

        With keywords it answers as transformers' Trainer asks: ``pixel_values`` and, for a ``loss``, ``labels`` ``(B,)``; then it
        returns a dictionary of ``loss`` (cross-entropy) and ``logits``.

        Raises:
            TypeError: without pixels, or with two sets of them.
        """
        if pixels is not None and pixel_values is None and labels is None:
            return self.logits(self.backbone, pixels)
        if pixel_values is None or pixels is not None:
            raise TypeError("a PixelClassifier takes classifier(pixels), or pixel_values= with labels= for a loss")
        logits = self.logits(self.backbone, pixel_values)
        return {"logits": logits} if labels is None else {"loss": F.cross_entropy(logits, labels), "logits": logits}

    def freeze(self) -> PixelClassifier:
        """Make this a teacher: eval mode for good, no parameter needs a gradient."""
        self.frozen = True
        self.requires_grad_(False)
        return self.eval()

    def train(self, mode: bool = True) -> PixelClassifier:
        """Set the mode, except that a frozen classifier stays in eval mode."""
        return super().train(mode and not self.frozen)


def logits_of(output: Any) -> Tensor:
    """Take the logits out of whatever a classifier returned: a tensor, ``.logits``, ``["logits"]`` or the first item.

    Raises:
        TypeError: if there are none.
    """
    if isinstance(output, Tensor):
        return output
    if hasattr(output, "logits"):
        return logits_of(output.logits)
    if isinstance(output, dict) and "logits" in output:
        return logits_of(output["logits"])
    if isinstance(output, (tuple, list)) and output and isinstance(output[0], Tensor):
        return output[0]
    raise TypeError(
        f"the model returned {type(output).__name__}: expected a tensor of logits or an output with .logits"
    )


def answer_once(network: nn.Module) -> None:
    """Make a network with a distillation token (DeiT, LeViT …) give the mean of its two heads in train mode too.

    timm can be asked to return both in train mode, for a loss of its own; teachers here judge the one answer that counts.
    """
    switch = getattr(network, "set_distilled_training", None)
    if callable(switch):
        switch(False)


def num_classes_of(backbone: nn.Module) -> int | None:
    """Read the class count from a transformers config or a timm model; None if neither tells."""
    config = getattr(backbone, "config", None)
    if config is not None and getattr(config, "num_labels", None):
        return int(config.num_labels)
    count = getattr(backbone, "num_classes", None)
    return int(count) if isinstance(count, int) else None


def find_normalisation(backbone: nn.Module, processor: Any = None) -> Normalisation | None:
    """Find the mean and std a backbone expects: image processor, then saved config, then timm's config.

    Returns:
        ``(mean, std)``, or None for a plain module, which is taken to normalise by itself if it has to.

    Raises:
        ValueError: for an image processor that does more than normalise.
    """
    if (stated := normalisation_of(processor)) is not None:
        return stated
    if (recorded := recorded_normalisation(backbone)) is not None:
        return recorded
    config = getattr(backbone, "config", None)
    for source in (config, backbone, getattr(backbone, "timm_model", None)):
        pretrained = getattr(source, "pretrained_cfg", None)
        if pretrained and pretrained.get("mean") is not None:
            return pretrained["mean"], pretrained["std"]
    return None


def recorded_normalisation(backbone: nn.Module) -> Normalisation | None:
    """Read the mean and std that a ``PixelClassifier`` recorded in a backbone's config; None without a record."""
    config = getattr(backbone, "config", None)
    mean, std = (getattr(config, name, None) for name in ("pixel_mean", "pixel_std"))
    return None if mean is None or std is None else (mean, std)


def timm_pretrained_cfg(wrapper: nn.Module, mean: Sequence[float], std: Sequence[float]) -> dict[str, Any]:
    """Describe a timm model's input the way timm's image processor reads it from a saved ``config.json``."""
    model: Any = wrapper.timm_model
    usual, saved = (getattr(source, "pretrained_cfg", None) or {} for source in (model, wrapper.config))
    known = {**usual, **saved}  # a saved network remembers the size of the images that it was trained on
    keep = {key: known[key] for key in ("input_size", "crop_pct", "interpolation", "architecture") if key in known}
    return {**keep, "mean": [float(m) for m in mean], "std": [float(s) for s in std]}
