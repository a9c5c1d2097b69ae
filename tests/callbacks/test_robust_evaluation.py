import json

import datasets
import pytest
import torch
from conftest import tiny_data, tiny_net
from PIL import Image
from transformers import EarlyStoppingCallback, Trainer, TrainerCallback, TrainingArguments

from bmtard_hooks import ImageTensors, PGDCollator, RobustEvaluation
from bmtard_hooks.callbacks import robust_evaluation
from bmtard_hooks.reporting.report_file import load_report
from bmtard_hooks.stopping import StoppedBySignal


def add(trainer, *args, **kwargs):
    callback = RobustEvaluation(trainer, *args, **kwargs)
    trainer.add_callback(callback)
    return callback


def logged(trainer):
    return [entry for entry in trainer.state.log_history if "robust_eval/clean_accuracy" in entry]


def test_every_so_many_epochs_and_at_the_end_it_attacks_logs_and_keeps_the_best(make_trainer):
    trainer = make_trainer(num_train_epochs=3)
    callback = add(trainer, tiny_data(12, seed=9), {"fgsm": "fgsm", "pgd": "pgd_sat:steps=2"}, every=2)
    trainer.train()
    entries = logged(trainer)
    assert [entry["epoch"] for entry in entries] == [2, 3]
    assert {"robust_eval/fgsm_accuracy", "robust_eval/pgd_w_robust", "robust_eval/worst_case_w_robust"} <= set(
        entries[0]
    )
    report = load_report(callback.directory / "report.json")
    best = max(entry["robust_eval/worst_case_w_robust"] for entry in entries)
    assert report.row("worst_case").w_robust == pytest.approx(best)
    assert (callback.directory / "model.safetensors").exists()


def test_training_is_not_disturbed(make_trainer, tmp_path):
    plain = make_trainer(tiny_net(0, batch_norm=True, dropout=0.3), num_train_epochs=2)
    plain.train()
    watched = make_trainer(
        tiny_net(0, batch_norm=True, dropout=0.3), num_train_epochs=2, output_dir=str(tmp_path / "watched")
    )
    add(watched, tiny_data(12, seed=9), ["pgd_sat:steps=2", "square:queries=5"])
    watched.train()
    for left, right in zip(plain.model.state_dict().values(), watched.model.state_dict().values(), strict=True):
        assert torch.equal(left, right)


def test_a_resumed_run_goes_on_comparing_with_the_best_so_far(make_trainer, monkeypatch):
    first = make_trainer(num_train_epochs=2, save_strategy="epoch")
    callback = add(first, tiny_data(12, seed=9), "fgsm")
    first.train()
    path = callback.directory / "report.json"
    content = json.loads(path.read_text())
    step = content["report"]["environment"]["step"] if "report" in content else load_report(path).environment["step"]
    again = make_trainer(num_train_epochs=3, save_strategy="epoch", overwrite_output_dir=True)
    follower = add(again, tiny_data(12, seed=9), "fgsm")
    again.train(resume_from_checkpoint=True)
    best = max(entry["robust_eval/fgsm_w_robust"] for entry in [*logged(first), *logged(again)])
    assert load_report(path).row("fgsm").w_robust == pytest.approx(best)
    assert follower._best == pytest.approx(best) and step in (4, 8)


class Stops(TrainerCallback):
    """Ends a run at the end of its third epoch."""

    def on_epoch_end(self, args, state, control, **kwargs):
        control.should_training_stop = round(state.epoch) == 3


@pytest.mark.parametrize("how", ["before", "after", "early stopping"])
def test_last_epoch_of_a_run_that_is_stopped_early_is_evaluated_with_its_own_weights(make_trainer, monkeypatch, how):
    evaluated, trained = [], []
    options = dict(num_train_epochs=9, method="sat", weight_averaging="ema", averaging_start=0.0)
    if how == "early stopping":  # the first evaluation is the best, and that model is loaded at the end
        options |= dict(eval_strategy="epoch", save_strategy="epoch", load_best_model_at_end=True, learning_rate=0.5)
        options |= dict(metric_for_best_model="score", compute_metrics=lambda _: {"score": 1 / (1 + len(trained))})
        options["callbacks"] = [EarlyStoppingCallback(2)]
    elif how == "before":
        options["callbacks"] = [Stops()]
    trainer = make_trainer(**options)
    callback = add(trainer, tiny_data(12, seed=9), "fgsm", every=2)
    if how == "after":
        trainer.add_callback(Stops())

    class Look(TrainerCallback):
        def on_epoch_end(self, args, state, control, **kwargs):
            trained.append(held(trainer))

    trainer.add_callback(Look())
    evaluate = callback._evaluate
    monkeypatch.setattr(callback, "_evaluate", lambda: (evaluated.append(held(trainer)), evaluate())[1])
    trainer.train()
    assert [entry["epoch"] for entry in logged(trainer)] == [2, 3]
    assert torch.equal(evaluated[0], trained[1]) and torch.equal(evaluated[1], trained[2])


def held(trainer):
    with trainer.averaged_weights():
        return trainer.model.head.weight.detach().clone()


def test_a_second_training_has_a_best_model_of_its_own(make_trainer, monkeypatch):
    trainer = make_trainer(method="sat")
    callback = add(trainer, tiny_data(12, seed=9), "fgsm")
    worth = [0.9, 0.2]
    monkeypatch.setattr(robust_evaluation, "_w_robust", lambda report: worth[0])
    trainer.train()
    before = (callback.directory / "model.safetensors").read_bytes()
    worth.pop(0)
    trainer.train()
    assert callback._best == 0.2 and (callback.directory / "model.safetensors").read_bytes() != before


