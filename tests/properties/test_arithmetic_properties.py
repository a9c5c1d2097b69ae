"""The pure functions, on logits from equal to huge."""

import math

import torch
from hypothesis import strategies as st
from proving import SEEDS, prove

from bmtard_hooks.functional import (
    entropy,
    entropy_slope,
    kl_between,
    kl_to_teacher,
    knowledge_scale,
    renyi_entropy,
    soften,
    w_robust,
)

DTYPES = st.sampled_from([torch.float32, torch.float64])
SCALES = st.sampled_from([0.0, 1e-30, 1e-3, 1.0, 30.0, 1e4, 1e12, 1e18])
SHIFTS = st.sampled_from([0.0, 0.0, -50.0, 1e6])
TEMPERATURES = st.floats(0.05, 100)


@st.composite
def logits(draw):
    generator = torch.Generator().manual_seed(draw(SEEDS))
    shape = draw(st.integers(1, 4)), draw(st.integers(2, 12))
    values = torch.randn(shape, generator=generator, dtype=torch.float64) * draw(SCALES) + draw(SHIFTS)
    if draw(st.booleans()):
        values = values.round(decimals=1)  # ties
    return values.to(draw(DTYPES))


def slack(values):
    """Rounding of a sum over classes of numbers of the size of ``log C`` or 1."""
    return 30 * values.shape[1] * torch.finfo(values.dtype).eps


def test_softened_predictions_sum_to_one(record_property):
    @prove(record_property, 150, values=logits(), temperature=TEMPERATURES)
    def law(values, temperature):
        probs = soften(values, temperature)
        assert (probs >= 0).all() and ((probs.sum(1) - 1).abs() <= slack(values)).all()
        assert torch.equal(probs, soften(values, torch.tensor(temperature, dtype=values.dtype)))


def test_entropy_never_falls_as_temperature_rises(record_property):
    @prove(record_property, 200, values=logits(), temperature=TEMPERATURES, factor=st.floats(1, 50))
    def law(values, temperature, factor):
        below, above = (entropy(soften(values, t)) for t in (temperature, temperature * factor))
        assert (above - below >= -slack(values)).all()
        assert (entropy_slope(values, temperature) >= 0).all()


def test_entropy_slope_is_the_derivative(record_property):
    @prove(record_property, 80, values=logits(), temperature=st.floats(0.2, 20))
    def law(values, temperature):
        values = (values.double() - values.double().mean(1, keepdim=True)).clamp(-30, 30)
        at = torch.tensor(temperature, dtype=torch.float64, requires_grad=True)
        (slope,) = torch.autograd.grad(entropy(soften(values, at).clamp_min(1e-300)).sum(), at)
        torch.testing.assert_close(entropy_slope(values, temperature).sum(), slope, rtol=1e-6, atol=1e-9)


def test_entropies_and_knowledge_scales_stay_in_their_ranges(record_property):
    @prove(
        record_property, 150, values=logits(), temperature=TEMPERATURES, order=st.sampled_from([0.5, 1.0, 2.0, 5.0])
    )
    def law(values, temperature, order):
        probs, classes = soften(values, temperature), values.shape[1]
        most = math.log(classes)
        for found in (entropy(probs), renyi_entropy(probs, order), knowledge_scale(entropy(probs), classes)):
            rest = slack(values) + 1e-11  # of the 1e-12 inside the logarithm of Renyi's
            assert (found >= -rest).all() and (found <= most + rest).all()
        floored = entropy(probs, 1e-5)
        assert (floored >= -1.1e-5 - slack(values)).all() and (floored <= entropy(probs) + slack(values)).all()


def test_divergence_is_not_negative(record_property):
    @prove(record_property, 200, left=logits(), seed=SEEDS, scale=SCALES, temperature=TEMPERATURES)
    def law(left, seed, scale, temperature):
        generator = torch.Generator().manual_seed(seed)
        right = (torch.randn(left.shape, generator=generator, dtype=torch.float64) * scale).to(left.dtype)
        # terms cancel in a sum of numbers as large as the largest difference of logits
        size = 1 + (left.amax(1) - left.amin(1)) + (right.amax(1) - right.amin(1))
        for found in (kl_to_teacher(left, soften(right, temperature), 0.0), kl_between(left, right)):
            assert torch.isfinite(found).all() and (found >= -slack(left) * size).all()
        same = kl_to_teacher(left / temperature, soften(left, temperature), 0.0)
        assert (same.abs() <= slack(left) * (1 + (left.amax(1) - left.amin(1)) / temperature)).all()
        floored = kl_to_teacher(left, soften(right), 1e-5) - kl_to_teacher(left, soften(right), 0.0)
        assert (floored.abs() <= left.shape[1] * 1e-5 + slack(left) * size).all()


def test_w_robust_lies_between_its_two_accuracies(record_property):
    shares = st.floats(0, 1)

    @prove(record_property, 150, clean=shares, robust=shares, weight=shares)
    def law(clean, robust, weight):
        found = w_robust(clean, robust, weight)
        assert min(clean, robust) - 1e-15 <= found <= max(clean, robust) + 1e-15
        assert w_robust(clean, robust, 1.0) == clean and w_robust(clean, robust, 0.0) == robust
