"""Fair-ARD's class weights and ABSLD's class temperatures: their arithmetic, and when they move."""

import pytest
import torch
from conftest import tiny_data, tiny_net
from torch import nn
from transformers import TrainerCallback

from bmtard_hooks import DistillationCallback, ImageTensors
from bmtard_hooks.callbacks.class_balance import ClassTemperatureBalance, ClassWeightBalance, class_weights
from bmtard_hooks.functional import sum_by_class


def tensor(values):
    return torch.tensor(values, dtype=torch.float64)


@pytest.mark.parametrize("index", range(3))
def test_class_weights_match_the_vectors(index, vectors):
    case = vectors["fair_ard_class_weights"][index]
    images, per_class = tensor([10.0, 3.0, 7.0]), {"weight": tensor([1.0, 1.0, 1.0])}
    sums = {"correct_steps": tensor(case["kappa"]) * images, "images": images}
    ClassWeightBalance(case["beta"]).move(sums, per_class, 1.0)
    assert per_class["weight"].tolist() == pytest.approx(case["weights"], abs=1e-6)
    assert per_class["weight"].sum().item() == pytest.approx(case["sum_after_clamp"], abs=1e-6)


@pytest.mark.parametrize("index", range(3))
@pytest.mark.parametrize("part", ["robust", "clean"])
def test_class_temperatures_match_the_vectors(index, part, vectors):
    case = vectors["absld_temperature"]["updates"][index]
    per_class = {f"{part}_temperature": tensor(case["tau"])}
    balance = ClassTemperatureBalance([part], rate=0.1)
    balance.move({f"{part}_error": tensor(case["class_ce_sum"])}, per_class, case["rate"] / 0.1)
    assert per_class[f"{part}_temperature"].tolist() == pytest.approx(case["tau_new"], abs=1e-6)
    fixed = ClassTemperatureBalance([part], rate=case["rate"], follow_lr=False)
    per_class = {f"{part}_temperature": tensor(case["tau"])}
    fixed.move({f"{part}_error": tensor(case["class_ce_sum"])}, per_class, 0.001)
    assert per_class[f"{part}_temperature"].tolist() == pytest.approx(case["tau_new"], abs=1e-6)


def test_sums_by_class_match_the_vectors(vectors):
    labels, logits = torch.tensor(vectors["shared"]["labels"]), vectors["shared"]["logits"]
    for name, expected in vectors["absld_temperature"]["class_ce_sum_of_shared_batch"].items():
        errors = torch.nn.functional.cross_entropy(tensor(logits[name]), labels, reduction="none")
        assert sum_by_class(errors, labels, 3).tolist() == pytest.approx(expected, abs=1e-6)


def test_class_without_images_keeps_weight_one_and_takes_no_share():
    weights = class_weights(tensor([2.0, 0.0, 4.0]), torch.tensor([True, False, True]), 2.0, 0.01, 100.0)
    assert weights[1] == 1 and (weights[0] + weights[2]).item() == pytest.approx(2)
    assert (weights[0] / weights[2]).item() == pytest.approx(4, rel=1e-4)


def test_equal_errors_move_no_temperature():
    per_class = {"robust_temperature": tensor([1.0, 2.0])}
    ClassTemperatureBalance(["robust"]).move({"robust_error": tensor([3.0, 3.0])}, per_class, 1.0)
    assert per_class["robust_temperature"].tolist() == [1.0, 2.0]


class Recorder(DistillationCallback):
    """Keeps every step's class values, and the images and counts that it saw."""

    def __init__(self):
        self.values, self.batches, self.sums = [], [], []

    def on_crafted(self, args, state, control, *, batches, **kwargs):
        values = self.trainer.distillation.per_class.items()
        self.values.append({name: value.clone() for name, value in values})
        self.batches.append([(b["labels"], b.get("correct_steps")) for b in batches])

    def on_losses(self, args, state, control, *, class_sums, **kwargs):
        self.sums.append(dict(class_sums))


def recorded(make_trainer, **options):
    recorder = Recorder()
    options = {"data": tiny_data(10), "num_train_epochs": 3, "steps": 3, "callbacks": [recorder], **options}
    trainer = make_trainer(tiny_net(0), **options)
    trainer.train()
    return recorder, trainer


