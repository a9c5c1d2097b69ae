"""Options of the methods: learning rates over a run, and values that are refused."""

import pytest
from conftest import sharp_net, tiny_data, tiny_net

from bmtard_hooks import BMTARDConfig, BMTARDTrainer
from bmtard_hooks.arguments import parse
from bmtard_hooks.methods.ciard import decay

DROPS = {  # method: (epochs of the authors' run, epochs after which the learning rate falls tenfold)
    "natural": (100, [75, 90]),
    "sat": (80, [40, 60]),  # thousand steps
    "trades": (76, [74]),
    "score": (110, [100, 105]),
    "ard": (200, [100]),
    "fair_ard": (200, [100]),
    "iad": (200, [100]),
    "rslad": (300, [215, 260, 285]),
    "absld": (300, [215, 260, 285]),
    "mtard": (300, [215, 260, 285]),
    "lmtn": (300, [215, 260, 285]),
    "baseline": (300, [215, 260, 285]),
    "bmtard": (300, [215, 260, 285]),
    "bmtard_union": (300, [215, 260, 285]),
    "adaad": (200, [100, 150]),
    "adaiad": (200, [100, 150]),
    "saad": (200, [100, 150]),
}


def rates(make_trainer, epochs, steps_per_epoch=3, **options):
    """Return the learning rate of each epoch, which must not change inside an epoch."""
    trainer = make_trainer(tiny_net(0), tiny_data(10), num_train_epochs=epochs, **options)  # 10 images, batch 4
    steps = trainer.args.max_steps if trainer.args.max_steps > 0 else epochs * steps_per_epoch
    trainer.create_optimizer()
    schedule = trainer.create_scheduler(steps)
    found = []
    for step in range(steps):
        rate = trainer.optimizer.param_groups[0]["lr"]
        if step % steps_per_epoch == 0:
            found.append(rate)
        assert rate == found[-1], step
        trainer.optimizer.step()
        schedule.step()
    return found


def falls(found):
    return [epoch for epoch in range(1, len(found)) if found[epoch] == pytest.approx(found[epoch - 1] / 10)]


@pytest.mark.parametrize("method", DROPS)
def test_learning_rate_falls_where_the_authors_lower_it(make_trainer, method):
    epochs, drops = DROPS[method]
    found = rates(make_trainer, epochs, method=method)
    assert found[0] == 0.1 and falls(found) == drops
    assert len(set(found)) == len(drops) + 1


@pytest.mark.parametrize("method", ["ard", "fair_ard", "iad"])
def test_second_drop_that_the_authors_meant_is_an_option(make_trainer, method):
    found = rates(make_trainer, 200, method=method, ard_second_drop=True)
    assert falls(found) == [100, 150] and found[-1] == pytest.approx(0.001)


def test_ciards_learning_rate_follows_its_curve(make_trainer, rival_vectors):
    found = rates(make_trainer, 300, method="ciard")
    for row in rival_vectors["ciard_schedule"]:
        assert found[row["epoch"] - 1] == pytest.approx(row["student_lr"], rel=1e-6, abs=1e-12)
    short = rates(make_trainer, 6, method="ciard")
    assert short == pytest.approx([0.1, 0.1, *(0.1 * decay(epoch, 3, 6) for epoch in (3, 4, 5, 6))])


@pytest.mark.parametrize("method", ["ciard", "saad", "ard"])
def test_given_milestones_win_over_the_methods(make_trainer, method):
    found = rates(make_trainer, 20, method=method, lr_milestones=[4, 7], lr_gamma=0.1, ard_second_drop=True)
    assert falls(found) == [4, 7] and found[-1] == pytest.approx(0.001)


@pytest.mark.parametrize("accumulation, steps_per_epoch", [(1, 3), (2, 2)])
def test_epochs_are_counted_by_steps_where_only_steps_are_given(make_trainer, accumulation, steps_per_epoch):
    options = {"max_steps": 10 * steps_per_epoch, "gradient_accumulation_steps": accumulation}
    found = rates(make_trainer, 1, steps_per_epoch, method="natural", lr_milestones=[3, 8], **options)
    assert falls(found) == [3, 8]
    found = rates(make_trainer, 1, steps_per_epoch, method="ciard", **options)
    assert found[:5] == [0.1] * 5 and found[4] > found[5] > found[8] > found[9] == 0
    whole = rates(make_trainer, 1, 2, method="natural", lr_milestones=[3], dataloader_drop_last=True, max_steps=20)
    assert falls(whole) == [3]


FINITE = "is not allowed: pass a finite number"


