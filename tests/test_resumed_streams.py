"""A stream that ends is read again and again until the run has its steps: a resumed run goes on in the pass it was in."""

import json
import shutil

import pytest
import torch
from conftest import tiny_data, tiny_net

from bmtard_hooks import DistillationCallback
from bmtard_hooks.state import STATE_NAME


class Stream(torch.utils.data.IterableDataset):
    """Images in an order that every pass has for itself."""

    def __init__(self, count=16):
        self.rows, self.epoch = tiny_data(count), 0

    def set_epoch(self, epoch):
        self.epoch = epoch

    def __iter__(self):
        order = torch.randperm(len(self.rows), generator=torch.Generator().manual_seed(self.epoch)).tolist()
        return iter([self.rows[position] for position in order])


def run(make_trainer, resume=None, count=16, **options):
    options = {"max_steps": 10, "save_strategy": "steps", "save_steps": 1, "augment": "crop_flip", **options}
    trainer = make_trainer(tiny_net(0, batch_norm=True, dropout=0.3), Stream(count), crop_padding=1, **options)
    trainer.train(resume_from_checkpoint=resume)
    return trainer


def logs(trainer):
    times = ("runtime", "per_second", "flos", "loss")  # the last: train_loss of the summary
    history = trainer.state.log_history
    return [{k: v for k, v in row.items() if not k.startswith("train_") and not k.endswith(times)} for row in history]


def assert_same(straight, resumed):
    assert straight.state.global_step == resumed.state.global_step
    assert straight.state.epoch == resumed.state.epoch
    for name, value in straight.model.state_dict().items():
        assert torch.equal(value, resumed.model.state_dict()[name]), name
    assert straight.distillation.state_dict() == resumed.distillation.state_dict()
    assert logs(straight) == logs(resumed)


@pytest.mark.parametrize(
    "options",
    [{}, {"gradient_accumulation_steps": 2, "per_device_train_batch_size": 2}, {"dataloader_num_workers": 1}],
    ids=["plain", "accumulated", "with a worker"],
)
def test_stream_goes_on_in_its_pass_bit_for_bit(make_trainer, tmp_path, options):
    straight = run(make_trainer, **options)
    for stop in (9, 8, 6, 4, 3) if not options else (6, 4):  # four steps a pass
        for step in range(stop + 1, 11):
            shutil.rmtree(tmp_path / "run" / f"checkpoint-{step}")
        assert_same(straight, run(make_trainer, True, **options))


def test_checkpoints_at_the_end_of_a_pass_go_on_with_the_next(make_trainer, tmp_path):
    options = {"save_strategy": "epoch", "eval_strategy": "epoch"}
    straight = run(make_trainer, **options)
    assert sum("eval_loss" in entry for entry in straight.state.log_history) == 3
    for stop in (8, 4):
        resumed = run(make_trainer, str(tmp_path / "run" / f"checkpoint-{stop}"), **options)
        assert_same(straight, resumed)


def test_run_over_a_stream_that_is_finished_ends_again(make_trainer):
    straight = run(make_trainer)
    assert_same(straight, run(make_trainer, True))


@pytest.mark.parametrize("strategy", ["steps", "epoch"])
def test_finished_run_goes_on_in_its_pass_with_more_steps(make_trainer, tmp_path, strategy):
    steps = {"save_strategy": strategy, "lr_scheduler_type": "constant_with_warmup"}
    straight = run(make_trainer, **steps)
    shutil.rmtree(tmp_path / "run")
    for count in (2, 7, 10):
        resumed = run(make_trainer, "auto", max_steps=count, **steps)
    for name, value in straight.model.state_dict().items():
        assert torch.equal(value, resumed.model.state_dict()[name]), name


def test_checkpoint_that_does_not_say_how_far_a_stream_was_read_is_warned_about(make_trainer, tmp_path, caplog):
    run(make_trainer, max_steps=6)
    path = tmp_path / "run" / "checkpoint-6" / STATE_NAME
    content = json.loads(path.read_text())
    assert content["run"].pop("pass") == [1, 4]
    path.write_text(json.dumps(content))  # as an earlier release wrote it
    (path.parent / "checkpoint_manifest.json").unlink()
    run(make_trainer, True)
    assert "does not say how far its stream was read: images of a pass may come again" in caplog.text


class Moves(DistillationCallback):
    """Counts how often the balance moves, and keeps the norm of every step's gradient."""

    def __init__(self):
        self.count, self.norms = 0, []

    def on_losses(self, args, state, control, **kwargs):
        self.count += 1

    def on_pre_optimizer_step(self, args, state, control, model=None, **kwargs):
        self.norms.append(torch.nn.utils.get_total_norm([p.grad for p in model.parameters()]).item())


def test_batches_that_do_not_fill_the_last_step_of_a_pass_are_left_out(make_trainer):
    options = {"gradient_accumulation_steps": 2, "per_device_train_batch_size": 2, "max_steps": 6}
    found = []
    for count in (8, 10):  # ten images make a fifth batch in every pass
        moves = Moves()
        trainer = make_trainer(
            tiny_net(0), FirstInOrder(count), callbacks=[moves], overwrite_output_dir=True, start="zero", **options
        )
        trainer.train()
        assert moves.count == trainer.state.global_step == len(moves.norms) == 6
        losses = [row["loss"] for row in trainer.state.log_history if "loss" in row]
        found.append((moves.norms, losses, trainer.distillation.state_dict()))
    assert found[0] == found[1]


class FirstInOrder(torch.utils.data.IterableDataset):
    """The first images of ten, in their order."""

    def __init__(self, count):
        self.rows, self.count = tiny_data(10), count

    def __iter__(self):
        return iter([self.rows[position] for position in range(self.count)])


def test_run_over_a_stream_whose_passes_do_not_fill_their_steps_resumes_bit_for_bit(make_trainer, tmp_path):
    options = {"gradient_accumulation_steps": 2, "per_device_train_batch_size": 2, "count": 10, "max_steps": 6}
    straight = run(make_trainer, **options)
    for stop in (5, 4, 2, 1):  # two steps a pass
        for step in range(stop + 1, 7):
            shutil.rmtree(tmp_path / "run" / f"checkpoint-{step}", ignore_errors=True)
        assert_same(straight, run(make_trainer, True, **options))


def test_stream_that_never_fills_a_step_is_refused(make_trainer):
    message = r"a pass of the stream gives 1 batch\(es\), a step takes gradient_accumulation_steps=2: lower it"
    with pytest.raises(ValueError, match=message):
        run(make_trainer, count=4, gradient_accumulation_steps=2)
