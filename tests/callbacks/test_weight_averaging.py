import shutil
from pathlib import Path

import pytest
import torch
from conftest import tiny_data, tiny_net
from safetensors.torch import load_file
from transformers import TrainerCallback

from bmtard_hooks import RobustEvaluation, create_model, evaluate_robustness
from bmtard_hooks.callbacks import robust_evaluation
from bmtard_hooks.callbacks.weight_averaging import WeightAveraging

RUN = dict(augment="crop_flip", crop_padding=1, num_train_epochs=4, save_strategy="steps", save_steps=1)
EMA = dict(weight_averaging="ema", averaging_start=0.2)
SWA = dict(weight_averaging="swa", averaging_start=0.25)


@pytest.fixture
def run(make_trainer, tmp_path):
    """Make a trainer of 8 steps in 4 epochs."""

    def make(name="run", norm=True, **options):
        net = tiny_net(0, batch_norm=norm, dropout=0.3)
        data = options.pop("data", None) or tiny_data(8)
        return make_trainer(net, data, **{**RUN, "output_dir": str(tmp_path / name), **options})

    return make


def average_of(trainer):
    return next(callback for callback in trainer.distillation_callbacks() if isinstance(callback, WeightAveraging))


def saved_average(trainer, step):
    directory = f"{trainer.args.output_dir}/checkpoint-{step}"
    index = trainer.distillation_callbacks().index(average_of(trainer))
    saved = load_file(f"{directory}/distillation_tensors.safetensors")
    return {key.partition(".")[2]: value for key, value in saved.items() if key.startswith(f"{index}.")}


def live(trainer, step):
    return load_file(f"{trainer.args.output_dir}/checkpoint-{step}/model.safetensors")


def weights(trainer):
    return {name: value.clone() for name, value in trainer.model.state_dict().items()}


def differing(left, right):
    return [name for name, value in left.items() if not torch.equal(value, right[name])]


MIDDLE, END = 3, 4  # of an epoch


@pytest.mark.parametrize(
    ("options", "stop"),
    [
        (EMA, MIDDLE),
        (EMA, END),
        ({**EMA, "averaging_statistics": "average"}, MIDDLE),
        (SWA, MIDDLE),
        (SWA, END),
        ({**SWA, "eval_strategy": "epoch", "save_strategy": "epoch"}, END),
    ],
    ids=["ema middle", "ema end", "ema average", "swa middle", "swa end", "swa saved by epoch"],
)
def test_resumed_run_has_the_average_of_the_straight_one_bit_for_bit(run, options, stop):
    straight = run(**options)
    straight.train()
    for step in range(stop + 1, 9):
        shutil.rmtree(f"{straight.args.output_dir}/checkpoint-{step}", ignore_errors=True)
    resumed = run(**options)
    resumed.train(resume_from_checkpoint=True)
    assert not differing(weights(straight), weights(resumed))
    updates = 8 if options["weight_averaging"] == "ema" else 3
    assert average_of(straight).updates == average_of(resumed).updates == updates
    before, after = average_of(straight).tensors(), average_of(resumed).tensors()
    assert before.keys() == after.keys() and not differing(before, after)


@pytest.mark.parametrize(
    "options", [EMA, SWA, {**SWA, "averaging_statistics": "batches"}], ids=["ema", "swa", "batches"]
)
def test_training_does_not_notice(run, options):
    plain = run("plain")
    plain.train()
    averaging = run("averaging", eval_strategy="steps", eval_steps=1, **options)
    averaging.add_callback(RobustEvaluation(averaging, tiny_data(8, seed=9), "fgsm"))
    averaging.train()
    assert not differing(live(plain, 8), live(averaging, 8))
    losses = [[entry["loss"] for entry in t.state.log_history if "loss" in entry] for t in (plain, averaging)]
    assert losses[0] == losses[1]
    assert differing(live(averaging, 8), weights(averaging))


