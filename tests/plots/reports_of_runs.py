"""Made-up evaluation reports for runs."""

import numpy as np

from bmtard_hooks.evaluation.report import AttackOutcome, CheckResult, RobustnessReport

SHARES = {"fgsm": 0.3, "pgd_sat": 0.4, "cw_inf": 0.45}


def report_of(
    model, *, seed=0, count=300, attacks=("fgsm", "pgd_sat"), eps=8 / 255, steps=20, failed=False, **changes
):
    """A report of two attacks on images that all reports of one count share."""
    generator = np.random.default_rng(seed)
    labels = np.random.default_rng(count).integers(0, 10, count)
    right = generator.random(count) > 0.15
    hardness = generator.random(count)
    outcomes = {
        name: AttackOutcome(
            settings={"class": "PGD", "eps": eps, "norm": "linf", "images": None, "steps": steps},
            attacked=right,
            broken=right & (hardness < SHARES[name]),
        )
        for name in attacks
    }
    check = CheckResult("A3", "gradients exist", "fail" if failed else "pass", "error", "measured")
    return RobustnessReport(
        model=model,
        dataset="CIFAR-10 test",
        labels=labels,
        predictions=np.where(right, labels, (labels + 1) % 10),
        num_classes=10,
        label_names=None,
        outcomes=outcomes,
        columns={name: [name] for name in attacks},
        checks=[check],
        environment={"seed": 0},
        **changes,
    )
