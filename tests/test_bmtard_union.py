"""B-MTARD with three teachers in the Trainer: two attacks on the same images, and a balance of three."""

import itertools

import pytest
import torch
from conftest import sharp_net, tiny_data, tiny_net

from bmtard_hooks import DistillationCallback

PARTS = ("robust", "robust_l2", "clean")


class Views(DistillationCallback):
    """Keeps the crafted micro-batches."""

    def __init__(self):
        self.batches = []

    def on_crafted(self, args, state, control, *, batches, **kwargs):
        self.batches.extend(batches)


def train(make_trainer, **options):
    views = Views()
    options = {"num_train_epochs": 4, "steps": 3, **options}
    trainer = make_trainer(tiny_net(0), tiny_data(8), method="bmtard_union", callbacks=[views], **options)
    trainer.train()
    return trainer, views.batches


@pytest.mark.parametrize("start", ["normal", "uniform", "zero"])
def test_each_view_lies_in_its_own_ball(make_trainer, start):
    _, batches = train(make_trainer, l2_eps=0.3, l2_step_size=0.2, eps=4 / 255, step_size=3 / 255, start=start)
    assert len(batches) == 8
    for batch in batches:
        images = batch["pixel_values"]
        for view in ("adv_pixel_values", "adv_l2_pixel_values"):
            assert batch[view].min() >= 0 and batch[view].max() <= 1
        linf = (batch["adv_pixel_values"] - images).abs().amax(dim=(1, 2, 3))
        l2 = (batch["adv_l2_pixel_values"] - images).flatten(1).norm(dim=1)
        assert (linf <= 4 / 255 + 1e-6).all() and (l2 <= 0.3 + 1e-6).all()
        assert (linf > 3.9 / 255).all() and (l2 > 0.25).all()
        assert (batch["adv_l2_pixel_values"] - images).abs().max() > 4 / 255  # not the other ball's


def test_log_has_every_number_of_all_three(make_trainer):
    trainer, _ = train(make_trainer)
    kinds = ("loss", "entropy", "knowledge_scale", "relative_loss", "temperature", "weight")
    rows = [row for row in trainer.state.log_history if "loss" in row]
    assert len(rows) == 8
    for row in rows:
        assert {f"{kind}_{part}" for kind in kinds for part in PARTS} <= row.keys()
        assert row["loss"] == pytest.approx(
            sum(row[f"weight_{part}"] * row[f"loss_{part}"] for part in PARTS), rel=1e-5
        )
        assert sum(row[f"weight_{part}"] for part in PARTS) == pytest.approx(1)


def test_temperatures_move_towards_the_mean_entropy_and_weights_towards_the_slow_loss(make_trainer):
    teachers = {"clean": sharp_net(1, 20.0), "robust": sharp_net(2, 3.0), "robust_l2": sharp_net(3, 8.0)}
    options = {"temperature_rate": 0.05, "weight_rate": 0.2, "lr_milestones": [100]}
    trainer, _ = train(make_trainer, teachers=teachers, robust_temperature=1.5, clean_temperature=2.0, **options)
    rows = [row for row in trainer.state.log_history if "loss" in row]
    for now, then in itertools.pairwise(rows):
        entropies = [now[f"entropy_{part}"] for part in PARTS]
        relative = [then[f"relative_loss_{part}"] for part in PARTS]
        for part, entropy, own in zip(PARTS, entropies, relative, strict=True):
            step = -0.05 if entropy > sum(entropies) / 3 else 0.05
            expected = max(1.0, now[f"temperature_{part}"] + step)
            assert then[f"temperature_{part}"] == pytest.approx(expected), part
            target = own / sum(relative)
            expected = now[f"weight_{part}"] + 0.2 * (target - now[f"weight_{part}"])
            assert then[f"weight_{part}"] == pytest.approx(expected), part
    first, last = rows[0], rows[-1]
    assert last["temperature_clean"] > first["temperature_clean"]  # the surest teacher
    spread = [max(r[f"entropy_{p}"] for p in PARTS) - min(r[f"entropy_{p}"] for p in PARTS) for r in (first, last)]
    assert spread[1] < spread[0]


def test_l2_settings_leave_the_other_attack_as_it_is(make_trainer):
    _, union = train(make_trainer, num_train_epochs=1, learning_rate=1e-12)
    views = Views()
    make_trainer(
        tiny_net(0), tiny_data(8), method="bmtard", callbacks=[views], num_train_epochs=1, steps=3, learning_rate=1e-12
    ).train()
    for one, other in zip(union, views.batches, strict=True):
        assert torch.equal(one["adv_pixel_values"], other["adv_pixel_values"])
