"""Evaluates a tiny model on every rank and writes down what each found. Started by test_evaluation_two_ranks.py."""

import json
from pathlib import Path

import torch
from accelerate import PartialState
from conftest import tiny_data, tiny_net

from bmtard_hooks import ImageTensors, evaluate_robustness
from bmtard_hooks.evaluation.runner import AttackRunner

attacked_here = 0
original = AttackRunner._batch


def counting(self, attack, name, indices):
    global attacked_here
    attacked_here += len(indices)
    return original(self, attack, name, indices)


classify = AttackRunner._classify


def unlike(self):
    """Classify as a second device might that rounds differently: two images change sides."""
    logits = classify(self)
    if PartialState().process_index == 1:
        logits[[0, 11]] *= -1
    return logits


def main(output, state):
    torch.set_num_threads(1)
    AttackRunner._batch = counting
    net = tiny_net(0, batch_norm=True).eval()
    images = tiny_data(30, seed=3).images
    with torch.no_grad():
        labels = net(images.float() / 255).argmax(1)
    report = evaluate_robustness(
        net,
        ImageTensors(images, labels),
        {"pgd": "pgd_sat:steps=4", "fgsm": "fgsm", "square": "square:queries=12"},
        state_dir=state,
        progress=False,
        batch_size=8,
        device="cpu",
        check_images=6,
    )
    found = {
        "processes": report.environment["processes"],
        "broken": {name: outcome.broken.tolist() for name, outcome in report.outcomes.items()},
        "queries": report.outcomes["square"].queries.tolist(),
        "checks": [[check.id, check.status] for check in report.checks],
        "attacked_here": attacked_here,
    }
    AttackRunner._classify = unlike
    shared = evaluate_robustness(
        net, ImageTensors(images, labels), ["fgsm"], progress=False, device="cpu", checks=False, batch_size=8
    )
    found["with unlike devices"] = [shared.correct.tolist(), shared.outcomes["fgsm"].broken.tolist()]
    Path(output, f"rank{PartialState().process_index}.json").write_text(json.dumps(found))
