"""Two processes for the methods that look at more than their own images, or train more than the student."""

import importlib

import pytest
from forked_ranks import run
from train_methods_two_ranks import ALIKE, LIKE_ONE, build, left_by, main, same_noise_for_every_image


@pytest.fixture(scope="module")
def ranks(tmp_path_factory):
    found = run(main, tmp_path_factory.mktemp("methods"))
    assert [rank["world size"] for rank in found] == [2, 2]
    return found


@pytest.mark.parametrize("kind, name", [("alike", name) for name in ALIKE] + [("like one", name) for name in LIKE_ONE])
def test_both_ranks_end_with_the_same_networks_and_state(ranks, kind, name):
    one, other = (rank[kind][name] for rank in ranks)
    assert one == other


@pytest.mark.parametrize("name", ALIKE)
def test_resumed_run_of_two_ranks_is_bit_exact(ranks, name):
    for rank in ranks:
        assert rank["resumed"][name] == rank["alike"][name]


@pytest.mark.parametrize("name", LIKE_ONE)
def test_two_ranks_equal_one_process_with_twice_the_batch(ranks, name, tmp_path, monkeypatch):
    module = importlib.import_module("bmtard_hooks.attacks.pgd")
    monkeypatch.setattr(module, "draw_noise", module.draw_noise)  # puts it back
    same_noise_for_every_image()
    trainer = build(tmp_path, 8, False, **LIKE_ONE[name])
    trainer.train()
    one, two = left_by(trainer), ranks[0]["like one"][name]
    for kind in ("student", "teachers"):
        for left, right in zip(one[kind], two[kind], strict=True):
            assert left == pytest.approx(right, rel=1e-3, abs=3e-5), kind
    for group, values in one["state"].items():
        for part, value in values.items():
            assert two["state"][group][part] == pytest.approx(value, rel=1e-3), (group, part)
