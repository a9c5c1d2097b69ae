"""What is wrong is said before the first step, with the value, the allowed range and the fix; nothing is written."""

from types import SimpleNamespace

import datasets
import pytest
import torch
from conftest import sharp_net, tiny_data, tiny_net

from bmtard_hooks import BMTARDTrainer, DistillationCallback, ImageTensors, create_model
from bmtard_hooks.sharding import check_sharding


def with_label_column(labels):
    rows = {"pixel_values": [[[[0.5] * 8] * 8] * 3] * len(labels), "label": labels}
    return datasets.Dataset.from_dict(rows)


@pytest.mark.parametrize(
    "parts, message",
    [
        (
            {"clean_teacher": None},
            "method 'bmtard' needs two teachers, clean and robust; missing: clean. Pass clean_teacher=",
        ),
        ({"clean_teacher": sharp_net(1, num_classes=7)}, "the clean teacher has 7 classes, the student has 4"),
        ({"model": None}, "pass the student as model="),
        (
            {"model": "resnet18_cifra"},
            "'resnet18_cifra' is neither a directory here nor an architecture of timm: did you mean resnet18_cifar",
        ),
        ({"model": tiny_net(0).requires_grad_(False)}, "the student has no parameter to train"),
        (
            {"train_dataset": with_label_column([0, 9])},
            r"labels go from 0 to 9, but the student has 4 classes \(0 to 3\)",
        ),
        ({"train_dataset": with_label_column([-1, 2])}, "labels go from -1 to 2"),
        ({"train_dataset": tiny_data(8, num_classes=6)}, "but the student has 4 classes"),
        ({"eval_dataset": with_label_column([0, 9])}, "labels go from 0 to 9"),
        ({"train_dataset": datasets.Dataset.from_dict({"scan": [1], "label": [0]})}, "no image column"),
        ({"train_dataset": datasets.Dataset.from_dict({"image": [1], "grade": [0]})}, "no label column"),
        ({"compute_loss_func": lambda *a: 0}, "compute_loss_func would replace"),
        (
            {"preprocess_logits_for_metrics": lambda *a: 0},
            "preprocess_logits_for_metrics and batch_eval_metrics are not",
        ),
    ],
)
def test_trainer_refuses_before_anything_is_written(parts, message, make_config, tmp_path):
    given = {
        "model": tiny_net(0),
        "clean_teacher": sharp_net(1),
        "robust_teacher": sharp_net(2),
        "train_dataset": tiny_data(),
        **parts,
    }
    with pytest.raises(ValueError, match=message):
        BMTARDTrainer(args=make_config(), **given)
    assert not (tmp_path / "run").exists()


def test_one_network_cannot_be_teacher_and_student(make_config):
    shared = tiny_net(0)
    with pytest.raises(ValueError, match="the clean teacher and the student are the same object"):
        BMTARDTrainer(
            shared, make_config(), train_dataset=tiny_data(), clean_teacher=shared, robust_teacher=sharp_net(2)
        )


def test_a_teacher_with_a_part_of_the_student_is_refused_before_it_freezes_that(make_config):
    student, teacher = tiny_net(0), tiny_net(1)
    teacher.head = student.head
    with pytest.raises(ValueError, match="or share 2 tensors of weights"):
        BMTARDTrainer(
            student, make_config(), train_dataset=tiny_data(), clean_teacher=teacher, robust_teacher=sharp_net(2)
        )
    assert student.head.weight.requires_grad


def test_plain_training_arguments_are_refused(tmp_path):
    from transformers import TrainingArguments

    with pytest.raises(TypeError, match="args is a TrainingArguments: pass a BMTARDConfig"):
        BMTARDTrainer(
            tiny_net(0), TrainingArguments(output_dir=str(tmp_path), use_cpu=True), train_dataset=tiny_data()
        )


class Broken(torch.nn.Module):
    num_classes = 4

    def __init__(self, answer):
        super().__init__()
        self.answer, self.weight = answer, torch.nn.Parameter(torch.zeros(1))

    def forward(self, pixel_values):
        return self.answer(pixel_values)


def fail(pixels):
    raise RuntimeError("mat1 and mat2 shapes cannot be multiplied")


@pytest.mark.parametrize(
    "teacher, message",
    [
        (Broken(fail), r"the robust teacher cannot take images of shape \(3, 8, 8\): mat1"),
        (Broken(lambda x: torch.zeros(len(x), 5)), r"gives logits of shape \(2, 5\), the student \(2, 4\)"),
        (Broken(lambda x: torch.full((len(x), 4), torch.nan)), "gives logits that are not finite"),
    ],
)
def test_teachers_are_tried_before_the_first_step(teacher, message, make_trainer):
    trainer = make_trainer(robust_teacher=teacher)
    before = [parameter.clone() for parameter in trainer.model.parameters()]
    with pytest.raises(ValueError, match=message):
        trainer.train()
    assert all(torch.equal(a, b) for a, b in zip(before, trainer.model.parameters(), strict=True))
    assert trainer.model.training is True


def test_sharding_and_saving_in_the_middle_of_a_step_are_refused(make_trainer):
    with pytest.raises(ValueError, match="enable_jit_checkpoint saves in the middle of a step"):
        make_trainer(enable_jit_checkpoint=True)
    launched = SimpleNamespace(is_deepspeed_enabled=True)  # as accelerate's own config does
    with pytest.raises(ValueError, match="DeepSpeed is not supported"):
        check_sharding(launched)


