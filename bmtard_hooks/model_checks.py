"""What two images tell about the networks of a run before its first step."""

from __future__ import annotations

import logging
from typing import TYPE_CHECKING

import torch
from torch import Tensor, nn

from bmtard_hooks.attacks.guard import attack_mode
from bmtard_hooks.data import is_map_style
from bmtard_hooks.distributed import is_sharded
from bmtard_hooks.models.pixels import PixelClassifier
from bmtard_hooks.models.precision import not_float32
from bmtard_hooks.models.teachers import try_classifier

if TYPE_CHECKING:
    from bmtard_hooks.trainer import BMTARDTrainer

logger = logging.getLogger(__name__)

LEAST_CHANNELS = 16
"""oneDNN's block of channels with AVX-512; 8 with AVX2."""


def check_networks(trainer: BMTARDTrainer, pixels: Tensor) -> None:
    """Try student and teachers on a few images; weights, buffers and modes stay as they are.

    Args:
        trainer: about to train.
        pixels: ``(B, C, H, W)`` in [0, 1] on the training device, two images of the training set.

    Raises:
        ValueError: for a network that cannot take the images, or whose answers are no logits to train with.
    """
    student = trainer.student
    warn_about_strided(student, pixels.device)
    logits = _answers("student", student, pixels)
    _require_logits("student", logits, len(pixels), student.num_classes)
    if not is_sharded(trainer.model):
        _require_gradients(student, pixels, trainer.method.attack is not None)
    for name, teacher in trainer.teachers.items():
        answers = _answers(f"{name} teacher", teacher, pixels)
        if answers.shape != logits.shape:
            raise ValueError(
                f"the {name} teacher gives logits of shape {tuple(answers.shape)}, the student {tuple(logits.shape)}: both "
                "must be (batch, classes) with the same class count"
            )
        _warn_about(f"{name} teacher", answers, pixels)
    _require_batches(trainer, pixels)


def _answers(role: str, model: PixelClassifier, pixels: Tensor) -> Tensor:
    seen: list[Tensor] = []
    handle = model.register_forward_hook(lambda module, inputs, output: seen.append(output))
    try:
        try_classifier(role, model, pixels)
    except ValueError as error:
        others = not_float32(model)
        if not others:
            raise
        raise ValueError(
            f"the {role} has {others} weights and takes no float32 pixels: pass model.float(); bf16=True "
            f"computes in half precision where it is safe ({error})"
        ) from error
    finally:
        handle.remove()
    return seen[0]


def _require_logits(role: str, logits: Tensor, images: int, classes: int | None) -> None:
    shape = tuple(logits.shape)
    if len(shape) != 2 or shape[0] != images or not logits.is_floating_point():
        raise ValueError(
            f"the {role} answers {images} images with {logits.dtype} of shape {shape}: expected logits, floats of shape "
            f"({images}, classes). Return the last layer's output, one row per image"
        )
    if classes is not None and shape[1] != classes:
        raise ValueError(
            f"the {role} says that it has {classes} classes and gives {shape[1]} logits: make its num_classes (or its last "
            "layer) right"
        )


def _require_gradients(student: PixelClassifier, pixels: Tensor, attacked: bool) -> None:
    """Refuse logits that do not depend on the weights, or on the pixels that an attack has to move."""
    images = pixels.detach().clone().requires_grad_(True)
    weights = [weight for weight in student.parameters() if weight.requires_grad]
    modes = [(module, module.training) for module in student.modules()]
    try:
        student.eval()
        with torch.enable_grad():
            total = student(images).sum()
        found = (
            torch.autograd.grad(total, [images, *weights], allow_unused=True) if total.requires_grad else [None, None]
        )
    finally:
        for module, training in modes:
            module.training = training
    if all(gradient is None for gradient in found[1:]):
        raise ValueError(
            "the student's logits have no gradient with respect to its weights: expected a differentiable forward. Remove "
            "detach(), no_grad(), .data or argmax from it"
        )
    if attacked and found[0] is None:
        raise ValueError(
            "the student's logits have no gradient with respect to the pixels, which the attack needs: expected a "
            "differentiable forward from pixels to logits. Remove detach() or no_grad() around its first layers"
        )