class Killed(TrainerCallback):
    """Ends its run when the checkpoint of a step is written."""

    def on_save(self, args, state, control, **kwargs):
        if state.global_step == 8:
            raise KeyboardInterrupt


class AsksToStop(TrainerCallback):
    """Asks its Trainer to stop in a step."""

    trainer = None

    def on_step_end(self, args, state, control, **kwargs):
        if state.global_step == 8:
            self.trainer.request_stop()


@pytest.mark.parametrize("ending", [Killed, AsksToStop], ids=["killed", "stopped"])
def test_best_model_of_a_run_that_ended_before_an_evaluation_is_not_replaced_by_a_worse_one(
    make_trainer, monkeypatch, ending
):
    def trainer(*callbacks):
        made = make_trainer(
            method="sat", num_train_epochs=3, save_strategy="steps", save_steps=4, callbacks=list(callbacks)
        )
        worth = {4: 0.9, 8: 0.5, 12: 0.6}

        def of_step(report):
            return worth[report.environment.get("step", made.state.global_step)]

        monkeypatch.setattr(robust_evaluation, "_w_robust", of_step)
        return made, add(made, tiny_data(12, seed=9), "fgsm")

    end = ending()
    ended, callback = trainer(end)
    end.trainer = ended
    with pytest.raises((KeyboardInterrupt, StoppedBySignal)):
        ended.train()
    resumed, follower = trainer()
    resumed.train(resume_from_checkpoint=True)
    assert load_report(callback.directory / "report.json").environment["step"] == 4 and follower._best == 0.9
    assert [entry["step"] for entry in logged(resumed)] == [4, 8, 12]


def test_it_works_with_a_plain_trainer(tmp_path):
    class Net(torch.nn.Module):
        def __init__(self):
            super().__init__()
            self.net = tiny_net(0)

        def forward(self, pixel_values, labels):
            logits = self.net(pixel_values)
            return {"loss": torch.nn.functional.cross_entropy(logits, labels), "logits": logits}

    class Classifier(Net):
        def forward(self, pixel_values, labels=None):
            return super().forward(pixel_values, labels) if labels is not None else self.net(pixel_values)

    def collate(rows):
        return {
            "pixel_values": torch.stack([row["pixel_values"] for row in rows]).float() / 255,
            "labels": torch.stack([row["labels"] for row in rows]),
        }

    args = TrainingArguments(str(tmp_path), num_train_epochs=1, report_to="none", disable_tqdm=True, use_cpu=True)
    trainer = Trainer(Classifier(), args, data_collator=collate, train_dataset=tiny_data(8))
    add(trainer, tiny_data(6, seed=1), "fgsm")
    trainer.train()
    assert logged(trainer)


def test_the_test_split_is_refused_unless_asked_for(make_trainer):
    trainer = make_trainer()

    class Split(list):
        split = "test[:50%]"

    rows = Split([(torch.rand(3, 8, 8), 1)])
    with pytest.raises(ValueError, match="allow_test_split"):
        RobustEvaluation(trainer, rows)
    RobustEvaluation(trainer, rows, allow_test_split=True)
    tensors = ImageTensors(torch.rand(4, 3, 8, 8), torch.zeros(4), split_name="test")
    with pytest.raises(ValueError, match="allow_test_split"):
        RobustEvaluation(trainer, tensors.split(2)[1])
    with pytest.raises(ValueError, match="1 or more"):
        RobustEvaluation(trainer, every=0)
    trainer.eval_dataset = None
    with pytest.raises(ValueError, match="no images to attack"):
        RobustEvaluation(trainer)


@pytest.mark.parametrize(
    "attacks, settings, message",
    [
        ("pgdx", {}, "pgdx"),
        ("fgsm", {"epsi": 0.1}, "epsi: no setting of an evaluation, which has eps"),
        ("transfer_pgd", {}, "surrogate"),
    ],
)
def test_mistakes_are_refused_before_the_training(make_trainer, attacks, settings, message):
    with pytest.raises(ValueError, match=message):
        RobustEvaluation(make_trainer(), tiny_data(6), attacks, **settings)


def test_images_of_another_kind_are_refused_before_the_training(make_trainer):
    with pytest.raises(ValueError, match="cannot take images of shape"):
        RobustEvaluation(make_trainer(), tiny_data(6, size=32), "fgsm")


def test_columns_and_colours_are_those_of_the_collator(make_trainer):
    grey = datasets.Features(
        {"photo": datasets.Image(), "fine_label": datasets.Value("int64"), "kind": datasets.Value("int64")}
    )
    pictures = [Image.fromarray(image.numpy()) for image in tiny_data(6).images[:, 0]]
    rows = datasets.Dataset.from_dict(
        {"photo": pictures, "fine_label": [3] * 6, "kind": [0, 1, 2, 0, 1, 2]}, features=grey
    )
    collator = PGDCollator(image_column="photo", label_column="kind", mode="L")
    trainer = make_trainer(tiny_net(channels=1), rows, eval_dataset=rows, data_collator=collator, method="natural")
    callback = RobustEvaluation(trainer, rows, "fgsm")
    assert callback._data.labels.tolist() == [0, 1, 2, 0, 1, 2] and callback._data.images.shape[1] == 1