def test_student_without_teachers_is_tried_too(make_trainer):
    with pytest.raises(ValueError, match=r"the student cannot take images of shape \(3, 8, 8\)"):
        make_trainer(tiny_net(0, channels=1), method="natural").train()


def test_labels_of_tuples_are_checked_when_they_come_by(make_trainer):
    pairs = [(torch.rand(3, 8, 8), label) for label in (0, 1, 2, 3, 0, 9)]
    with pytest.raises(ValueError, match=r"labels from \d to 9 do not fit 4 classes \(0 to 3\)"):
        make_trainer(data=pairs, per_device_train_batch_size=6).train()


class Forgetful(DistillationCallback):
    def state_dict(self):
        return {"when": torch.zeros(1)}


def test_callback_with_a_state_that_json_cannot_hold_is_refused_before_training(make_trainer, tmp_path):
    with pytest.raises(TypeError, match=r"Forgetful\.state_dict\(\) must hold plain numbers"):
        make_trainer(callbacks=[Forgetful()], save_strategy="epoch").train()
    assert not list((tmp_path / "run").glob("*"))


@pytest.mark.parametrize(
    "batch, message",
    [
        ({"x": torch.zeros(2, 3, 8, 8)}, r"the collator gave \['x'\] without pixel_values and labels"),
        (
            {"pixel_values": torch.full((2, 3, 8, 8), -1.5), "labels": torch.zeros(2).long()},
            "from -1.5 to -1.5: they must be in",
        ),
        ({"pixel_values": torch.full((2, 3, 8, 8), torch.nan), "labels": torch.zeros(2).long()}, "from nan to nan"),
        ({"pixel_values": torch.zeros(2, 3, 8, 8), "labels": torch.tensor([0, 4])}, "labels from 0 to 4 do not fit"),
    ],
)
def test_what_a_foreign_collator_gives_is_checked(batch, message, make_trainer):
    with pytest.raises(ValueError, match=message):
        make_trainer(data_collator=lambda rows: batch).train()


def test_empty_data_set_is_refused(make_trainer):
    empty = ImageTensors(torch.zeros(1, 3, 8, 8, dtype=torch.uint8), torch.zeros(1), ["a", "b", "c", "d"]).subset([])
    with pytest.raises(ValueError, match="a data set is empty"):
        make_trainer(data=empty, eval_dataset=tiny_data())


def test_directory_of_another_run_is_not_written_over(make_trainer, tmp_path):
    make_trainer(save_strategy="epoch").train()
    before = sorted(path.name for path in (tmp_path / "run").rglob("*"))
    with pytest.raises(FileExistsError, match=r"holds another run \(checkpoint-4\): pass resume_from_checkpoint=True"):
        make_trainer(save_strategy="epoch").train()
    assert before == sorted(path.name for path in (tmp_path / "run").rglob("*"))
    again = make_trainer(save_strategy="epoch", overwrite_output_dir=True)
    again.train()
    again.args.overwrite_output_dir = False
    again.train()  # its own run may be repeated


class Exploding(torch.nn.Module):
    """Fine for a while, then its logits are infinite."""

    num_classes = 4

    def __init__(self, calls):
        super().__init__()
        self.net, self.calls = sharp_net(1), calls

    def forward(self, pixel_values):
        self.calls -= 1
        return self.net(pixel_values) / (0.0 if self.calls < 0 else 1.0)


@pytest.mark.parametrize("accumulation", [1, 2])
def test_loss_that_is_not_finite_stops_and_keeps_the_last_checkpoint(make_trainer, tmp_path, accumulation):
    trainer = make_trainer(
        clean_teacher=Exploding(calls=1 + 2 * accumulation),  # one call tries it before training
        save_strategy="steps",
        save_steps=1,
        gradient_accumulation_steps=accumulation,
        per_device_train_batch_size=4 // accumulation,
    )
    with pytest.raises(FloatingPointError, match="step 3: the clean teacher's logits are not finite"):
        trainer.train()
    assert sorted(path.name for path in (tmp_path / "run").glob("checkpoint-*")) == ["checkpoint-1", "checkpoint-2"]
    assert all(torch.isfinite(parameter).all() for parameter in trainer.model.parameters())


def test_model_names_say_what_is_near_or_missing(tmp_path):
    with pytest.raises(ValueError, match="nor an architecture of timm: did you mean resnet8_cifar, resnet18_cifar"):
        create_model("resnet81_cifar", 10)
    with pytest.raises(
        ValueError, match="'out_trainx' is neither a directory here nor .* timm: pass a directory that save"
    ):
        create_model("out_trainx", 10)
    with pytest.raises(ValueError, match="is not a directory with a saved model"):
        create_model("./nowhere", 10)
    with pytest.raises(ValueError, match="num_classes is missing"):
        create_model("resnet8_cifar")


def test_an_evaluation_set_that_is_still_normalised_is_refused(make_trainer):
    def collate(rows):
        pixels = torch.stack([row["pixel_values"] for row in rows]).float()
        return {"pixel_values": pixels / 255 if pixels.max() > 3 else pixels, "labels": torch.tensor([0] * len(rows))}

    forgotten = [{"pixel_values": torch.full((3, 8, 8), -1.5)} for _ in range(4)]
    trainer = make_trainer(data_collator=collate, eval_dataset=forgotten, eval_strategy="epoch")
    with pytest.raises(
        ValueError, match=r"eval_dataset: the collator gave pixel_values from -1.5 to -1.5.*normalisation"
    ):
        trainer.train()
