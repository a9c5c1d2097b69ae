"""Saved students know the names of their classes, and networks with the same classes in another order are refused."""

import logging

import datasets
import numpy as np
import pytest
import torch
from transformers import AutoModelForImageClassification

from bmtard_hooks import (
    BMTARDConfig,
    BMTARDTrainer,
    ImageTensors,
    PGDCollator,
    create_model,
    evaluate_robustness,
    load_teacher,
)
from bmtard_hooks.class_names import names_of_data, names_of_model, record_names, require_same_order
from bmtard_hooks.data import class_count

NAMES = ["ant", "bee", "cat"]


def images(names=NAMES, count=6):
    pixels = torch.randint(0, 256, (count, 3, 32, 32), dtype=torch.uint8, generator=torch.Generator().manual_seed(0))
    return ImageTensors(pixels, torch.arange(count) % 3, names)


def hub_rows(names=NAMES):
    features = datasets.Features(
        {"image": datasets.Array3D((32, 32, 3), "uint8"), "fine": datasets.ClassLabel(names=names)}
    )
    rows = {"image": list(np.zeros((6, 32, 32, 3), np.uint8)), "fine": [0, 1, 2] * 2}
    return datasets.Dataset.from_dict(rows, features=features)


def named(names=NAMES):
    model = create_model("resnet8_cifar", num_classes=3)
    record_names(model, names)
    return model


def trainer_for(tmp_path, student, train, evaluation=None, teachers=(None, None), collator=None):
    config = BMTARDConfig(
        output_dir=str(tmp_path), method="bmtard" if teachers[0] else "sat", max_steps=1, steps=1, use_cpu=True,
        per_device_train_batch_size=6, report_to=[], disable_tqdm=True, fold_batch_norm=False,
    )  # fmt: skip
    clean, robust = teachers
    return BMTARDTrainer(
        student, config, collator or PGDCollator(), train, evaluation, clean_teacher=clean, robust_teacher=robust
    )


def test_names_are_saved_with_the_student_and_read_by_transformers(tmp_path):
    trainer = trainer_for(tmp_path, "resnet8_cifar", images())
    trainer.train()
    trainer.save_model()
    for loaded in (AutoModelForImageClassification.from_pretrained(tmp_path), create_model(str(tmp_path)).backbone):
        assert loaded.config.id2label == dict(enumerate(NAMES)) and loaded.config.label2id["cat"] == 2
    assert names_of_model(load_teacher(str(tmp_path))) == NAMES


def test_a_network_that_was_saved_without_names_gets_them_too(tmp_path):
    create_model("resnet8_cifar", num_classes=3).backbone.save_pretrained(tmp_path / "unnamed")
    student = create_model(str(tmp_path / "unnamed"))
    record_names(student, NAMES)
    student.backbone.save_pretrained(tmp_path / "named")
    assert names_of_model(create_model(str(tmp_path / "named"))) == NAMES


@pytest.mark.parametrize("column, expected", [("fine", NAMES), (None, NAMES), ("image", None)])
def test_names_of_a_hub_data_set(column, expected):
    rows = hub_rows() if column else hub_rows().rename_column("fine", "label")
    assert names_of_data(rows, column) == expected


def test_who_names_nothing_is_asked_for_nothing():
    assert names_of_data([1, 2]) is None and names_of_data(images(None)) is None
    assert names_of_model(create_model("resnet8_cifar", num_classes=3)) is None
    plain = named(None)
    assert names_of_model(plain) is None
    record_names(plain, ["too", "few"])
    assert names_of_model(plain) is None
    require_same_order("model", None, "data", NAMES)
    require_same_order("model", ["dog", "eel", "fly"], "data", NAMES)


def test_a_module_without_config_is_left_alone():
    from bmtard_hooks.models.create import as_classifier

    bare = as_classifier(torch.nn.Sequential(torch.nn.Flatten(), torch.nn.Linear(3072, 3)))
    record_names(bare, NAMES)
    assert names_of_model(bare) is None


def test_names_that_the_student_has_stay_and_strange_ones_are_told(caplog):
    own = ["Ant", "bee!", "tom_cat"]
    student = named(own)
    with caplog.at_level(logging.WARNING):
        record_names(student, ["ant", "bee", "tom cat"])
    assert names_of_model(student) == own and not caplog.records
    with caplog.at_level(logging.WARNING):
        record_names(student, ["ant", "x", "z"])
    assert (
        names_of_model(student) == own
        and "2 of 3 classes otherwise than the data set ('bee!', there 'x')" in caplog.text
    )


@pytest.mark.parametrize("who", ["clean", "robust", "student", "eval_dataset", "eval_dataset['other']"])
def test_another_order_is_refused_and_named(tmp_path, who):
    turned = ["Bee", "ant", "cat"]
    networks = {role: named(turned if role == who else NAMES) for role in ("clean", "robust", "student")}
    held = {"eval_dataset": images(turned), "eval_dataset['other']": {"one": images(), "other": images(turned)}}
    role = f"{who} teacher" if who in ("clean", "robust") else who
    message = rf"the {role.replace('[', chr(92) + '[')} has its classes .* than train_dataset: '[Bb]ee' is class 0 there and 1 here, as are 2 of 3"
    with pytest.raises(ValueError, match=message):
        trainer_for(
            tmp_path / "run", networks["student"], images(), held.get(who), (networks["clean"], networks["robust"])
        )
    assert not (tmp_path / "run").exists()


def test_teachers_are_compared_with_the_student_where_the_data_names_nothing(tmp_path):
    with pytest.raises(ValueError, match="the robust teacher has its classes in another order than student"):
        trainer_for(tmp_path, named(), images(None), None, (named(), named(NAMES[::-1])))


def test_names_that_occur_twice_prove_nothing():
    require_same_order("model", ["crane", "crane", "cat"], "data", ["cat_", "crane", "x"][::-1])
    with pytest.raises(ValueError, match="'cat' is class 2 there and 0 here, as are 1 of 1"):
        require_same_order("model", ["crane", "crane", "cat"], "data", ["cat", "crane", "x"])


def test_evaluating_and_predicting_refuse_another_order(tmp_path):
    trainer = trainer_for(tmp_path, named(), images(None))
    for use in (trainer.evaluate, trainer.predict):
        with pytest.raises(ValueError, match="_dataset has its classes in another order than the student"):
            use(images(NAMES[::-1]))
        use(images(NAMES))


def test_names_are_those_of_the_column_that_is_read():
    rows = hub_rows().rename_column("fine", "label")
    renumbered = rows.map(lambda row: {"labels": [2, 0, 1][row["label"]]})  # labels is read before label
    assert names_of_data(renumbered) is None and class_count(renumbered) is None
    assert names_of_data(rows) == NAMES and class_count(rows) == 3


@pytest.mark.parametrize("who", ["model", "surrogate"])
def test_evaluation_refuses_another_order(who):
    networks = {role: named(NAMES[::-1] if role == who else NAMES) for role in ("model", "surrogate")}
    with pytest.raises(ValueError, match=f"the {who} has its classes in another order than the data set"):
        evaluate_robustness(
            networks["model"], images(), "fgsm", surrogate=networks["surrogate"], checks=False, progress=False
        )
