"""Attacks whose gradient is zero or missing: said in the log, or the end of the run."""

import pytest
import torch
from conftest import tiny_net


class Hiding(torch.nn.Module):
    """A student that hides its gradient."""

    num_classes = 4

    def __init__(self):
        super().__init__()
        self.net = tiny_net(0)

    def forward(self, pixel_values):
        return self.net(pixel_values) * (1.0 if self.training else 0.0)


def test_attack_without_a_gradient_is_logged_and_warned_about_once(make_trainer, caplog):
    trainer = make_trainer(Hiding(), method="sat", fold_batch_norm=False)
    trainer.train()
    rows = [row for row in trainer.state.log_history if "loss" in row]
    assert all(row["attack_zero_gradient"] > 0.5 for row in rows)
    assert caplog.text.count("the attack had no gradient at all on") == 1
    usual = make_trainer(overwrite_output_dir=True)
    usual.train()
    assert not any("attack_zero_gradient" in row for row in usual.state.log_history)


def test_attack_that_loses_its_gradient_altogether_stops_the_run(make_trainer):
    class DeafLater(Hiding):
        passes = 0

        def forward(self, pixel_values):
            self.passes += 1
            return self.net(pixel_values.detach() if self.passes > 10 else pixel_values)

    trainer = make_trainer(DeafLater(), method="sat", fold_batch_norm=False)
    with pytest.raises(RuntimeError, match="does not require grad"):
        trainer.train()
    assert len(trainer.state.log_history) > 1