@pytest.mark.parametrize(
    "options, message",
    [
        ({"ard_temperature": float("nan")}, f"ard_temperature=nan {FINITE}"),
        ({"ard_temperature": float("inf")}, f"ard_temperature=inf {FINITE}"),
        ({"ard_temperature": 0.0}, "ard_temperature=0.0 is not allowed: pass a positive number"),
        ({"ard_alpha": 1.5}, r"ard_alpha=1.5 is not allowed: pass a share in \[0, 1\]"),
        ({"trades_beta": float("inf")}, f"trades_beta=inf {FINITE}"),
        ({"score_clip": -0.1}, "score_clip=-0.1 is not allowed"),
        ({"fair_ard_power": 0.0}, "fair_ard_power=0.0 is not allowed"),
        ({"min_class_weight": 3.0}, r"min_class_weight=3.0 is not allowed: pass a number up to max_class_weight=2.5"),
        ({"max_class_weight": float("nan")}, f"max_class_weight=nan {FINITE}"),
        ({"min_class_temperature": 0.0}, "min_class_temperature=0.0 is not allowed"),
        ({"absld_targets": "both"}, "absld_targets='both' is not allowed: pass one of aliased, separate"),
        ({"lmtn_teacher_input": "adv"}, "lmtn_teacher_input='adv' is not allowed: pass one of own, clean"),
        ({"iad_variant": 3}, "iad_variant=3 is not allowed: pass one of 1, 2"),
        ({"iad_variant": 2, "iad_alpha": 0.9}, "iad_clean_alpha=0.25 is not allowed: pass two weights that sum"),
        ({"iad_begin": -0.1}, "iad_begin=-0.1 is not allowed: pass a share"),
        ({"adaad_alpha": float("nan")}, f"adaad_alpha=nan {FINITE}"),
        ({"saad_entropy_order": -1.0}, "saad_entropy_order=-1.0 is not allowed"),
        ({"saad_entropy_scale": float("inf")}, f"saad_entropy_scale=inf {FINITE}"),
        ({"ciard_teacher_lr": -1e-4}, "ciard_teacher_lr=-0.0001 is not allowed"),
        ({"ciard_teacher_lr": "1e-4"}, f"ciard_teacher_lr='1e-4' {FINITE}"),  # YAML reads 1e-4 as text
        ({"ciard_teacher_momentum": 1.0}, r"ciard_teacher_momentum=1.0 is not allowed: pass a number in \[0, 1\)"),
        ({"igdm_weight": -1.0}, "igdm_weight=-1.0 is not allowed"),
        ({"igdm_weight": float("nan")}, f"igdm_weight=nan {FINITE}"),
        ({"igdm_forward": 0.0}, "igdm_forward=0.0 is not allowed"),
        ({"awp_gamma": -0.01}, "awp_gamma=-0.01 is not allowed"),
        ({"awp_gamma": float("nan")}, f"awp_gamma=nan {FINITE}"),
        ({"awp_begin": -1}, "awp_begin=-1 is not allowed"),
        ({"awp_restore": "never"}, "awp_restore='never' is not allowed: pass one of after_step, before_step"),
        (
            {"method": "bmtard_union", "norm": "l2"},
            "norm='l2': method 'bmtard_union' attacks in linf with eps and in l2",
        ),
        ({"l2_eps": 0.0}, "eps=0.0 must be a positive number"),
        ({"l2_step_size": float("nan")}, "l2_step_size=nan is not allowed"),
        ({"clean_weight": float("nan")}, f"clean_weight=nan {FINITE}"),
        ({"robust_weight": float("inf")}, f"robust_weight=inf {FINITE}"),
        ({"loss_scale": float("inf")}, f"loss_scale=inf {FINITE}"),
        ({"temperature_rate": float("inf")}, f"temperature_rate=inf {FINITE}"),
        ({"lr_milestones": [3, float("inf")]}, r"lr_milestones=\[3, inf\] is not allowed: pass increasing"),
        ({"lr_milestones": [float("nan")]}, r"lr_milestones=\[nan\] is not allowed"),
    ],
)
def test_config_refuses(options, message, tmp_path):
    with pytest.raises(ValueError, match=message):
        BMTARDConfig(output_dir=str(tmp_path), **options)


@pytest.mark.parametrize(
    "method, given, message",
    [
        (
            "rslad",
            {},
            r"'rslad' needs one teacher, robust; missing: robust. Pass robust_teacher=… \(--robust_teacher DIR\)$",
        ),
        (
            "lmtn",
            {"clean_teacher": "net"},
            "method 'lmtn' needs two teachers, clean and robust; missing: robust. Pass robust_teacher=",
        ),
        (
            "bmtard_union",
            {"clean_teacher": "net", "robust_teacher": "net"},
            r"needs three teachers, clean, robust and robust_l2; missing: robust_l2. Pass teachers=\{\"robust_l2\": …\} \(--robust_l2",
        ),
    ],
)
def test_missing_teacher_is_named_with_the_way_to_pass_it(make_config, method, given, message):
    networks = {name: sharp_net(seed) for seed, name in enumerate(given, 1)}
    with pytest.raises(ValueError, match=message):
        BMTARDTrainer(tiny_net(0), make_config(method=method), train_dataset=tiny_data(), **networks)


def test_stream_with_a_method_whose_learning_rate_follows_epochs(make_trainer):
    import torch

    class Stream(torch.utils.data.IterableDataset):
        def __iter__(self):
            rows = tiny_data(12)
            yield from (rows[index] for index in range(12))

    with pytest.raises(
        ValueError, match="the learning rate of method 'ciard' follows the epochs, and a stream has none"
    ):
        make_trainer(tiny_net(0), Stream(), method="ciard", max_steps=2).train()
    trainer = make_trainer(tiny_net(0), Stream(), method="ciard", max_steps=2, lr_scheduler_type="cosine", steps=1)
    assert trainer.train().global_step == 2


def test_values_are_checked_after_a_command_line_was_parsed(tmp_path):
    parse([BMTARDConfig], ["--output_dir", str(tmp_path)])
    with pytest.raises(ValueError, match="saad_entropy_scale=inf is not allowed: pass a finite number"):
        BMTARDConfig(output_dir=str(tmp_path), saad_entropy_scale=float("inf"))
