import math

import pytest
import torch

from bmtard_hooks import functional as F


def test_entropy_and_its_slope_match_the_vectors(vectors):
    identity = vectors["entropy_identity"]
    logits = torch.tensor([identity["logits"]], dtype=torch.float64)
    for row in identity["rows"]:
        probs = F.soften(logits, row["tau"])
        assert F.entropy(probs).item() == pytest.approx(row["H"], abs=1e-6)
        assert F.entropy_slope(logits, row["tau"]).item() == pytest.approx(row["dH_dtau"], abs=1e-6)
        assert F.knowledge_scale(F.entropy(probs), 3).item() == pytest.approx(row["knowledge_scale"], abs=1e-6)


def test_entropy_slope_is_the_derivative_of_entropy():
    logits = torch.randn(5, 7, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    temperature = torch.tensor(1.7, dtype=torch.float64, requires_grad=True)
    (slope,) = torch.autograd.grad(F.entropy(F.soften(logits, temperature)).sum(), temperature)
    torch.testing.assert_close(slope, F.entropy_slope(logits, 1.7).sum())


def test_kl_of_a_prediction_with_itself_is_zero_without_log_eps():
    logits = torch.randn(4, 6, generator=torch.Generator().manual_seed(1))
    torch.testing.assert_close(
        F.kl_to_teacher(logits, F.soften(logits), log_eps=0.0), torch.zeros(4), atol=1e-6, rtol=0
    )


def test_log_eps_leaves_the_students_gradient_unchanged():
    logits = torch.randn(4, 6, dtype=torch.float64, generator=torch.Generator().manual_seed(2), requires_grad=True)
    target = F.soften(torch.randn(4, 6, dtype=torch.float64, generator=torch.Generator().manual_seed(3)))
    gradients = [
        torch.autograd.grad(F.kl_to_teacher(logits, target, log_eps=eps).sum(), logits)[0] for eps in (0.0, 1e-5)
    ]
    torch.testing.assert_close(*gradients, rtol=0, atol=0)


@pytest.mark.parametrize("kl", [F.kl_between, lambda s, t: F.kl_to_teacher(s, F.soften(t), log_eps=0.0)])
def test_kl_sums_over_classes_and_keeps_the_batch(kl):
    student, target = torch.randn(2, 5, 3, generator=torch.Generator().manual_seed(4)).unbind()
    expected = torch.nn.functional.kl_div(student.log_softmax(1), target.softmax(1), reduction="none").sum(1)
    torch.testing.assert_close(kl(student, target), expected)


def test_kl_between_has_a_finite_target_gradient_where_probabilities_underflow():
    student = torch.zeros(1, 3, requires_grad=True)
    target = torch.tensor([[0.0, -300.0, 200.0]], requires_grad=True)
    F.kl_between(student, target).sum().backward()
    assert torch.isfinite(target.grad).all()


def test_certain_teacher_has_zero_entropy_and_full_knowledge():
    probs = torch.tensor([[1.0, 0.0, 0.0]])
    assert F.entropy(probs).item() == 0
    assert F.knowledge_scale(F.entropy(probs), 3).item() == pytest.approx(math.log(3))


def test_balance_weights_share_equally_when_every_loss_is_zero():
    torch.testing.assert_close(F.balance_weights(torch.zeros(3)), torch.full((3,), 1 / 3))


def test_w_robust_of_table_three():
    assert F.w_robust(88.20, 51.68) == pytest.approx(69.94)
    assert F.w_robust(0.9, 0.5, clean_weight=0.25) == pytest.approx(0.6)
    with pytest.raises(ValueError, match="clean_weight=1.5 is outside"):
        F.w_robust(1, 1, clean_weight=1.5)
