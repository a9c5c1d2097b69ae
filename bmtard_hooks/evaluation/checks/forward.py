"""Checks of the forward pass itself: it must be deterministic, give logits, not optimise, and leave no trace."""

from __future__ import annotations

import random
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.autograd.graph import saved_tensors_hooks

from bmtard_hooks.attacks.gradient import PGD
from bmtard_hooks.evaluation.attacking import attack_batch
from bmtard_hooks.evaluation.checks.context import Context, Finding, percent
from bmtard_hooks.evaluation.outcome_store import fingerprint_tensors

REPEATS = 3
SPREAD = 1e-5
"""Largest difference of repeated logits, relative to an image's largest logit."""

SUM_SPREAD = 1e-5
FEW = 16
"""Images that suffice where every image would tell the same."""


def is_deterministic(context: Context) -> Finding:
    """Check that repeated forwards agree, also with the images in the opposite order.

    Nothing is seeded in between, so that randomness in the forward shows; reversing the batch shows noise that the
    model seeds by itself.

    Reference:
        Athalye et al. 2018, Obfuscated Gradients Give a False Sense of Security (stochastic gradients).
    """
    indices = np.arange(min(context.count, context.runner.batch_size))
    images, _ = context.batch(indices)
    with context.asking() as target:
        first = target.scores(images)
        others = [target.scores(images) for _ in range(REPEATS - 1)]
        turned = target.scores(images.flip(0)).flip(0)
    spread = max(_relative_spread(first, other) for other in others)
    moved = _relative_spread(first, turned)
    evidence = (
        f"{REPEATS} forwards of {len(indices)} images differ by at most {spread:.1e} of the largest logit, in another "
        f"batch position by {moved:.1e}"
    )
    return Finding(max(spread, moved) <= SPREAD, evidence)


def gives_logits(context: Context) -> Finding:
    """Check that the outputs are not probabilities: cross-entropy would apply softmax twice and flatten its gradient.

    Reference:
        The flags of Croce and Hein's AutoAttack.
    """
    outputs = context.runner.logits
    within = bool((outputs >= 0).all() and (outputs <= 1 + SUM_SPREAD).all())
    sums = outputs.sum(axis=1)
    probabilities = within and bool(np.allclose(sums, 1, atol=SUM_SPREAD))
    evidence = (
        f"outputs of {len(outputs)} images are from {outputs.min():.3g} to {outputs.max():.3g} and their sums from "
        f"{sums.min():.3g} to {sums.max():.3g}"
    )
    return Finding(not probabilities, f"{evidence}: probabilities" if probabilities else evidence)


def does_not_optimise(context: Context) -> Finding:
    """Check that the forward does not differentiate: such a defence answers each attack step with an optimisation.

    A backward pass has to fetch what the forward pass saved for it. Hooks on that fetching belong to this thread and end
    with the block, and they see every way to start a backward pass, which replacing ``torch.autograd.grad`` would not.

    Reference:
        Croce et al. 2022, Evaluating the Adversarial Robustness of Adaptive Test-time Defenses.
    """
    images, _ = context.batch(np.arange(min(context.count, FEW)))
    fetched = 0

    def fetch(saved: Tensor) -> Tensor:
        nonlocal fetched
        fetched += 1
        return saved

    with context.asking() as target:
        try:
            with saved_tensors_hooks(lambda tensor: tensor, fetch):
                target(images)
        except RuntimeError as error:
            # torch.func refuses to differentiate under such hooks; any other failure is not about them
            if "saved tensor hooks" not in str(error):
                raise
            return Finding(False, "the forward differentiates by torch.func")
    if fetched:
        return Finding(False, f"a backward pass inside the forward fetched {fetched} saved tensors")
    return Finding(True, f"no backward pass inside the forward of {len(images)} images")


def leaves_no_trace(context: Context) -> Finding:
    """Check that an attack changes nothing: parameters, buffers, gradients, modes, random number generators.

    A model that fails this gives other numbers in the next evaluation, or is trained further by the attack.
    """
    indices = context.require_images()[:FEW]
    attack = PGD(eps=context.eps, norm=context.norm, step_size=context.eps / 4, steps=3)
    runner = context.runner
    before = _state(runner.model)
    attack_batch(attack, runner.model, *context.batch(indices), indices.tolist(), runner.seed, "check:trace")
    after = _state(runner.model)
    changed = sorted(name for name in before.keys() | after.keys() if before.get(name) != after.get(name))
    if not changed:
        return Finding(True, f"{len(before)} items of state are the same before and after an attack")
    share = percent(len(changed) / len(before))
    return Finding(False, f"an attack changed {share} of the state: {', '.join(changed[:5])}")


def _relative_spread(first: Tensor, second: Tensor) -> float:
    scale = first.abs().amax(dim=1).clamp_min(torch.finfo(first.dtype).tiny)
    return float(((first - second).abs().amax(dim=1) / scale).max())


def _state(model: nn.Module) -> dict[str, Any]:
    """Take fingerprints of everything that an attack could change."""
    state: dict[str, Any] = {
        f"mode of {name or 'the model'}": module.training for name, module in model.named_modules()
    }
    for name, parameter in model.named_parameters():
        state[f"parameter {name}"] = fingerprint_tensors([parameter])
        state[f"requires_grad of {name}"] = parameter.requires_grad
        state[f"gradient of {name}"] = None if parameter.grad is None else fingerprint_tensors([parameter.grad])
    for name, buffer in model.named_buffers():
        state[f"buffer {name}"] = fingerprint_tensors([buffer])
    state["random numbers of Python"] = random.getstate()
    state["random numbers of numpy"] = repr(np.random.get_state(legacy=False))
    state["random numbers of torch"] = fingerprint_tensors([torch.get_rng_state()])
    if torch.cuda.is_available() and torch.cuda.is_initialized():
        state["random numbers of CUDA"] = fingerprint_tensors(torch.cuda.get_rng_state_all())
    return state