@pytest.mark.parametrize("options", [EMA, SWA], ids=["ema", "swa"])
def test_the_average_is_evaluated_and_checkpoints_keep_the_live_weights(run, options):
    trainer = run(eval_strategy="steps", eval_steps=1, **options)
    seen = []

    class Look(TrainerCallback):
        def on_step_end(self, args, state, control, **kwargs):
            seen.append(weights(trainer))

    trainer.add_callback(Look())
    trainer.train()
    logged = {entry["step"]: entry["eval_loss"] for entry in trainer.state.log_history if "eval_loss" in entry}
    probe = run("probe")
    for step in (1, 2, 6, 8):
        assert not differing(live(trainer, step), seen[step - 1])
        probe.model.load_state_dict(live(trainer, step))
        if options is EMA or step > 2:
            average = saved_average(trainer, step)
            expected = {name.partition(".")[2]: value for name, value in average.items()}
            probe.model.load_state_dict(expected, strict=False)
            assert ("buffer.norm.running_mean" in average) == (options is SWA)
            assert bool(differing(expected, seen[step - 1])) == (step > 1)
        assert probe.evaluate()["eval_loss"] == logged[step]
    assert not differing(weights(probe), weights(trainer))  # the end
    assert trainer.evaluate()["eval_loss"] == logged[8]
    trainer.save_model()
    assert not differing(load_file(f"{trainer.args.output_dir}/model.safetensors"), weights(probe))


def test_robust_evaluation_attacks_and_keeps_the_average(run, monkeypatch):
    trainer = run(**SWA)
    callback = RobustEvaluation(trainer, tiny_data(8, seed=9), "fgsm", every=4)
    trainer.add_callback(callback)
    attacked = []

    def record(model, *args, **kwargs):
        attacked.append(weights(trainer))
        return evaluate_robustness(model, *args, **kwargs)

    monkeypatch.setattr(robust_evaluation, "evaluate_robustness", record)
    trainer.train()
    assert len(attacked) == 1 and not differing(attacked[0], weights(trainer))
    assert not differing(load_file(callback.directory / "model.safetensors"), weights(trainer))
    assert differing(weights(trainer), live(trainer, 8))


def test_the_best_checkpoint_is_loaded_with_its_average(run):
    scores = [1, 5, 2, 3]
    trainer = run(
        eval_strategy="epoch",
        save_strategy="epoch",
        load_best_model_at_end=True,
        metric_for_best_model="score",
        compute_metrics=lambda _: {"score": scores.pop(0)},
        **EMA,
    )
    trainer.train()
    assert trainer.state.best_model_checkpoint.endswith("checkpoint-4")
    parameters = {name.partition(".")[2]: value for name, value in saved_average(trainer, 4).items()}
    assert not differing({**live(trainer, 4), **parameters}, weights(trainer))
    assert differing(parameters, live(trainer, 4))
    assert "EMA, decay 0.995" in (Path(trainer.args.output_dir) / "README.md").read_text()


def test_the_best_checkpoint_from_before_the_average_is_loaded_as_it_was_evaluated(run, caplog):
    scores = [5, 1, 2, 3]
    trainer = run(
        eval_strategy="epoch",
        save_strategy="epoch",
        load_best_model_at_end=True,
        metric_for_best_model="score",
        compute_metrics=lambda _: {"score": scores.pop(0)},
        **SWA,
    )
    trainer.train()
    assert not differing(live(trainer, 2), weights(trainer))
    assert "averages of those" not in (Path(trainer.args.output_dir) / "README.md").read_text()
    assert "never began" in caplog.text


def test_weights_are_put_back_also_when_something_raises(run):
    trainer = run(**EMA)
    found = {}

    class Stop(TrainerCallback):
        def on_step_end(self, args, state, control, **kwargs):
            if state.global_step == 5:
                found["live"], found["storage"] = weights(trainer), trainer.model.head.weight.data_ptr()
                with pytest.raises(RuntimeError, match="in between"), trainer.averaged_weights():
                    found["average"] = weights(trainer)
                    with trainer.averaged_weights():
                        assert not differing(weights(trainer), found["average"])
                    assert not differing(weights(trainer), found["average"])  # still the outer block
                    raise RuntimeError("in between")
                found["after"] = weights(trainer)
                raise KeyboardInterrupt

    trainer.add_callback(Stop())
    with pytest.raises(KeyboardInterrupt):
        trainer.train()
    assert differing(found["live"], found["average"]) and not differing(found["live"], found["after"])
    assert trainer.model.head.weight.data_ptr() == found["storage"]
    trainer.save_model()  # what one saves by hand is the average, and the model goes on as it was
    assert not differing(load_file(f"{trainer.args.output_dir}/model.safetensors"), found["average"])
    assert not differing(weights(trainer), found["live"])


def test_the_perturbation_of_weights_never_reaches_the_average(run):
    trainer = run(
        weight_averaging="ema", averaging_start=1.0, awp_gamma=0.5
    )  # a copy of the live weights in every step
    trainer.train()
    for step in (1, 7):
        copied = {name.partition(".")[2]: value for name, value in saved_average(trainer, step).items()}
        assert copied and not differing(copied, live(trainer, step))


