"""Data sets that are neither tensors nor plain rows."""

import pytest
import torch
from conftest import tiny_data, tiny_net

from bmtard_hooks import preparing


class Stream(torch.utils.data.IterableDataset):
    """A stream of images, with or without a known length."""

    def __iter__(self):
        return (tiny_data()[i % 16] for i in range(16))


class StreamWithLength(Stream):
    def __len__(self):
        return 16


@pytest.mark.parametrize("kind", [Stream, StreamWithLength])
def test_streams_can_be_trained_on(make_trainer, kind):
    trainer = make_trainer(data=kind(), eval_dataset=kind(), max_steps=4)
    trainer.train()
    assert trainer.state.global_step == 4 and "eval_w_robust" in trainer.evaluate()
    with pytest.raises(ValueError, match="lr_milestones are epochs, and a stream has none"):
        make_trainer(data=kind(), max_steps=4, lr_milestones=[1]).train()


def test_data_set_whose_transform_gives_other_columns(make_trainer):
    import datasets

    rows = datasets.Dataset.from_dict({"file": list(range(8)), "grade": [0, 1, 2, 3] * 2})
    images = tiny_data().images.float() / 255
    rows.set_transform(lambda row: {"pixel_values": [images[i] for i in row["file"]], "labels": row["grade"]})
    trainer = make_trainer(data=rows, eval_dataset=rows)
    trainer.train()
    assert "eval_w_robust" in trainer.evaluate()


def collate(change):
    """A collator of one's own, which changes what it gives."""

    def stack(rows):
        batch = {
            "pixel_values": torch.stack([torch.as_tensor(row["pixel_values"]).float() / 255 for row in rows]),
            "labels": torch.tensor([int(row["labels"]) for row in rows]),
        }
        return {**batch, **change(batch)}

    return stack


def without_class_count(**kwargs):
    network = tiny_net(1, **kwargs)
    del network.num_classes
    return network


@pytest.mark.parametrize(
    "change, parts, message",
    [
        (lambda b: {"pixel_values": (b["pixel_values"] - 0.5) / 0.25}, {}, "the collator gave pixel_values from -2 to 2: they"),
        (lambda b: {"labels": b["labels"] + 3}, {}, "labels from 4 to 6 do not fit the student's 4 classes"),
        (lambda b: {"labels": b["labels"].float()}, {}, "labels have dtype torch.float32: pass class indices"),
        (lambda b: {}, {"clean_teacher": without_class_count(num_classes=7)}, r"the clean teacher gives logits of shape \(2, 7\)"),
        (lambda b: {"pixel_values": b["pixel_values"][:, :1]}, {}, "student .* 1 channel"),
    ],
)  # fmt: skip
def test_first_batch_of_a_stream_is_checked_before_anything_changes(make_trainer, change, parts, message):
    trainer = make_trainer(tiny_net(0, batch_norm=True), Stream(), max_steps=4, data_collator=collate(change), **parts)
    before = {name: value.clone() for name, value in trainer.model.state_dict().items()}
    with pytest.raises(ValueError, match=message):
        trainer.train()
    assert trainer.state.global_step == 0
    assert all(torch.equal(value, before[name]) for name, value in trainer.model.state_dict().items())


def test_check_of_a_stream_happens_once_in_a_training_and_changes_no_bit(make_trainer, monkeypatch):
    seen, check = [], preparing.check_first_batch

    def run():
        trainer = make_trainer(tiny_net(0, batch_norm=True, dropout=0.3), Stream(), max_steps=6, augment="crop_flip")
        trainer.train()
        return trainer

    monkeypatch.setattr(preparing, "check_first_batch", lambda trainer, batch: seen.append(check(trainer, batch)))
    checked = run()
    assert len(seen) == 1
    monkeypatch.setattr(preparing, "check_first_batch", lambda trainer, batch: None)
    unchecked = run()
    for name, value in unchecked.model.state_dict().items():
        assert torch.equal(value, checked.model.state_dict()[name]), name
    monkeypatch.setattr(preparing, "check_first_batch", lambda trainer, batch: seen.append(check(trainer, batch)))
    checked.train()
    assert len(seen) == 2
