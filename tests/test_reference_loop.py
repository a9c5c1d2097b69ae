"""The Trainer beside the same training written out by hand."""

import copy

import pytest
import torch
import torch.nn.functional as F
from conftest import sharp_net, tiny_data, tiny_net
from transformers import TrainerCallback

from bmtard_hooks import PGDCollator
from bmtard_hooks.randomness import keyed_generator

STEPS, MILESTONE = 8, 6


class Recorder(TrainerCallback, PGDCollator):
    """Keeps the clean batches that went in and the weights that came out."""

    def __init__(self, **kwargs):
        PGDCollator.__init__(self, **kwargs)
        self.batches, self.weights = [], []

    def craft(self, model, batch, **kwargs):
        self.batches.append((batch["pixel_values"].clone(), batch["labels"].clone()))
        return super().craft(model, batch, **kwargs)

    def on_step_end(self, args, state, control, model=None, **kwargs):
        self.weights.append({name: value.clone() for name, value in model.state_dict().items()})


def textbook_b_mtard(student, clean_teacher, robust_teacher, batches, seed):
    """The authors' step: PGD, two KLs, temperatures for the next step, weights for this one, SGD."""
    optimizer = torch.optim.SGD(student.parameters(), lr=0.1, momentum=0.9, weight_decay=2e-4)
    tau, weight, rate_tau, rate_weight = {"adv": 1.0, "nat": 1.0}, {"adv": 0.5, "nat": 0.5}, 0.001, 0.025
    first = None
    for step, (x, y) in enumerate(batches):
        student.eval()
        noise = torch.randn(x.shape, generator=keyed_generator(seed, "noise", step, 0, 0))
        x_adv = x + 0.001 * noise
        for _ in range(10):
            x_adv = x_adv.detach().requires_grad_()
            F.cross_entropy(student(x_adv), y).backward()
            x_adv = x_adv + 2 / 255 * x_adv.grad.sign()
            x_adv = torch.min(torch.max(x_adv, x - 8 / 255), x + 8 / 255).clamp(0, 1)
        student.train()
        optimizer.zero_grad()
        loss, v = {}, {}
        for name, teacher, images in (("adv", robust_teacher, x_adv.detach()), ("nat", clean_teacher, x)):
            log_p = F.log_softmax(student(images), dim=1)
            with torch.no_grad():
                q = F.softmax(teacher(images) / tau[name], dim=1)
            loss[name] = (q * ((q + 1e-5).log() - log_p)).mean()  # over batch and classes
            v[name] = (q * (q + 1e-5).log()).mean().item()
        sign = 1 if v["adv"] / v["nat"] > 1 else -1 if v["adv"] / v["nat"] < 1 else 0
        first = first or {name: value.item() for name, value in loss.items()}
        relative = {name: value.item() / first[name] for name, value in loss.items()}
        for name in weight:
            weight[name] -= rate_weight * (weight[name] - relative[name] / sum(relative.values()))
        (weight["adv"] * loss["adv"] + weight["nat"] * loss["nat"]).backward()
        optimizer.step()
        tau = {name: min(10.0, max(1.0, tau[name] - rate_tau * s)) for name, s in (("adv", sign), ("nat", -sign))}
        if step + 1 == MILESTONE:
            rate_tau, rate_weight = 0.1 * rate_tau, 0.1 * rate_weight
            optimizer.param_groups[0]["lr"] *= 0.1
        yield {name: value.clone() for name, value in student.state_dict().items()}, dict(tau), dict(weight)


@pytest.mark.parametrize("batch_norm", [False, True])
def test_trainer_takes_the_authors_steps(make_trainer, batch_norm):
    # 10 classes: loss_scale 0.1 on the sum over classes is then the authors' mean over batch and classes
    teachers = {
        "clean_teacher": sharp_net(1, 8.0, num_classes=10),
        "robust_teacher": sharp_net(2, 4.0, num_classes=10),
    }
    student = tiny_net(0, num_classes=10, batch_norm=batch_norm)
    reference = copy.deepcopy(student)
    recorder = Recorder(augment="none", seed=42)
    trainer = make_trainer(
        student,
        tiny_data(STEPS * 4, num_classes=10),
        **teachers,
        data_collator=recorder,
        callbacks=[recorder],
        steps=10,
        lr_milestones=[MILESTONE / STEPS],
    )
    trainer.train()
    assert len(recorder.weights) == len(recorder.batches) == STEPS
    steps = textbook_b_mtard(reference, *(t.eval() for t in teachers.values()), recorder.batches, seed=42)
    for weights, (expected, tau, weight) in zip(recorder.weights, steps, strict=True):
        for name, value in weights.items():
            torch.testing.assert_close(value, expected[name], rtol=1e-4, atol=1e-6, msg=lambda m, n=name: f"{n}: {m}")
    state = trainer.distillation.state_dict()
    assert state["temperatures"] == pytest.approx({"robust": tau["adv"], "clean": tau["nat"]})
    assert state["weights"] == pytest.approx({"robust": weight["adv"], "clean": weight["nat"]}, abs=1e-6)
    assert state["temperatures"]["clean"] > 1.005 and state["weights"]["clean"] != 0.5