def test_estimation_looks_at_every_augmented_training_image_once_and_repeats_itself(make_trainer):
    trainer = make_trainer(tiny_net(0, batch_norm=True), tiny_data(10), augment="flip", **SWA)
    callback = average_of(trainer)
    first, again = list(callback._batches()), list(callback._batches())
    assert [len(batch) for batch in first] == [4, 4, 2]
    assert all(torch.equal(left, right) for left, right in zip(first, again, strict=True))
    images = trainer.train_dataset.images.float() / 255
    rows = {tuple(image.flatten().tolist()): index for index, image in enumerate(images)}
    mirrored = {tuple(image.flatten().tolist()): index for index, image in enumerate(images.flip(3))}
    seen = [tuple(image.flatten().tolist()) for image in torch.cat(first)]
    positions = [rows.get(image, mirrored.get(image)) for image in seen]
    assert sorted(positions) == list(range(10)) != positions
    assert 0 < sum(image in mirrored for image in seen) < 10
    callback.updates = 1
    assert not torch.equal(torch.cat(first), torch.cat(list(callback._batches())))


def test_statistics_are_those_of_the_averaged_weights(make_trainer):
    options = dict(num_train_epochs=3, eval_strategy="epoch")  # so the statistics of every epoch replace those before
    trainer = make_trainer(tiny_net(0, batch_norm=True), tiny_data(10), **options, **SWA)
    trainer.train()
    callback, net = average_of(trainer), tiny_net(3, batch_norm=True)
    net.load_state_dict(weights(trainer))
    activations = net.conv(torch.cat(list(callback._batches()))).detach()
    assert torch.allclose(net.norm.running_mean, activations.mean((0, 2, 3)), atol=1e-6)
    assert torch.allclose(callback._average.module.conv.weight, net.conv.weight)


def test_without_batch_norm_nothing_is_estimated(run, monkeypatch):
    monkeypatch.setattr(WeightAveraging, "_batches", lambda self: pytest.fail("looked at the images"))
    trainer = run(norm=False, **SWA)
    trainer.train()
    assert not [name for name in saved_average(trainer, 8) if name.startswith("buffer")]


def test_training_on_from_a_checkpoint_starts_from_its_live_weights(run):
    trainer = run(**EMA)
    trainer.train()
    end = weights(trainer)
    trainer.train(resume_from_checkpoint=f"{trainer.args.output_dir}/checkpoint-6")
    assert not differing(end, weights(trainer))


def test_what_cannot_be_averaged_is_refused(run, make_trainer):
    for bad, message in (
        (dict(kind="mean"), "'mean' is unknown"),
        (dict(decay=1.0), "averaging_decay=1.0"),
        (dict(start=1.5), "averaging_start=1.5"),
        (dict(statistics="new"), "averaging_statistics='new'"),
    ):
        with pytest.raises(ValueError, match=message):
            WeightAveraging(**bad)
    run(**SWA).train()
    with pytest.raises(ValueError, match="averaged with statistics 'samples', this run has 'batches'"):
        run(**SWA, averaging_statistics="batches").train(resume_from_checkpoint=True)

    class Stream(torch.utils.data.IterableDataset):
        def __iter__(self):
            yield from tiny_data(8)

    stream = dict(data=Stream(), max_steps=2, num_train_epochs=1)
    with pytest.raises(ValueError, match="a stream does not have"):
        run("stream", **SWA, **stream).train()
    with pytest.raises(ValueError, match="needs a data set with a length"):
        run("other", **EMA, averaging_statistics="samples", **stream).train()
    half = make_trainer(tiny_net(0), method="natural", eval_attack=False, **EMA)
    half.model.bfloat16()
    with pytest.raises(ValueError, match="half precision"):
        average_of(half)._copy()


def test_checkpoint_says_that_it_holds_no_average(make_trainer, tmp_path, caplog):
    student = create_model("resnet8_cifar", 4)
    options = {**RUN, **EMA, "method": "sat", "max_steps": 1, "averaging_start": 0.0, "output_dir": str(tmp_path)}
    trainer = make_trainer(student, tiny_data(8, size=32), **options)
    trainer.train()
    trainer.save_model()
    create_model(str(tmp_path / "checkpoint-1"))
    assert "checkpoint of a run that averages its weights" in caplog.text
    caplog.clear()
    create_model(str(tmp_path))
    assert "averages its weights" not in caplog.text
