"""Both balances, against the paper's equations written out once more."""

import itertools
import math

import torch
from hypothesis import strategies as st
from proving import prove
from transformers import TrainerControl, TrainerState

from bmtard_hooks import EntropyBalance, LossBalance
from bmtard_hooks.functional import balance_weights
from bmtard_hooks.state import DistillationState

ENTROPIES = st.floats(-1e-4, 10) | st.sampled_from([0.0, 1.0, math.log(10), 5e-324, -5e-324])
SIZES = st.floats(1e-30, 1e30) | st.sampled_from([1e-30, 1.0, 1e30])
RATES = st.floats(1e-6, 20) | st.sampled_from([0.001, 1e6])
POWERS = st.sampled_from([0.1, 0.5, 1.0, 2.0, 10.0, 50.0])


def scalars(values):
    return {f"part {index}": torch.tensor(value, dtype=torch.float64) for index, value in enumerate(values)}


def event(callback, state, losses=(), entropies=()):
    callback.on_losses(
        None, TrainerState(), TrainerControl(), losses=scalars(losses), entropies=scalars(entropies),
        distillation=state, class_sums={},
    )  # fmt: skip
    state.advance()


def started(temperatures=(), weights=()):
    state = DistillationState.create(dict.fromkeys(scalars(temperatures), 0.0), dict.fromkeys(scalars(weights), 0.0))
    state.temperatures.update(scalars(temperatures))
    state.weights.update(scalars(weights))
    return state


@st.composite
def bounds(draw):
    low = draw(st.floats(0.01, 5))
    return low, draw(st.floats(low, 50))


def test_temperatures_never_leave_their_bounds(record_property):
    @prove(
        record_property, 150, bounds=bounds(), rate=RATES, data=st.data(), count=st.integers(2, 5),
        rule=st.sampled_from(["difference", "ratio"]),
    )  # fmt: skip
    def law(bounds, rate, data, count, rule):
        count = 2 if rule == "ratio" else count
        callback = EntropyBalance(rate, *bounds, rule)
        state = started(data.draw(st.lists(st.floats(*bounds), min_size=count, max_size=count)))
        for _ in range(5):
            before = [value.item() for value in state.temperatures.values()]
            event(callback, state, entropies=data.draw(st.lists(ENTROPIES, min_size=count, max_size=count)))
            after = [value.item() for value in state.temperatures.values()]
            assert all(bounds[0] <= value <= bounds[1] for value in after)
            # the last bits of a difference are those of its larger operand
            assert all(abs(a - b) <= rate + 1e-15 * abs(b) for a, b in zip(after, before, strict=True))


def clip(value, low, high):
    return min(max(value, low), high)


def sign(value):
    return (value > 0) - (value < 0)


def test_two_temperatures_move_by_equations_12_and_13(record_property):
    @prove(record_property, 150, bounds=bounds(), rate=RATES, nat=ENTROPIES, adv=ENTROPIES, data=st.data())
    def law(bounds, rate, nat, adv, data):
        first, second = data.draw(st.floats(*bounds)), data.draw(st.floats(*bounds))
        state = started([first, second])
        event(EntropyBalance(rate, *bounds), state, entropies=[nat, adv])
        expected = [clip(first - rate * sign(nat - adv), *bounds), clip(second - rate * sign(adv - nat), *bounds)]
        assert [value.item() for value in state.temperatures.values()] == expected


def test_temperatures_do_not_depend_on_the_order_of_the_teachers(record_property):
    # whole numbers of 1/64, so that a sum is exact in every order
    entropies = st.lists(st.integers(0, 640).map(lambda n: n / 64), min_size=3, max_size=5)

    @prove(record_property, 80, entropies=entropies, data=st.data())
    def law(entropies, data):
        order = data.draw(st.permutations(range(len(entropies))))
        plain, mixed = started([2.0] * len(entropies)), started([2.0] * len(entropies))
        event(EntropyBalance(0.1), plain, entropies=entropies)
        event(EntropyBalance(0.1), mixed, entropies=[entropies[index] for index in order])
        straight = list(plain.temperatures.values())
        assert [value.item() for value in mixed.temperatures.values()] == [straight[index].item() for index in order]


def test_weights_stay_non_negative_and_keep_their_sum(record_property):
    weights = st.lists(st.sampled_from([0.0, 1e-3, 0.5, 1.0, 7.0]), min_size=2, max_size=5).filter(any)

    @prove(
        record_property,
        200,
        weights=weights,
        rate=st.floats(1e-9, 1),
        power=POWERS,
        data=st.data(),
        all_of=st.booleans(),
    )
    def law(weights, rate, power, data, all_of):
        state, count = started(weights=weights), len(weights)
        parts = None if all_of else list(state.weights)[: data.draw(st.integers(2, count))]
        moved = count if parts is None else len(parts)
        callback = LossBalance(rate, power, parts)
        if not any(weights[:moved]):
            return
        losses = data.draw(st.lists(SIZES, min_size=count, max_size=count))
        for _ in range(4):
            event(callback, state, losses=losses)
            now = [value.item() for value in state.weights.values()]
            assert all(math.isfinite(weight) and weight >= 0 for weight in now)
            assert math.isclose(math.fsum(now[:moved]), math.fsum(weights[:moved]), rel_tol=1e-12)
            assert now[moved:] == weights[moved:]
            losses = data.draw(st.lists(SIZES | st.just(0.0), min_size=count, max_size=count))


def test_two_weights_move_by_equations_17_to_20(record_property):
    moderate = st.floats(1e-3, 1e3)

    @prove(
        record_property, 150, first=st.tuples(moderate, moderate), now=st.tuples(moderate, moderate),
        rate=st.floats(1e-4, 1), power=st.sampled_from([0.5, 1.0, 2.0]), weight=st.floats(0, 1),
    )  # fmt: skip
    def law(first, now, rate, power, weight):
        state, callback = started(weights=[weight, 1 - weight]), LossBalance(rate, power)
        expected = [weight, 1 - weight]
        for nat, adv in (first, now):
            relative = (nat / first[0]) ** power, (adv / first[1]) ** power
            targets = [value / sum(relative) for value in relative]
            expected = [rate * r + (1 - rate) * w for r, w in zip(targets, expected, strict=True)]
            event(callback, state, losses=[nat, adv])
            moved = [value.item() for value in state.weights.values()]
            assert all(math.isclose(a, b, rel_tol=1e-12, abs_tol=1e-13) for a, b in zip(moved, expected, strict=True))


def test_shares_sum_to_one_whatever_is_left_of_the_losses(record_property):
    relative = st.lists(st.floats(0, 1e60) | st.sampled_from([0.0, 1e-300, 1e60, 1e300]), min_size=2, max_size=5)

    @prove(record_property, 150, relative=relative, power=POWERS)
    def law(relative, power):
        shares = balance_weights(torch.tensor(relative, dtype=torch.float64), power)
        assert (shares >= 0).all() and math.isclose(shares.sum().item(), 1, rel_tol=1e-12)
        if len(set(relative)) == 1:
            assert shares.tolist() == [shares[0].item()] * len(relative)
        ranked = sorted(zip(relative, shares.tolist(), strict=True))
        assert all(left[1] <= right[1] for left, right in itertools.pairwise(ranked))
