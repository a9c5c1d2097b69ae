"""Trains for thousands of steps and writes down what the process held on the way. Started by test_long_run.py."""

import gc
import json
import os
import sys
import tempfile
import threading
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parents[1]))

import torch
from conftest import sharp_net, tiny_data, tiny_net
from transformers import TrainerCallback

from bmtard_hooks import BMTARDConfig, BMTARDTrainer

PAGE = os.sysconf("SC_PAGE_SIZE")


def resident():
    """Bytes of memory of this process, as the kernel counts them."""
    return int(Path("/proc/self/statm").read_text().split()[1]) * PAGE


class Watch(TrainerCallback):
    """Looks at the process at chosen steps, always at the same point of a step."""

    def __init__(self, every, leak):
        self.every, self.leak, self.kept, self.looks = every, leak, [], []

    def on_step_end(self, args, state, control, **kwargs):
        if self.leak == "tensor":
            self.kept.append(torch.zeros(1024))
        elif self.leak == "handle" and state.global_step % 100 == 0:
            self.kept.append(os.open(os.devnull, os.O_RDONLY))
        elif self.leak == "graph":
            self.kept.append(kwargs["model"].head.weight.sum())
        if state.global_step % self.every == 0:
            gc.collect()
            objects = gc.get_objects()
            self.looks.append(
                {
                    "step": state.global_step,
                    "resident": resident(),
                    "objects": len(objects),
                    "tensors": sum(type(thing) is torch.Tensor for thing in objects),
                    "handles": len(os.listdir("/proc/self/fd")),
                    "threads": threading.active_count(),
                    "kernel threads": len(os.listdir("/proc/self/task")),
                    "log rows": len(state.log_history),
                    "checkpoints": len(list(Path(args.output_dir).glob("checkpoint-*"))),
                }
            )


def train(folder, steps, every, leak="", **options):
    args = BMTARDConfig(
        output_dir=folder, use_cpu=True, per_device_train_batch_size=4, max_steps=steps, steps=1, eval_attack_steps=1,
        augment="crop_flip", crop_padding=1, logging_steps=25, eval_strategy="steps", eval_steps=50, save_strategy="steps",
        save_steps=50, save_total_limit=2, metric_for_best_model="w_robust", report_to="none", disable_tqdm=True, **options,
    )  # fmt: skip
    watch = Watch(every, leak)
    trainer = BMTARDTrainer(
        tiny_net(0, batch_norm=True, dropout=0.2), args, train_dataset=tiny_data(64), eval_dataset=tiny_data(12, seed=5),
        clean_teacher=sharp_net(1, 8.0, batch_norm=True), robust_teacher=sharp_net(2, batch_norm=True), callbacks=[watch],
    )  # fmt: skip
    trainer.train()
    return watch.looks


def main(output, steps, leak):
    torch.set_num_threads(1)
    gc.freeze()  # what importing made is not looked through at every look
    found = {}
    with tempfile.TemporaryDirectory() as folder:
        found["bmtard"] = train(f"{folder}/bmtard", steps, 100, leak)
        found["averaged"] = train(f"{folder}/averaged", 600, 100, weight_averaging="ema")
        found["with workers"] = train(
            f"{folder}/workers", 160, 16, dataloader_num_workers=1, dataloader_persistent_workers=True
        )
    Path(output).write_text(json.dumps(found))


if __name__ == "__main__":
    main(sys.argv[1], int(sys.argv[2]), sys.argv[3] if len(sys.argv) > 3 else "")
