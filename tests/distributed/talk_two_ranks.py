"""Trains tiny students and counts what the ranks say to each other. Started by test_talk.py."""

import gc
import json
from collections import Counter
from pathlib import Path

import torch
import torch.distributed as dist
from conftest import sharp_net, tiny_data, tiny_net
from torch.nn.parallel import DistributedDataParallel
from transformers import TrainerCallback

from bmtard_hooks import BMTARDConfig, BMTARDTrainer, PGDCollator
from bmtard_hooks.methods import make_method

RUNS = {
    "two parts": {},
    "three parts": {"method": "bmtard_union"},
    "four parts": {"method": "bmtard_union", "igdm_weight": 1.0},
    "one part": {"method": "sat"},
    "class sums": {"method": "absld"},
    "accumulated": {"gradient_accumulation_steps": 2},
    "attack in training mode": {"method": "ard"},
}
counts = Counter()


def counting(owner, name):
    original = getattr(owner, name)

    def call(*args, **kwargs):
        counts[name] += 1
        return original(*args, **kwargs)

    setattr(owner, name, call)


class Noting(PGDCollator):
    through_ddp = []

    def craft(self, model, batch, **kwargs):
        before = counts["forward"]
        crafted = super().craft(model, batch, **kwargs)
        self.through_ddp.append(counts["forward"] - before)
        return crafted


class EveryStep(TrainerCallback):
    """Notes what was said between the beginning and the end of every optimizer step."""

    def __init__(self):
        self.steps = []

    def on_step_begin(self, *args, **kwargs):
        counts.clear()

    def on_step_end(self, *args, **kwargs):
        self.steps.append({name: counts[name] for name in ("all_reduce", "broadcast", "forward")})


def build(output, callbacks=(), **options):
    accumulation = options.get("gradient_accumulation_steps", 1)
    args = BMTARDConfig(
        output_dir=str(output), use_cpu=True, per_device_train_batch_size=4 // accumulation, max_steps=2, steps=2,
        augment="none", report_to="none", disable_tqdm=True, save_strategy="no", eval_attack=False, logging_steps=100,
        channels_last=False, **options,
    )  # fmt: skip
    teachers = {"clean": sharp_net(1, 8.0), "robust": sharp_net(2), "robust_l2": sharp_net(3)}
    return BMTARDTrainer(
        tiny_net(0, batch_norm=True), args, Noting(), tiny_data(32), callbacks=list(callbacks),
        teachers={name: teachers[name] for name in make_method(args).teachers},
    )  # fmt: skip


def refusal(output):
    try:
        build(output, sync_batch_norm=True)
    except ValueError as error:
        return str(error)
    return ""


def main(output):
    gc.freeze()  # every training collects garbage
    torch.set_num_threads(1)
    counting(dist, "all_reduce")  # DistributedDataParallel's own come from C++ and are not seen here
    counting(dist, "broadcast")
    counting(DistributedDataParallel, "forward")
    found = {"steps": {}, "through ddp": {}}
    for name, options in RUNS.items():
        Noting.through_ddp = []
        every_step = EveryStep()
        trainer = build(output / name, [every_step], **options)
        trainer.train()
        found["steps"][name], found["through ddp"][name] = every_step.steps, Noting.through_ddp
    found["world size"] = trainer.args.world_size
    found["refusal"] = refusal(output / "refused")
    Path(output, f"rank{trainer.args.process_index}.json").write_text(json.dumps(found))
