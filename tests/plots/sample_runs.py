"""Made-up logs: what a Trainer could have logged, without training."""

import json
import math

from bmtard_hooks.plots import Run

CLASSES = 10


def sample_log(*parts, move_temperatures=True, balance_losses=True, count=24, per_epoch=6, **extra):
    """A log in which the first teacher's temperature moves until its entropy is that of the others."""
    return [
        {
            "loss": 1.0,
            "learning_rate": 0.1,
            "epoch": step / per_epoch,
            "step": 10 * step,
            **_numbers(parts, step, move_temperatures, balance_losses),
            **extra,
        }
        for step in range(1, count + 1)
    ]


def _numbers(parts, step, move_temperatures, balance_losses):
    entry = {}
    for position, part in enumerate(parts):
        moved = move_temperatures and position == 0
        temperature = 1 + 0.1 * step * moved
        entropy = 1.9 - 1.2 * (position == 0) * (math.exp(-step / 5) if move_temperatures else 1)
        loss = (1 + position) * math.exp(-step / (8 + 4 * position))
        shift = 0.1 * math.sin(step / 6) * (1 if position else -1) if balance_losses else 0
        entry |= {
            f"temperature_{part}": temperature,
            f"entropy_{part}": entropy,
            f"knowledge_scale_{part}": math.log(CLASSES) - entropy,
            f"loss_{part}": loss,
            f"weight_{part}": 1 / len(parts) + shift,
        }
        if balance_losses:
            entry[f"relative_loss_{part}"] = loss / (1.5 + position)
    return entry


def evaluation(clean=0.6, robust=0.3, clean_weight=0.5, images=500, **changes):
    """The entry that ``evaluate()`` leaves, with the speed rounded as the Trainer does."""
    entry = {
        "eval_clean_accuracy": clean,
        "eval_robust_accuracy": robust,
        "eval_w_robust": clean_weight * clean + (1 - clean_weight) * robust,
        "eval_runtime": 13.8744,
        "eval_samples_per_second": round(images / 13.8744, 3),
        "epoch": 4.0,
        "step": 240,
    }
    return {key: value for key, value in {**entry, **changes}.items() if value is not None}


def ablation():
    """The four runs of the paper's ablation."""
    kinds = {"Baseline": (False, False), "+EBB": (True, False), "+NLB": (False, True), "B-MTARD": (True, True)}
    return [
        Run(
            name,
            [
                *sample_log("clean", "robust", move_temperatures=temperatures, balance_losses=losses),
                evaluation(robust=0.3 + 0.05 * temperatures + 0.03 * losses),
            ],
        )
        for name, (temperatures, losses) in kinds.items()
    ]


def sat():
    """A run that has one loss part and no teachers."""
    return Run("SAT", [{"loss": 2.0, "loss_robust": 2.0, "epoch": 1.0, "step": 10}, evaluation(0.5, 0.35)])


def write_state(directory, log, step=240):
    directory.mkdir(parents=True, exist_ok=True)
    path = directory / "trainer_state.json"
    path.write_text(json.dumps({"global_step": step, "log_history": log}))
    return path
