"""Trains several methods one after another on every rank and writes down what each rank has. Started by a test."""

import gc
import hashlib
import importlib
import json
from pathlib import Path

import torch
from conftest import sharp_net, tiny_data, tiny_net

from bmtard_hooks import BMTARDConfig, BMTARDTrainer
from bmtard_hooks.methods import make_method

LIKE_ONE = {  # equal to one process with twice the batch; none of them has BatchNorm
    "saad": {"method": "saad", "saad_clean_weight": 0.5, "weight_averaging": "none"},
    "fair_ard": {"method": "fair_ard", "ard_temperature": 5.0},
    "absld": {"method": "absld", "class_temperature_rate": 0.4},
    "ciard": {"method": "ciard", "ciard_teacher_lr": 0.1, "ciard_push_weight": 0.5, "temperature_rate": 0.1},
    "bmtard + awp": {"method": "bmtard", "awp_gamma": 0.2, "weight_rate": 0.3},
}
ALIKE = {  # the same on both ranks, with BatchNorm, whose batches are each rank's own
    "ciard, accumulated": {"method": "ciard", "ciard_teacher_lr": 0.1, "gradient_accumulation_steps": 2},
    "trades + awp": {"method": "trades", "awp_gamma": 0.2, "gradient_accumulation_steps": 2},
    "iad": {"method": "iad", "iad_begin": 0.5},
}


def build(output, batch, norm, **options):
    accumulation = options.get("gradient_accumulation_steps", 1)
    args = BMTARDConfig(
        output_dir=str(output), use_cpu=True, per_device_train_batch_size=batch // accumulation, num_train_epochs=3,
        steps=2, augment="none", report_to="none", disable_tqdm=True, channels_last=False, logging_steps=1,
        eval_attack=False, save_strategy="steps", save_steps=2, loss_scale=1.0, learning_rate=0.3, **options,
    )  # fmt: skip
    teachers = {"clean": sharp_net(1, 8.0), "robust": sharp_net(2, batch_norm=norm)}
    return BMTARDTrainer(
        tiny_net(0, batch_norm=norm), args, train_dataset=tiny_data(16),
        teachers={name: teachers[name] for name in make_method(args).teachers},
    )  # fmt: skip


def same_noise_for_every_image():
    noise = torch.randn(1, 3, 8, 8, generator=torch.Generator().manual_seed(0))
    importlib.import_module("bmtard_hooks.attacks.pgd").draw_noise = lambda shape, *_: noise.expand(tuple(shape))


def left_by(trainer):
    """Collect what a run leaves behind, as plain numbers."""
    teachers = [p for teacher in trainer.teachers.values() for p in teacher.parameters()]
    everything = [*trainer.model.parameters(), *trainer.model.buffers(), *teachers]
    return {
        "student": [parameter.flatten().tolist() for parameter in trainer.model.parameters()],
        "teachers": [parameter.flatten().tolist() for parameter in teachers],
        "state": trainer.distillation.state_dict(),
        "digest": hashlib.sha256(b"".join(v.detach().numpy().tobytes() for v in everything)).hexdigest(),
    }


def main(output):
    gc.freeze()  # every training collects garbage
    torch.set_num_threads(1)
    found = {"like one": {}, "alike": {}, "resumed": {}}
    for name, options in ALIKE.items():
        trainer = build(output / name, 4, True, **options)
        trainer.train()
        found["alike"][name] = left_by(trainer)
        again = build(output / name, 4, True, **options)
        again.train(resume_from_checkpoint=str(output / name / "checkpoint-4"))
        found["resumed"][name] = left_by(again)
    same_noise_for_every_image()
    for name, options in LIKE_ONE.items():
        trainer = build(output / f"{name} like one", 4, False, **options)
        trainer.train()
        found["like one"][name] = left_by(trainer)
    found["world size"] = trainer.args.world_size
    Path(output, f"rank{trainer.args.process_index}.json").write_text(json.dumps(found))
