"""The training attack: whatever is drawn, the images stay in their ball and are pixels."""

import pytest
import torch
from conftest import tiny_net
from hypothesis import strategies as st
from proving import CHANNELS, KINDS, SEEDS, SIDES, assert_inside, drawn_images, prove

from bmtard_hooks import PGDCollator
from bmtard_hooks.attacks import PGDSettings, cross_entropy, pgd

FLOATS = st.sampled_from([torch.float32, torch.float64])


@st.composite
def attacks(draw):
    """Settings of every kind, radii from tiny to the whole box and steps far longer than they."""
    norm = draw(st.sampled_from(["linf", "l2"]))
    largest = 1.0 if norm == "linf" else 40.0
    length = st.floats(1e-6, largest) | st.sampled_from([8 / 255, 1 / 255, largest])
    start = draw(st.sampled_from(["normal", "uniform", "zero"]))
    return PGDSettings(draw(length), draw(length), draw(st.integers(0, 4)), norm, start, draw(st.booleans()))


shapes = st.tuples(st.integers(1, 3), CHANNELS, SIDES, SIDES)


def linear(seed, images, scale=1.0, classes=3):
    generator = torch.Generator().manual_seed(seed)
    weight = torch.randn(images[0].numel(), classes, generator=generator, dtype=torch.float64).to(images.dtype) * scale
    return lambda pixels: pixels.flatten(1) @ weight


def test_pgd_stays_in_the_ball_and_in_the_box(record_property):
    @prove(record_property, 250, seed=SEEDS, shape=shapes, kind=KINDS, dtype=FLOATS, settings=attacks())
    def law(seed, shape, kind, dtype, settings):
        images = drawn_images(seed, shape, kind, dtype)
        labels = torch.arange(shape[0]) % 3
        before = images.clone()
        found = pgd(
            linear(seed, images), images, cross_entropy(labels), settings,
            generator=torch.Generator().manual_seed(seed),
        )  # fmt: skip
        assert_inside(found, images, settings.norm, settings.eps)
        assert torch.equal(images, before) and not found.requires_grad


def test_half_precision_images_are_attacked_within_their_rounding(record_property):
    halves = st.sampled_from([torch.float16, torch.bfloat16])

    @prove(record_property, 80, seed=SEEDS, shape=shapes, kind=KINDS, dtype=halves, settings=attacks())
    def law(seed, shape, kind, dtype, settings):
        images = drawn_images(seed, shape, kind, dtype)
        labels = torch.arange(shape[0]) % 3
        found = pgd(
            linear(seed, images), images, cross_entropy(labels), settings,
            generator=torch.Generator().manual_seed(seed),
        )  # fmt: skip
        assert_inside(found, images, settings.norm, settings.eps)


def test_objectives_from_no_slope_to_a_huge_one_leave_pixels(record_property):
    scales = st.sampled_from([0.0, 1e-38, 1e-30, 1e-12, 1.0, 1e12, 1e30])

    @prove(record_property, 150, seed=SEEDS, shape=shapes, kind=KINDS, settings=attacks(), scale=scales)
    def law(seed, shape, kind, settings, scale):
        images = drawn_images(seed, shape, kind)
        forward = linear(seed, images)
        found = pgd(
            forward, images, lambda logits: logits[:, 0] * scale, settings,
            generator=torch.Generator().manual_seed(seed),
        )  # fmt: skip
        assert_inside(found, images, settings.norm, settings.eps)


def test_size_of_a_slope_does_not_change_an_attack(record_property):
    # a sign step sees no size, and a unit step must see none either
    scales = st.sampled_from([1e-30, 1e-24, 1e-12, 1e12, 1e24, 1e30])

    @prove(record_property, 120, seed=SEEDS, shape=shapes, norm=st.sampled_from(["linf", "l2"]), scale=scales)
    def law(seed, shape, norm, scale):
        images = drawn_images(seed, shape, "random", torch.float32)
        forward = linear(seed, images)
        settings = PGDSettings(0.3, 0.1, 2, norm, "zero")
        plain = pgd(forward, images, lambda logits: logits[:, 0], settings)
        scaled = pgd(forward, images, lambda logits: logits[:, 0] * scale, settings)
        torch.testing.assert_close(scaled, plain, atol=1e-5, rtol=0)
        assert not torch.equal(plain, images)


def test_slopes_that_are_not_numbers_leave_pixels(record_property):
    broken = st.sampled_from([torch.inf, -torch.inf, torch.nan])

    @prove(
        record_property,
        100,
        seed=SEEDS,
        shape=shapes,
        kind=KINDS,
        settings=attacks(),
        slope=broken,
        every=st.booleans(),
    )
    def law(seed, shape, kind, settings, slope, every):
        images = drawn_images(seed, shape, kind)
        factors = torch.full(shape[1:], slope).flatten()
        if not every:
            factors[1:] = 1.0
        found = pgd(
            lambda pixels: pixels.flatten(1) * factors, images, lambda logits: logits.sum(1), settings,
            generator=torch.Generator().manual_seed(seed),
        )  # fmt: skip
        assert_inside(found, images, settings.norm, settings.eps)


def test_collator_crafts_inside_the_ball_from_floats_and_bytes(record_property):
    dtypes = st.sampled_from([torch.float32, torch.float64, torch.uint8])
    augmentations = st.sampled_from(["none", "flip", "crop", "crop_flip"])
    losses = st.sampled_from(["ce", "kl", "margin"])

    @prove(
        record_property, 150, seed=SEEDS, shape=shapes, kind=KINDS, dtype=dtypes, settings=attacks(),
        augment=augmentations, loss=losses, padding=st.integers(0, 3),
    )  # fmt: skip
    def law(seed, shape, kind, dtype, settings, augment, loss, padding):
        images = drawn_images(seed, shape, kind, dtype)
        net = torch.nn.Sequential(torch.nn.Flatten(), torch.nn.Linear(images[0].numel(), 3))
        net = net.double() if dtype == torch.float64 else net
        collator = PGDCollator(
            settings.eps, settings.step_size, settings.steps, norm=settings.norm, start=settings.start,
            clip_start=settings.clip_start, loss=loss, augment=augment, crop_padding=padding, seed=seed,
        )  # fmt: skip
        batch = {"pixel_values": images, "labels": torch.arange(shape[0]) % 3}
        crafted = collator.craft(net, batch, key=(seed, 1))
        wanted = torch.float32 if dtype == torch.uint8 else dtype
        assert crafted["pixel_values"].dtype == wanted
        assert_inside(crafted["adv_pixel_values"], crafted["pixel_values"], settings.norm, settings.eps)
        again = collator.craft(net, batch, key=(seed, 1))
        assert torch.equal(again["adv_pixel_values"], crafted["adv_pixel_values"])


class NanUnderAttack(torch.nn.Module):
    """Answers images of bytes, and NaN as soon as a pixel lies between two of them."""

    num_classes = 4

    def __init__(self):
        super().__init__()
        self.net = tiny_net(0)

    def forward(self, pixel_values):
        between = (pixel_values * 255 - (pixel_values * 255).round()).abs().flatten(1).amax(1) > 1e-3
        return torch.where(between[:, None], torch.nan, self.net(pixel_values))


def test_evaluation_never_counts_an_answer_that_is_not_a_number_as_robust(make_trainer):
    trainer = make_trainer(NanUnderAttack(), fold_batch_norm=False)
    with pytest.raises(FloatingPointError, match="10 of 10 adversarial images"):
        trainer.evaluate()
