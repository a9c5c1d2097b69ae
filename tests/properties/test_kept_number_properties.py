"""Numbers that must come back as they were: pixels, states, keyed random numbers."""

import json

import numpy as np
import torch
from hypothesis import strategies as st
from proving import CHANNELS, KINDS, SEEDS, drawn_images, prove

from bmtard_hooks.attacks import PGDSettings
from bmtard_hooks.attacks.base import Draws
from bmtard_hooks.attacks.pgd import draw_noise_by_image
from bmtard_hooks.data import augment
from bmtard_hooks.randomness import keyed_generator
from bmtard_hooks.state import DistillationState, load_state, save_state

NUMBERS = st.floats(allow_nan=False, allow_infinity=False) | st.sampled_from(
    [5e-324, -5e-324, 1.7976931348623157e308, -0.0]
)
SHAPES = st.tuples(st.integers(1, 3), CHANNELS, st.integers(1, 7), st.integers(1, 7))


def cuttings(image, padding, mirrored):
    """Every cutting of the padded image that an augmentation may give."""
    _, height, width = image.shape
    padded = torch.nn.functional.pad(image, (padding,) * 4)
    for top in range(2 * padding + 1):
        for left in range(2 * padding + 1):
            window = padded[:, top : top + height, left : left + width]
            yield window
            if mirrored:
                yield window.flip(2)


def test_augmentation_gives_cuttings_of_the_padded_image(record_property):
    kinds = st.sampled_from(["crop_flip", "crop", "flip", "none"])
    dtypes = st.sampled_from([torch.float32, torch.float64, torch.uint8])

    @prove(
        record_property, 150, seed=SEEDS, shape=SHAPES, look=KINDS, dtype=dtypes, kind=kinds, padding=st.integers(0, 3)
    )
    def law(seed, shape, look, dtype, kind, padding):
        images = drawn_images(seed, shape, look, dtype)
        before = images.clone()
        found = augment(images, kind, padding, torch.Generator().manual_seed(seed))
        assert found.shape == images.shape and found.dtype == images.dtype
        room = padding if "crop" in kind else 0
        for image, given in zip(found, images, strict=True):
            assert any(torch.equal(image, cutting) for cutting in cuttings(given, room, "flip" in kind))
        assert torch.equal(images, before)


def bits(state):
    return {
        (group, name): np.asarray(value, dtype=np.float64).tobytes()
        for group, values in state.state_dict().items()
        if isinstance(values, dict)
        for name, value in values.items()
    }


def test_state_comes_back_from_json_bit_for_bit(record_property, tmp_path):
    names = st.dictionaries(st.text(min_size=1, max_size=5), NUMBERS, min_size=1, max_size=4)
    classes = st.dictionaries(st.text(min_size=1, max_size=5), st.lists(NUMBERS, min_size=1, max_size=6), max_size=2)

    @prove(record_property, 150, temperatures=names, weights=names, first=names, per_class=classes)
    def law(temperatures, weights, first, per_class):
        state = DistillationState.create(temperatures, weights, per_class=per_class)
        state.initial_losses.update({key: torch.tensor(value, dtype=torch.float64) for key, value in first.items()})
        save_state(tmp_path, json.dumps(state.state_dict(), allow_nan=False))
        again = DistillationState.create(
            dict.fromkeys(temperatures, 0.0), dict.fromkeys(weights, 0.0),
            per_class={key: [0.0] * len(values) for key, values in per_class.items()},
        )  # fmt: skip
        again.load_state_dict(load_state(tmp_path))
        assert bits(again) == bits(state)
        assert all(tensor.dtype == torch.float64 for tensor in again.temperatures.values())


KEYS = st.lists(st.integers(-(2**70), 2**70) | st.text(max_size=6), max_size=5)


def numbers(key):
    return torch.randint(0, 2**62, (4,), generator=keyed_generator(*key)).tolist()


def test_equal_keys_give_equal_numbers_and_others_give_others(record_property):
    @prove(record_property, 200, left=KEYS, right=KEYS)
    def law(left, right):
        before = torch.get_rng_state()
        assert numbers(left) == numbers(list(left))
        assert (numbers(left) == numbers(right)) == (left == right)
        joined = ["".join(map(str, left))]
        assert left == joined or numbers(left) != numbers(joined)
        assert torch.equal(before, torch.get_rng_state())


def test_kind_of_an_integer_does_not_change_a_key(record_property):
    kinds = st.sampled_from([np.int64, np.int32, lambda n: torch.tensor(n).item()])

    @prove(record_property, 50, numbers_of=st.lists(st.integers(0, 2**31 - 1), min_size=1, max_size=4), kind=kinds)
    def law(numbers_of, kind):
        assert numbers(numbers_of) == numbers([kind(number) for number in numbers_of])


def test_noise_of_an_image_does_not_depend_on_its_batch(record_property):
    starts = st.sampled_from(["normal", "uniform", "zero"])

    @prove(
        record_property, 100, seed=SEEDS, indices=st.lists(st.integers(0, 10**6), min_size=1, max_size=6),
        shape=SHAPES.map(lambda shape: shape[1:]), norm=st.sampled_from(["linf", "l2"]), start=starts, data=st.data(),
    )  # fmt: skip
    def law(seed, indices, shape, norm, start, data):
        settings = PGDSettings(1.0, 0.1, 1, norm, start)
        whole = draw_noise_by_image(indices, shape, settings, seed, "law")
        cut = data.draw(st.integers(0, len(indices)))
        pieces = [
            draw_noise_by_image(part, shape, settings, seed, "law") for part in (indices[:cut], indices[cut:]) if part
        ]
        assert torch.equal(torch.cat(pieces), whole)
        order = data.draw(st.permutations(range(len(indices))))
        mixed = draw_noise_by_image([indices[place] for place in order], shape, settings, seed, "law")
        assert torch.equal(mixed, whole[order])
        sizes = whole.flatten(1).abs().amax(1) if norm == "linf" else whole.flatten(1).norm(dim=1)
        assert start == "normal" or (sizes <= 1 + 1e-6).all()


def test_draws_of_a_subset_are_a_subset_of_the_draws(record_property):
    @prove(
        record_property,
        80,
        seed=SEEDS,
        indices=st.lists(st.integers(0, 10**6), min_size=1, max_size=6),
        data=st.data(),
    )
    def law(seed, indices, data):
        draws = Draws(indices, seed, "law")

        def sample(generator):
            return torch.rand(3, generator=generator)

        mask = torch.tensor(data.draw(st.lists(st.booleans(), min_size=len(indices), max_size=len(indices))))
        if mask.any():
            assert torch.equal(draws.subset(mask)(sample, "a", 1), draws(sample, "a", 1)[mask])
        assert not torch.equal(draws(sample, "a", 1), draws(sample, "b", 1))
