"""Reports and runners with made-up outcomes, and runners of tiny models, to test the checks with."""

import numpy as np
import torch
from conftest import tiny_data, tiny_net
from torch import nn

from bmtard_hooks import ImageTensors
from bmtard_hooks.evaluation.checks import CHECKS
from bmtard_hooks.evaluation.checks.context import Context
from bmtard_hooks.evaluation.report import AttackOutcome, RobustnessReport
from bmtard_hooks.evaluation.runner import AttackRunner
from bmtard_hooks.models.pixels import PixelClassifier

EPS = 8 / 255
COUNT = 1000
BY_ID = {check.id: check for check in CHECKS}


def survivors(share, count=COUNT, offset=0):
    """The first so many images survive; with ``offset`` they begin later and wrap around."""
    return np.roll(np.arange(count) < round(share * count), offset)


def outcome_of(robust, eps=EPS, **more):
    robust = survivors(robust) if isinstance(robust, float) else robust
    attacked = np.ones(len(robust), dtype=bool)
    return AttackOutcome({"eps": eps, "norm": "linf", **more.pop("settings", {})}, attacked, ~robust, **more)


def report_of(columns, mode="columns", count=COUNT):
    """A report whose columns are single attacks, or lists of ``(name, outcome)`` for unions."""
    labels = np.zeros(count, dtype=np.int64)
    report = RobustnessReport("toy", "toy", labels, labels, 10, None, {}, {}, mode=mode)
    for name, value in columns.items():
        parts = value if isinstance(value, list) else [(name, value)]
        report.columns[name] = [part for part, _ in parts]
        for part, outcome in parts:
            report.outcomes[part] = outcome if isinstance(outcome, AttackOutcome) else outcome_of(outcome)
            kind = "Square" if part.startswith("square") else "Attack"
            report.outcomes[part].settings.setdefault("class", kind)
    return report


class FakeRunner:
    """Answers attacks with what ``robust(attack, name)`` says, a share or bits; a pair adds bits of best iterates."""

    num_classes, batch_size, seed, pixel_count = 10, 64, 0, 3072

    def __init__(self, robust=lambda attack, name: 0.5, count=COUNT):
        self.robust, self.correct, self.names = robust, np.ones(count, dtype=bool), []

    def run(self, attack, name, indices):
        self.names.append(name)
        attacked = np.zeros(len(self.correct), dtype=bool)
        attacked[indices] = True
        answer = self.robust(attack, name)
        last, best = answer if isinstance(answer, tuple) else (answer, answer)
        last, best = (survivors(bits) if isinstance(bits, float) else bits for bits in (last, best))
        queries = np.full(len(self.correct), 7)
        return AttackOutcome(attack.settings(), attacked, attacked & ~last, attacked & ~best, queries)


def look(name, report=None, runner=None, images=COUNT):
    runner = FakeRunner() if runner is None else runner
    context = Context(runner, report_of({}) if report is None else report, images=images, eps=EPS, norm="linf")
    return BY_ID[name](context)


def runner_of(model, count=24, **options):
    """A runner on images whose labels are what the model says, so that all are correct."""
    data = tiny_data(count)
    classifier = model if isinstance(model, PixelClassifier) else PixelClassifier(model)
    classifier.eval()
    with torch.no_grad():
        labels = classifier(data.images.float() / 255).argmax(dim=1)
    return AttackRunner(classifier, ImageTensors(data.images, labels), **options)


class Changed(nn.Module):
    """A tiny net with something done to its pixels or logits."""

    def __init__(self, before=lambda pixels: pixels, after=lambda logits: logits):
        super().__init__()
        self.net, self.before, self.after = tiny_net(0), before, after
        self.register_buffer("calls", torch.zeros(()))

    def forward(self, pixels):
        return self.after(self.net(self.before(pixels)))
