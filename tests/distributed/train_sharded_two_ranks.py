"""Trains several tiny students, sharded or not as the launcher says, and writes down the outcome. Started by test_sharding.py."""

import gc
import json
from pathlib import Path

import shard_on_cpu
import torch
from conftest import sharp_net, tiny_data, tiny_net
from safetensors.torch import load_file
from train_two_ranks import digest

from bmtard_hooks import BMTARDConfig, BMTARDTrainer, PGDCollator
from bmtard_hooks.distributed import is_sharded
from bmtard_hooks.methods import make_method

VARIANTS = {
    "bmtard": {"save_strategy": "steps", "save_steps": 3},
    "attack in training mode": {"method": "ard"},
    "attack through the teacher": {"method": "adaad"},
    "teacher that learns": {"method": "ciard", "ciard_teacher_lr": 0.1},
    "bf16": {"bf16": True},
    "one group": {"batch_norm": False},  # Accelerate makes a second one of what looks like a last normalisation
}
NEARLY = {  # gradients are added up in another order, or convolutions get weights of another layout
    "accumulated": {"gradient_accumulation_steps": 2, "save_strategy": "steps", "save_steps": 3},
    "channels last": {"channels_last": True},
}


class Noting(PGDCollator):
    crafted = []

    def craft(self, model, batch, **kwargs):
        crafted = super().craft(model, batch, **kwargs)
        self.crafted.append(digest([crafted["adv_pixel_values"]]))
        return crafted


def build(output, *, each_its_own=True, batch_norm=True, **options):
    Noting.crafted = []
    accumulation = options.get("gradient_accumulation_steps", 1)
    args = BMTARDConfig(**{
        **dict(output_dir=str(output), use_cpu=True, per_device_train_batch_size=4 // accumulation, num_train_epochs=1),
        **dict(steps=3, eval_attack_steps=2, augment="none", logging_steps=1, save_strategy="no", report_to="none"),
        **dict(disable_tqdm=True, channels_last=False, weight_rate=0.3, temperature_rate=0.1, fold_batch_norm=False),
        **options,
    })  # fmt: skip
    teachers = {"clean": sharp_net(1, 8.0), "robust": sharp_net(2)}
    return BMTARDTrainer(
        tiny_net(args.process_index if each_its_own else 0, batch_norm=batch_norm),
        args, Noting(), tiny_data(32), tiny_data(13, seed=5),
        teachers={name: teachers[name] for name in make_method(args).teachers},
    )  # fmt: skip


def whole(model):
    # cloned, because weights that happen to be gathered now are freed later, which numpy's view of them would forbid
    return [(p.full_tensor() if hasattr(p, "full_tensor") else p).detach().clone() for p in model.parameters()]


def left_by(trainer):
    evaluation = measured(trainer)  # which brings the buffers of both ranks together
    return {
        "sharded": is_sharded(trainer.model),
        "student": [value.flatten().tolist() for value in whole(trainer.model)],
        "digest": digest([*whole(trainer.model), *trainer.model.buffers()]),
        "crafted": Noting.crafted,
        "state": trainer.distillation.state_dict(),
        "evaluation": evaluation,
    }


def measured(trainer):
    return {key: value for key, value in trainer.evaluate().items() if "accuracy" in key or "w_robust" in key}


def save_and_load(trainer, output):
    """Save the model and see whether a whole network takes it and has the weights that the run ended with."""
    trainer.save_model(str(output))
    torch.distributed.barrier()
    network = tiny_net(9, batch_norm=True)
    network.load_state_dict(load_file(output / "model.safetensors"))
    return digest([*network.parameters(), *network.buffers()])


def second_training(trainer):
    try:
        trainer.train()
    except ValueError as error:
        return str(error)
    return ""


def main(output):
    gc.freeze()  # every training collects garbage
    torch.set_num_threads(1)
    shard_on_cpu.allow()
    shard_on_cpu.count()
    found = {"left": {}, "resumed": {}, "sent": {}}
    for name, options in (VARIANTS | NEARLY).items():
        trainer = build(output / name, **options)
        shard_on_cpu.sent.clear()
        trainer.train()
        found["sent"][name] = dict(shard_on_cpu.sent)
        found["left"][name] = left_by(trainer)
        if name == "bmtard":
            found["saved"] = save_and_load(trainer, output / "saved")
            found["again"] = second_training(trainer) if is_sharded(trainer.model) else ""
        if "save_steps" in options:
            resumed = build(output / name, **options)
            resumed.train(resume_from_checkpoint=str(output / name / "checkpoint-3"))
            found["resumed"][name] = left_by(resumed)
    found["before"] = measured(build(output / "untrained", each_its_own=False))
    folding = build(output / "folding", fold_batch_norm=True)
    folding.train()
    found["left"]["folding"] = left_by(folding)
    Path(output, f"rank{trainer.args.process_index}.json").write_text(json.dumps(found))