@pytest.mark.parametrize("accumulation", [1, 2])
def test_class_weights_move_between_epochs_only_by_the_counts_of_the_whole_epoch(make_trainer, accumulation):
    options = {"per_device_train_batch_size": 4 // accumulation, "gradient_accumulation_steps": accumulation}
    recorder, trainer = recorded(make_trainer, method="fair_ard", learning_rate=1.0, loss_scale=1.0, **options)
    weights = [values["weight"] for values in recorder.values]
    assert len(weights) == 9  # 10 images are 3 steps, the last with 2 images
    assert weights[0].tolist() == [1, 1, 1, 1]
    for epoch in range(2):
        steps = slice(3 * epoch, 3 * epoch + 3)
        assert all(torch.equal(value, weights[3 * epoch]) for value in weights[steps])
        labels, counts = zip(*(entry for step in recorder.batches[steps] for entry in step), strict=True)
        labels, counts = torch.cat(labels), torch.cat(counts)
        assert len(labels) == 10 and counts.max() <= 3
        shown = {name: sum(step[name] for step in recorder.sums[steps]) for name in ("images", "correct_steps")}
        torch.testing.assert_close(shown["images"], sum_by_class(torch.ones(10), labels, 4))
        torch.testing.assert_close(shown["correct_steps"], sum_by_class(counts, labels, 4))
        mean = [counts[labels == k].double().mean().item() for k in range(4)]
        expected = class_weights(tensor(mean), torch.ones(4, dtype=bool), 2.0, 5 / 6, 5 / 2)
        torch.testing.assert_close(weights[3 * epoch + 3], expected)
    assert torch.equal(trainer.distillation.per_class["weight"], weights[6])  # nothing moves after the last epoch
    assert not torch.equal(weights[3], weights[0])


def test_class_temperatures_move_between_epochs_after_the_learning_rate(make_trainer):
    recorder, _ = recorded(make_trainer, method="absld", lr_milestones=[1], class_temperature_rate=0.2)
    for name in ("robust_temperature", "clean_temperature"):
        values = [step[name] for step in recorder.values]
        for epoch, rate in ((1, 0.02), (2, 0.02)):
            moved = values[3 * epoch] - values[3 * epoch - 1]
            assert moved.abs().max().item() == pytest.approx(rate)
            part = name.replace("temperature", "error")
            errors = torch.stack([step[part] for step in recorder.sums[3 * epoch - 3 : 3 * epoch]]).sum(0)
            assert moved[errors.argmax()] < 0 < moved[errors.argmin()]
        assert torch.equal(values[0], values[2]) and torch.equal(values[3], values[5])


def test_first_epoch_of_fair_ard_is_ard(make_trainer):
    runs = [recorded(make_trainer, method=name, num_train_epochs=1)[1] for name in ("fair_ard", "ard")]
    for left, right in zip(runs[0].model.parameters(), runs[1].model.parameters(), strict=True):
        torch.testing.assert_close(left, right)


def test_class_that_the_data_lack(make_trainer):
    data = tiny_data(8)
    data = ImageTensors(data.images, data.labels % 3, list("abcd"))
    recorder, trainer = recorded(make_trainer, method="fair_ard", data=data)
    assert trainer.distillation.per_class["weight"][3] == 1
    assert torch.isfinite(trainer.distillation.per_class["weight"]).all()
    assert recorder.sums[0]["images"][3] == 0


@pytest.mark.parametrize("method", ["fair_ard", "absld"])
def test_student_that_does_not_say_its_classes_is_refused(make_trainer, method):
    student = nn.Sequential(nn.Flatten(), nn.Linear(192, 4))
    with pytest.raises(ValueError, match="does not say how many it has: give it a num_classes attribute"):
        make_trainer(student, method=method)
    make_trainer(nn.Sequential(nn.Flatten(), nn.Linear(192, 4)), method="ard")


def test_users_balance_replaces_the_methods(make_trainer):
    mine = ClassWeightBalance(power=0.001, min_weight=0.1, max_weight=10.0)
    _, trainer = recorded(make_trainer, method="fair_ard", callbacks=[mine, Recorder()])
    found = [c for c in trainer.distillation_callbacks() if isinstance(c, ClassWeightBalance)]
    assert found == [mine]
    assert trainer.distillation.per_class["weight"].std() < 0.01  # a small power hardly reacts


def test_removed_balance_leaves_all_classes_equal(make_trainer):
    trainer = make_trainer(tiny_net(0), method="fair_ard", num_train_epochs=2)
    trainer.remove_callback(ClassWeightBalance)
    trainer.train()
    assert trainer.distillation.state_dict()["per_class"] == {"weight": [1.0] * 4}


class Stream(torch.utils.data.IterableDataset):
    def __iter__(self):
        rows = tiny_data(12)
        yield from (rows[index] for index in range(12))


@pytest.mark.parametrize("method", ["fair_ard", "absld"])
def test_stream_is_refused_because_its_epochs_never_end(make_trainer, method):
    trainer = make_trainer(tiny_net(0), Stream(), method=method, max_steps=2)
    with pytest.raises(ValueError, match="moves at the end of every epoch, and a stream has none"):
        trainer.train()


def test_epoch_that_is_broken_off_moves_nothing(make_trainer):
    class Stop(TrainerCallback):
        def on_step_end(self, args, state, control, **kwargs):
            control.should_training_stop = state.global_step == 2
            return control

    trainer = make_trainer(tiny_net(0), tiny_data(10), method="fair_ard", num_train_epochs=2, callbacks=[Stop()])
    trainer.train()
    assert trainer.distillation.state_dict()["per_class"] == {"weight": [1.0] * 4}
