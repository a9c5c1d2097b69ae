import pytest
import torch

from bmtard_hooks.finite_guard import FiniteGuard
from bmtard_hooks.observation import StepMetrics


def test_metrics_average_losses_keep_the_last_weight_and_start_over():
    metrics = StepMetrics()
    for loss, weight in ((1.0, 0.1), (2.0, 0.2), (6.0, 0.3)):
        metrics.add({"loss_a": torch.tensor(loss)}, {"weight_a": torch.tensor(weight, dtype=torch.float64)})
    assert metrics.collect() == {"loss_a": 3.0, "weight_a": 0.3}
    assert metrics.collect() == {}


def test_guard_names_step_and_parts():
    guard = FiniteGuard()
    guard.watch(0, {"loss_a": torch.tensor(1.0)})
    with pytest.raises(
        FloatingPointError,
        match=r"^step 8: loss_b = inf, then loss_c\. Likely cause: the student's logits overflow.*Training stopped",
    ):
        guard.watch(
            7, {"loss_a": torch.tensor(1.0), "loss_b": torch.tensor(torch.inf), "loss_c": torch.tensor(torch.nan)}
        )
    guard.check()  # said once
