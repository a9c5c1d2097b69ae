"""Made-up reports: what an evaluation could have measured, without measuring."""

import numpy as np

from bmtard_hooks.evaluation.report import AttackOutcome, CheckResult, Example, RobustnessReport

# Name to the attack's class, its share of broken images and its own settings.
ATTACKS = {
    "fgsm": ("PGD", 0.30, {"step_size": None, "steps": 1, "start": "zero", "loss": "ce"}),
    "pgd_sat": ("PGD", 0.40, {"step_size": 2 / 255, "steps": 20, "start": "uniform", "loss": "ce"}),
    "pgd_trades": ("PGD", 0.38, {"step_size": 0.003, "steps": 20, "start": "uniform", "loss": "ce"}),
    "cw_inf": ("PGD", 0.43, {"step_size": 2 / 255, "steps": 30, "start": "uniform", "loss": "margin"}),
    "apgd_ce": ("APGD", 0.41, {"steps": 100, "loss": "ce"}),
    "apgd_t": ("APGD", 0.44, {"steps": 100, "loss": "dlr_targeted"}),
    "fab_t": ("FAB", 0.02, {"steps": 100}),
    "square_5000": ("Square", 0.01, {"queries": 5000}),
    "transfer_pgd": ("Transfer", 0.20, {"surrogate": "WRN-34-10", "attack": {"class": "PGD", "step_size": 0.003}}),
    "transfer_cw": ("Transfer", 0.21, {"surrogate": "WRN-34-10", "attack": {"class": "PGD", "loss": "margin"}}),
    "square": ("Square", 0.12, {"queries": 100, "rescale_schedule": True}),
    "rays": ("RayS", 0.16, {"queries": 100}),
    "spsa": ("SPSA", 0.18, {"steps": 100, "pairs": 128}),
    "my_attack": ("Foreign", 0.25, {"run": "mine.attack"}),
}
AUTOATTACK = ("apgd_ce", "apgd_t", "fab_t", "square_5000")
CLASSES = ["airplane", "automobile", "bird", "cat", "deer", "dog", "frog", "horse", "ship", "truck"]


def sample_report(model="ResNet-18 (B-MTARD)", *, seed=0, failed=False, count=300, attacks=tuple(ATTACKS), **changes):
    """A report in which every attack attacked every image that is correct when clean."""
    generator = np.random.default_rng(seed)
    labels = np.random.default_rng(7).integers(0, len(CLASSES), count)
    wrong = generator.random(count) < 0.12
    predictions = np.where(wrong, (labels + 1) % len(CLASSES), labels)
    hardness = generator.random(count)
    outcomes = {name: _outcome(name, ~wrong, hardness, generator) for name in attacks}
    columns = {name: [name] for name in attacks if name not in AUTOATTACK}
    if set(AUTOATTACK) <= set(attacks):
        columns["autoattack"] = list(AUTOATTACK)
    values = {
        "model": model,
        "dataset": "CIFAR-10 test",
        "labels": labels,
        "predictions": predictions,
        "num_classes": len(CLASSES),
        "label_names": CLASSES,
        "outcomes": outcomes,
        "columns": columns,
        "checks": sample_checks(failed),
        "sweeps": sample_sweeps(0.1 * seed, count),
        "examples": sample_examples(generator),
        "environment": {
            "commit": "0123abc",
            "versions": {"torch": "2.9.1", "timm": "1.0.24"},
            "device": "cpu",
            "seed": 0,
            "images": "0f1e2d3c4b5a6978",
            "attacks": {"fgsm": {"eps": 8 / 255}},
            "folded_batch_norm": None,
            "seconds": 81.25,
            "command": "bmtard evaluate --model resnet18.pt --attacks paper",
        },
    }
    return RobustnessReport(**{**values, **changes})


def worst_case_report(model="ResNet-18", **changes):
    """A report in which every attack saw only the images that those before it had left."""
    names = ("fgsm", "pgd_sat", "cw_inf")
    report = sample_report(model, attacks=names, mode="worst_case", columns={"worst_case": list(names)}, **changes)
    left = report.correct
    for name in names:
        outcome = report.outcomes[name]
        outcome.attacked = left.copy()
        outcome.broken &= left
        left = left & ~outcome.broken
    return report


def _outcome(name, correct, hardness, generator):
    kind, share, settings = ATTACKS[name]
    limit = 100 if name == "spsa" else None
    attacked = correct & (np.arange(len(correct)) < (limit or len(correct)))
    broken = attacked & (hardness + 0.05 * generator.random(len(correct)) < share)
    black_box = kind in ("Square", "RayS", "SPSA")
    return AttackOutcome(
        settings={"class": kind, "eps": 8 / 255, "norm": "linf", "images": limit, **settings},
        attacked=attacked,
        broken=broken,
        broken_on_the_way=None if black_box else broken.copy(),
        queries=generator.integers(1, 100, len(correct)) * attacked if black_box else None,
        forwards=int(attacked.sum()) * 21,
        backwards=0 if black_box else int(attacked.sum()) * 20,
        seconds=1.5,
        notes=["6 target classes instead of 9"] if name == "apgd_t" else [],
    )


def sample_checks(failed=False):
    return [
        CheckResult("P2", "strong attacks beat weak ones", "pass", "error", "52.0 % under PGD, 61.3 % under FGSM"),
        CheckResult(
            "A3",
            "gradients of cross-entropy and margin exist",
            "fail" if failed else "pass",
            "error",
            f"{99 if failed else 0} % of images have gradient 0",
        ),
        CheckResult("A7", "cross-entropy is not far weaker than the margin", "pass", "warning", "4.0 points apart"),
        CheckResult("A12", "adversarial images are valid", "not run", "error", "switched off by the caller"),
    ]


def sample_sweeps(shift=0.0, count=300):
    return {
        "accuracy against eps": [(float(x), max(0.0, 0.85 - shift - 0.05 * x), count) for x in (0, 2, 4, 8, 12, 16)],
        "accuracy against steps": [(float(x), 0.4 - shift + 0.3 / (x + 1), count) for x in (0, 1, 5, 10, 20, 50, 100)],
    }


def sample_examples(generator, count=2):
    examples = []
    for index in range(count):
        clean = generator.integers(8, 248, (3, 16, 16)).astype(np.uint8)
        change = generator.choice([-8, 8], clean.shape)
        examples.append(Example(index, "pgd_sat", 6, 6 - index, clean, (clean + change).astype(np.uint8)))
    return examples
