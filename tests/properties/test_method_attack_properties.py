"""The inner attack of every registered method, with its own objective and views."""

import torch
from conftest import tiny_net
from hypothesis import strategies as st
from proving import KINDS, SEEDS, assert_inside, drawn_images, prove

from bmtard_hooks import BMTARDConfig, PGDCollator
from bmtard_hooks.methods import make_method
from bmtard_hooks.methods.base import method_names
from bmtard_hooks.state import DistillationState

LENGTHS = st.sampled_from([1 / 255, 8 / 255, 0.3, 1.0])


def scaled_net(seed, scale):
    net = tiny_net(seed, batch_norm=True)
    with torch.no_grad():
        net.head.weight.mul_(scale)
    return net


def craft(method, collator, batch, seed, scale):
    """Attack as the Trainer does, with a student and teachers whose logits have a size."""
    student = scaled_net(seed, scale)
    teachers = {role: scaled_net(7, scale).eval() for role in method.teachers}
    state = DistillationState.create(
        method.temperatures(), method.weights, per_class={key: [v] * 4 for key, v in method.per_class().items()}
    )
    crafted = collator.craft(
        student, batch, key=(seed,), forward=student,
        before_attack=lambda batch: method.before_attack(student, teachers, batch, state),
        objective=lambda batch: method.attack_objective(student, teachers, batch, state),
        views=method.adversarial_views, count_correct=method.counts_correct_steps,
    )  # fmt: skip
    assert all(parameter.requires_grad for parameter in student.parameters())
    return crafted


def test_every_method_crafts_inside_every_ball_it_uses(record_property, tmp_path):
    names = method_names()
    methods = {name: make_method(BMTARDConfig(output_dir=str(tmp_path), method=name)) for name in names}
    collators = {name: PGDCollator().resolved(method.config) for name, method in methods.items()}
    seen = set()

    @prove(
        record_property, 60, part=st.integers(0, 2), seed=SEEDS, count=st.integers(1, 4), kind=KINDS, eps=LENGTHS,
        step_size=LENGTHS, steps=st.integers(0, 3), start=st.sampled_from(["normal", "uniform", "zero"]),
        scale=st.sampled_from([0.0, 1e-12, 1.0, 1e4, 1e15]), train_mode=st.booleans(),
    )  # fmt: skip
    def law(part, seed, count, kind, eps, step_size, steps, start, scale, train_mode):
        batch = {"pixel_values": drawn_images(seed, (count, 3, 8, 8), kind), "labels": torch.arange(count) % 4}
        for name in names[part::3]:
            collator = collators[name]
            collator.settings = collator.settings.replace(
                eps=eps, step_size=step_size, steps=steps, start=start, train_mode=train_mode
            )
            crafted = craft(methods[name], collator, batch, seed, scale)
            for view, changes in methods[name].adversarial_views.items():
                used = collator.settings.replace(**changes)
                assert_inside(crafted[view], crafted["pixel_values"], used.norm, used.eps)
            seen.add(name)

    assert seen == set(names)
