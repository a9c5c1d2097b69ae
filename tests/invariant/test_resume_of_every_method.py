"""A run that is cut and resumed must end with the very same numbers, whatever the method keeps between steps."""

import pytest
import torch
from conftest import sharp_net, tiny_data, tiny_net
from every_method import everything

RUNS = {
    **{
        name: {}
        for name in ("natural", "sat", "trades", "score", "ard", "fair_ard", "rslad", "absld", "mtard", "lmtn")
    },
    **{name: {} for name in ("baseline", "bmtard", "bmtard_union", "adaad", "ciard")},
    "iad": {"iad_begin": 0.5},
    "iad 2": {"method": "iad", "iad_variant": 2, "iad_begin": 0.5},
    "adaiad": {"iad_begin": 0.5},
    "saad": {"saad_clean_weight": 0.5, "weight_averaging": "none"},
    "ciard, weighted": {"method": "ciard", "ciard_weighted": True},
    "absld, separate": {"method": "absld", "absld_targets": "separate"},
    "igdm on bmtard": {"method": "bmtard", "igdm_weight": 2.0},
    "igdm on adaad": {"method": "adaad", "igdm_weight": 2.0},
    "awp on trades": {"method": "trades", "awp_gamma": 0.1},
    "awp on ciard": {"method": "ciard", "awp_gamma": 0.1, "awp_begin": 1, "awp_restore": "before_step"},
}
SMALL = {"per_device_train_batch_size": 2, "gradient_accumulation_steps": 2}
RUNS |= {
    f"{name}, accumulated": {"method": name, **RUNS[name], **SMALL}
    for name in ("fair_ard", "absld", "saad", "ciard", "bmtard_union")
}
RUNS["awp on bmtard, accumulated"] = {"method": "bmtard", "awp_gamma": 0.1, **SMALL}


@pytest.mark.parametrize("name", RUNS)
def test_resumed_run_equals_the_straight_one_bit_for_bit(make_trainer, tmp_path, name):
    options = {"method": name, **RUNS[name]}

    def trainer():
        return make_trainer(
            tiny_net(0, batch_norm=True, dropout=0.3), tiny_data(10), robust_teacher=sharp_net(2, batch_norm=True),
            num_train_epochs=3, steps=1, save_strategy="steps", save_steps=2, augment="crop_flip", crop_padding=1,
            weight_rate=0.3, temperature_rate=0.1, ciard_teacher_lr=0.1, ciard_teacher_momentum=0.5, **options,
        )  # fmt: skip

    straight = trainer()
    straight.train()
    assert straight.state.global_step == 9
    tensors, numbers = everything(straight)
    for step in (4, 6):  # in the middle of the second epoch, and exactly at its end
        resumed = trainer()
        resumed.train(resume_from_checkpoint=str(tmp_path / "run" / f"checkpoint-{step}"))
        again, figures = everything(resumed)
        assert figures == numbers and again.keys() == tensors.keys()
        assert [key for key, value in again.items() if not torch.equal(value, tensors[key])] == []
        rows = [[row["loss"] for row in t.state.log_history if "loss" in row] for t in (straight, resumed)]
        assert rows[0] == rows[1]


def test_runs_above_move_what_they_are_to_keep(make_trainer):
    def end(method, **options):
        trainer = make_trainer(tiny_net(0), tiny_data(10), method=method, num_train_epochs=3, steps=1, **options)
        trainer.train()
        return trainer

    assert end("fair_ard").distillation.per_class["weight"].std() > 0.01
    assert end("absld").distillation.per_class["robust_temperature"].std() > 0.01
    teacher = end("ciard", ciard_teacher_lr=0.1).teachers["robust"].backbone
    assert not torch.equal(teacher.conv.weight, sharp_net(2).conv.weight)
