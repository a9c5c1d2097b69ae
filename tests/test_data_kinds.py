"""Data sets that are neither tensors nor plain rows."""

import pytest
import torch
from conftest import tiny_data


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
