"""Trains a tiny student on every rank and writes down what each rank saw. Started by test_ddp.py."""

import hashlib
import json

from conftest import sharp_net, tiny_data, tiny_net

from bmtard_hooks import BMTARDConfig, BMTARDTrainer, PGDCollator


def digest(tensors):
    return hashlib.sha256(b"".join(tensor.detach().cpu().numpy().tobytes() for tensor in tensors)).hexdigest()


class Recorder(PGDCollator):
    noise, images, buffers = [], [], []

    def craft(self, model, batch, **kwargs):
        self.buffers.append(digest(model.buffers()))
        crafted = super().craft(model, batch, **kwargs)
        self.noise.append(digest([crafted["adv_pixel_values"] - crafted["pixel_values"]]))
        self.images.extend(digest([image]) for image in batch["pixel_values"])
        return crafted


def main(output, batch, batch_norm, resume, accumulation):
    args = BMTARDConfig(
        output_dir=str(output), use_cpu=True, per_device_train_batch_size=batch // accumulation, num_train_epochs=2, steps=2,
        gradient_accumulation_steps=accumulation, eval_attack_steps=2, augment="none", logging_steps=1,
        save_strategy="steps", save_steps=4, report_to="none", disable_tqdm=True, weight_rate=0.3,
        temperature_rate=0.1, start="zero" if accumulation > 1 or not batch_norm else None, channels_last=False,
    )  # fmt: skip
    collator = Recorder()
    trainer = BMTARDTrainer(
        tiny_net(0, batch_norm=batch_norm), args, collator, tiny_data(32), tiny_data(13, seed=5),
        clean_teacher=sharp_net(1, 8.0), robust_teacher=sharp_net(2),
    )  # fmt: skip
    trainer.train(resume_from_checkpoint=resume and str(resume))
    found = {
        "world_size": args.world_size,
        "weights": digest(trainer.model.parameters()),
        "values": [parameter.flatten().tolist() for parameter in trainer.model.parameters()],
        "state": trainer.distillation.state_dict(),
        "evaluation": {k: v for k, v in trainer.evaluate().items() if "accuracy" in k or "w_robust" in k},
        "noise": collator.noise,
        "images": collator.images,
        "buffers": collator.buffers,
        "log": [row for row in trainer.state.log_history if "loss" in row],
    }
    (output / f"rank{args.process_index}.json").write_text(json.dumps(found))