def _warn_about(role: str, logits: Tensor, pixels: Tensor) -> None:
    if len(logits) > 1 and torch.equal(logits[0], logits[1]) and not torch.equal(pixels[0], pixels[1]):
        logger.warning(
            "the %s gives the same logits for two different images: it seems to have collapsed, and nothing can be learned "
            "from it. Measure its accuracy (bmtard evaluate), and check its weights and normalisation",
            role,
        )
    elif bool((logits >= 0).all() and torch.allclose(logits.sum(dim=1), logits.new_ones(len(logits)), atol=1e-4)):
        logger.warning(
            "the %s seems to return probabilities (rows in [0, 1] that sum to 1): return logits, because a softmax on top of "
            "them makes every answer look unsure",
            role,
        )


def warn_about_strided(student: nn.Module, device: torch.device) -> None:
    """Warn about convolutions in whose backward oneDNN, torch's library for CPUs, writes past its memory (its issue 6035).

    Args:
        student: the network.
        device: where it trains.
    """
    if device.type != "cpu" or not torch.backends.mkldnn.is_available():
        return
    for name, module in student.named_modules():
        if (
            isinstance(module, nn.Conv2d)
            and (module.kernel_size, module.groups) == ((1, 1), 1)
            and max(module.stride) > 1
            and module.in_channels < LEAST_CHANNELS
            and module.weight.requires_grad
        ):
            logger.warning(
                "%s is a 1x1 convolution with stride %d and %d input channels: on CPUs oneDNN (issue 6035) can damage memory in its "
                "backward, give wrong gradients or crash, below 8 channels with AVX2 and 16 with AVX-512. Use more channels, a GPU, or "
                "torch.backends.mkldnn.flags(enabled=False) around train()",
                *(name, max(module.stride), module.in_channels),
            )
            return


def _require_batches(trainer: BMTARDTrainer, pixels: Tensor) -> None:
    """Refuse an epoch without batches, and batches of one image that BatchNorm in training mode cannot take."""
    args, rows = trainer.args, trainer.train_dataset
    if not is_map_style(rows):
        return
    size, count = args.train_batch_size, len(rows)
    if args.dataloader_drop_last and count < size * args.world_size:
        raise ValueError(
            f"dataloader_drop_last=True leaves no batch: {count} images, and batches of {size * args.world_size} over "
            f"{args.world_size} process(es): lower per_device_train_batch_size, or leave dataloader_drop_last off"
        )
    single = size == 1 or (args.world_size == 1 and count % size == 1 and not args.dataloader_drop_last)
    if not single or is_sharded(trainer.model):  # with several processes, Accelerate fills the last batch up
        return
    trained = {f"{name} teacher": trainer.teachers[name] for name in trainer.method.trained_teachers}
    for role, network in {"student": trainer.student, **trained}.items():
        reason = _why_not_alone(network, pixels[:1])
        if reason is None:
            continue
        if size == 1:
            which, fix = "batches have 1 image", "pass per_device_train_batch_size=2 or more"
        else:
            which = f"the last batch of an epoch has 1 image ({count} images in batches of {size})"
            fix = "pass dataloader_drop_last=True, or another per_device_train_batch_size"
        raise ValueError(
            f"{which}, and the {role} in training mode needs 2 or more for its batch statistics ({reason}): {fix}"
        )


def _why_not_alone(network: nn.Module, pixels: Tensor) -> str | None:
    """Say why a network in training mode cannot take one image; None if it can."""
    with attack_mode(network, foreign=True):  # which puts back modes, buffers and random numbers
        network.train()
        try:
            with torch.no_grad():
                network(pixels)
        except (ValueError, RuntimeError) as error:
            return str(error).splitlines()[0]
    return None
