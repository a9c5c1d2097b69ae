"""Runs that cannot be meant as they are: said before they cost anything."""

import re

import pytest
import torch
from conftest import tiny_data, tiny_net

from bmtard_hooks import BMTARDConfig, BMTARDTrainer, PGDCollator


def test_another_radius_in_evaluation_is_warned_about(make_trainer, caplog):
    make_trainer(data_collator=PGDCollator(eps=4 / 255, augment="none"), max_steps=1).train()
    assert "the collator attacks with linf eps=0.015686, evaluate() with linf eps=0.031373" in caplog.text
    caplog.clear()
    make_trainer(data_collator=PGDCollator(augment="none"), max_steps=1).train()
    assert "evaluate() with" not in caplog.text


def test_a_loss_that_ignores_attack_and_teachers_is_refused(tmp_path):
    class Weighted(BMTARDTrainer):
        def compute_loss(self, model, inputs, return_outputs=False, num_items_in_batch=None):
            return torch.nn.functional.cross_entropy(model(inputs["pixel_values"]), inputs["labels"])

    class Adding(BMTARDTrainer):
        def compute_loss(self, *args, **kwargs):
            return super().compute_loss(*args, **kwargs) + 1.0

    config = BMTARDConfig(output_dir=str(tmp_path), method="sat", steps=1, max_steps=1, save_strategy="no")
    student = tiny_net(0)
    with pytest.raises(TypeError, match=r"compute_loss of Weighted never asked that of BMTARDTrainer.*super\(\)"):
        Weighted(student, config, train_dataset=tiny_data()).train()
    assert all(torch.equal(value, student.state_dict()[name]) for name, value in tiny_net(0).state_dict().items())
    Adding(tiny_net(0), config, train_dataset=tiny_data()).train()


@pytest.mark.parametrize(
    "options, named",
    [
        ({"eps": 0.2, "steps": 10}, ["10 steps of step_size=0.007843", "20 steps of eval_attack_step_size=0.003"]),
        ({"eps": 0.2, "steps": 10, "step_size": 0.05, "eval_attack": False}, []),
        ({"norm": "l2", "eps": 0.5}, []),
        (
            {"norm": "l2", "eps": 0.5, "eval_attack_step_size": 0.02},
            ["20 steps of eval_attack_step_size=0.02 together"],
        ),
        ({"method": "natural", "eps": 0.05}, []),
        ({}, []),
    ],
)
def test_steps_that_cannot_reach_the_radius_are_warned_about(make_trainer, options, named, caplog):
    given = {"steps": 4, "eval_attack_steps": 20, **options}
    make_trainer(**given, data_collator=None, augment="none", max_steps=1).train()
    found = [record.getMessage() for record in caplog.records if "do not reach the radius" in record.getMessage()]
    assert len(found) == len(named) and all(name in text for name, text in zip(named, found, strict=True))


@pytest.mark.parametrize(
    "options, message",
    [
        ({"method": "sat", "lr_milestones": [1, 3]}, r"lr_milestones \[3\] come after the last of 2 epochs"),
        ({"method": "ciard", "num_train_epochs": 1}, "method 'ciard' has a learning rate of 0 in its last epoch"),
        ({"method": "ciard", "max_steps": 1}, "method 'ciard' has a learning rate of 0 in its last epoch"),
    ],
)
def test_a_schedule_that_cannot_be_meant_is_warned_about(make_trainer, options, message, caplog):
    trainer = make_trainer(**{"num_train_epochs": 2, "steps": 1, **options})
    with caplog.at_level("WARNING", logger="bmtard_hooks"):
        trainer.train()
    assert re.search(message, caplog.text)
