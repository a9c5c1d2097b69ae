"""Runs a law on drawn examples and reports how many of them held."""

import os
import tempfile

os.environ.setdefault("HYPOTHESIS_STORAGE_DIRECTORY", os.path.join(tempfile.gettempdir(), "bmtard-hypothesis"))

import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

SEEDS = st.integers(0, 2**31 - 1)
CHANNELS = st.sampled_from([1, 3, 4])
SIDES = st.integers(1, 9)


def prove(record_property, examples, **drawn):
    """Check a law at once on as many drawn examples; the same ones in every run."""

    def run(law):
        held = 0

        @settings(
            max_examples=examples, deadline=None, derandomize=True, database=None,
            suppress_health_check=list(HealthCheck),
        )  # fmt: skip
        @given(**drawn)
        def law_holds(**values):
            nonlocal held
            law(**values)
            held += 1

        law_holds()
        assert held >= 0.7 * examples or held >= 30, f"only {held} examples: the strategies leave too little to draw"
        record_property("properties", 1)
        record_property("property cases", held)

    return run


def drawn_images(seed, shape, kind, dtype=torch.float32):
    """Images of a kind: ``random``, ``black``, ``white``, ``edges`` (every pixel 0 or 1) or ``bytes`` (n / 255)."""
    generator = torch.Generator().manual_seed(seed)
    if dtype == torch.uint8:
        kind = "bytes" if kind == "random" else kind
    if kind == "random":
        return torch.rand(shape, generator=generator, dtype=torch.float64).to(dtype)
    levels = torch.randint(0, 256, shape, generator=generator)
    if kind == "black":
        levels = torch.zeros_like(levels)
    elif kind == "white":
        levels = torch.full_like(levels, 255)
    elif kind == "edges":
        levels = 255 * (levels % 2)
    return levels.to(torch.uint8) if dtype == torch.uint8 else (levels / 255).to(dtype)


KINDS = st.sampled_from(["random", "random", "black", "white", "edges", "bytes"])


def drift(adversarial, images, norm):
    """Distance of every image from its centre, computed in float64."""
    moved = (adversarial.double() - images.double()).flatten(1)
    return moved.abs().amax(dim=1) if norm == "linf" else moved.norm(dim=1)


def allowance(eps, images, norm):
    """How much farther than ``eps`` rounding may put an image.

    A pixel in [0, 1] is rounded by at most u/2 (u: distance of 1 to the next number), whatever was computed before it. For
    L-infinity that is all. In L2 every pixel may be off by that, and the length, a sum of D squares, by a share of
    at most (D + 8) * u.
    """
    unit = torch.finfo(images.dtype).eps
    if norm == "linf":
        return eps + unit
    pixels = images[0].numel()
    return eps * (1 + (pixels + 8) * unit) + unit * pixels**0.5


def assert_inside(adversarial, images, norm, eps):
    """Finite pixels in [0, 1], no farther than ``eps``; the images are pixels already."""
    assert adversarial.shape == images.shape and adversarial.dtype == images.dtype
    assert torch.isfinite(adversarial).all()
    assert adversarial.min() >= 0 and adversarial.max() <= 1
    assert drift(adversarial, images, norm).max() <= allowance(eps, images, norm)
