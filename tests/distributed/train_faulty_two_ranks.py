"""Trains on every rank a student whose attack has no finite gradient on one image. Started by test_numbers_two_ranks.py."""

import json
from pathlib import Path

import torch
from conftest import TinyNet, tiny_data

from bmtard_hooks import BMTARDConfig, BMTARDTrainer


class SpoilsMarked(torch.autograd.Function):
    """The identity, whose gradient is NaN for images with a bright first pixel."""

    @staticmethod
    def forward(ctx, pixels):
        ctx.save_for_backward(pixels)
        return pixels.clone()

    @staticmethod
    def backward(ctx, gradient):
        (pixels,) = ctx.saved_tensors
        marked = (pixels[:, 0, 0, 0] > 0.9).view(-1, 1, 1, 1)
        return gradient.masked_fill(marked, torch.nan)


class Spoilt(TinyNet):
    def forward(self, pixel_values):
        return super().forward(SpoilsMarked.apply(pixel_values))


def main(output, max_skipped_steps):
    data = tiny_data(16)
    data.images[:, 0, 0, 0] = 0
    data.images[5, 0, 0, 0] = 255
    torch.manual_seed(0)
    args = BMTARDConfig(
        output_dir=str(output), method="sat", max_skipped_steps=max_skipped_steps, use_cpu=True, steps=2, augment="none",
        per_device_train_batch_size=4, num_train_epochs=2, fold_batch_norm=False, save_strategy="no", logging_steps=1,
        report_to="none", disable_tqdm=True, channels_last=False, ddp_timeout=30,
    )  # fmt: skip
    trainer = BMTARDTrainer(Spoilt(), args, train_dataset=data)
    try:
        trainer.train()
        ended = "well"
    except FloatingPointError as error:
        ended = str(error)
    found = {
        "ended": ended,
        "skipped": trainer._finite.skipped,
        "steps": trainer.state.global_step,
        "weights": [parameter.flatten().tolist() for parameter in trainer.model.parameters()],
    }
    Path(output, f"rank{args.process_index}.json").write_text(json.dumps(found))
