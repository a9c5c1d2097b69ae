"""The checks of the forward pass and of the gradients, on tiny models that are spoilt in one way each."""

import threading

import pytest
import torch
from fabricated import Changed, look, runner_of
from torch import nn
from torch.autograd import grad as imported_grad

from bmtard_hooks.evaluation.attacking import InvalidExamples
from bmtard_hooks.evaluation.checks import attacks
from bmtard_hooks.models.pixels import PixelClassifier


def self_seeded(pixels):
    generator = torch.Generator().manual_seed(0)
    return pixels + 0.1 * torch.randn(pixels.shape, generator=generator)


def rounded(pixels):
    return (pixels * 31).round() / 31


def with_batch_statistics(pixels):
    return nn.functional.batch_norm(pixels, None, None, training=True)


def by_grad(pixels):
    with torch.enable_grad():
        free = pixels.detach().requires_grad_(True)
        return pixels + 0.01 * torch.autograd.grad(free.square().sum(), free)[0]


def by_imported_grad(pixels):
    with torch.enable_grad():
        free = pixels.detach().requires_grad_(True)
        return pixels + 0.01 * imported_grad(free.square().sum(), free)[0]


def by_backward(pixels):
    with torch.enable_grad():
        free = pixels.detach().requires_grad_(True)
        free.square().sum().backward()
    return pixels + 0.01 * free.grad


def by_func(pixels):
    return pixels + 0.01 * torch.func.grad(lambda free: free.square().sum())(pixels)


@pytest.mark.parametrize("before", [lambda pixels: pixels + 0.1 * torch.randn_like(pixels), self_seeded])
def test_a1_finds_randomness_even_if_the_model_seeds_it(before):
    assert look("A1", runner=runner_of(Changed())).status == "pass"
    result = look("A1", runner=runner_of(Changed(before)))
    assert (result.status, result.severity) == ("fail", "error")


def test_a2_finds_probabilities():
    assert look("A2", runner=runner_of(Changed())).status == "pass"
    result = look("A2", runner=runner_of(Changed(after=lambda logits: logits.softmax(dim=1))))
    assert (result.status, result.severity) == ("fail", "warning")


@pytest.mark.parametrize("how", [{"before": rounded}, {"after": lambda logits: 1e4 * logits}])
def test_a3_and_a9_find_dead_gradients(how):
    for name, severity in (("A3", "error"), ("A9", "warning")):
        assert look(name, runner=runner_of(Changed())).status == "pass"
        result = look(name, runner=runner_of(Changed(**how)))
        assert (result.status, result.severity) == ("fail", severity), result


@pytest.mark.parametrize("before", [by_grad, by_imported_grad, by_backward, by_func])
def test_a11_finds_every_way_to_differentiate_in_the_forward(before):
    result = look("A11", runner=runner_of(Changed(before)))
    assert (result.status, result.severity) == ("fail", "warning"), result
    assert look("A11", runner=runner_of(Changed())).status == "pass"  # nothing is left behind


def test_a11_does_not_mind_other_threads_that_differentiate():
    def meanwhile(pixels):
        other = threading.Thread(target=by_grad, args=(pixels.detach().clone(),))
        other.start()
        other.join()
        return pixels

    assert look("A11", runner=runner_of(Changed(meanwhile))).status == "pass"


def test_a11_does_not_mistake_another_failure_for_an_optimisation():
    runner = runner_of(Changed())
    runner.model.backbone.before = lambda pixels: pixels.view(-1)
    result = look("A11", runner=runner)
    assert result.status == "not run" and "RuntimeError" in result.evidence


def test_a12_finds_verdicts_that_depend_on_the_batch():
    assert look("A12", runner=runner_of(Changed())).status == "pass"
    result = look("A12", runner=runner_of(Changed(with_batch_statistics)))
    assert (result.status, result.severity) == ("fail", "error"), result


def test_a12_fails_on_invalid_examples(monkeypatch):
    def refuse(*arguments):
        raise InvalidExamples("PGD moved an image by 0.5")

    monkeypatch.setattr(attacks, "require_valid", refuse)
    result = look("A12", runner=runner_of(Changed()))
    assert result.status == "fail" and "0.5" in result.evidence


def test_a13_names_what_an_attack_changed():
    for training in (False, True):
        model = PixelClassifier(Changed())
        runner = runner_of(model)
        model.train(training)
        model.backbone.net.conv.weight.grad = torch.ones_like(model.backbone.net.conv.weight)
        assert look("A13", runner=runner).status == "pass"
    counting = Changed()
    counting.before = lambda pixels: (counting.calls.add_(1), pixels)[1]
    result = look("A13", runner=runner_of(counting))
    assert (result.status, result.severity) == ("fail", "error")
    assert "buffer backbone.calls" in result.evidence
    drawing = Changed(lambda pixels: (torch.rand(1), pixels)[1])
    assert "random numbers of torch" in look("A13", runner=runner_of(drawing)).evidence
