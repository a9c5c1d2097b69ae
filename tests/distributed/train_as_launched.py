"""Trains a tiny student as the launcher says and writes down what it said. Started by test_launch_files.py."""

import json
import sys
from pathlib import Path

from accelerate import PartialState

sys.path.insert(0, str(Path(__file__).parents[1]))

import torch
from conftest import sharp_net, tiny_data, tiny_net

from bmtard_hooks import BMTARDConfig, BMTARDTrainer


def main(output):
    torch.set_num_threads(1)
    args = BMTARDConfig(
        output_dir=output, use_cpu=True, per_device_train_batch_size=4, max_steps=2, steps=1, augment="none",
        report_to="none", disable_tqdm=True, save_strategy="no", eval_attack=False,
    )  # fmt: skip
    trainer = BMTARDTrainer(
        tiny_net(0), args, train_dataset=tiny_data(16), clean_teacher=sharp_net(1), robust_teacher=sharp_net(2)
    )
    trainer.train()
    found = {
        "world size": args.world_size,
        "mixed precision": trainer.accelerator.mixed_precision,
        "weights": trainer.model.head.weight.flatten().tolist(),
    }
    Path(output, f"rank{args.process_index}.json").write_text(json.dumps(found))


if __name__ == "__main__":
    main(sys.argv[1])
    PartialState().destroy_process_group()  # or a rank's threads may abort it at its exit
