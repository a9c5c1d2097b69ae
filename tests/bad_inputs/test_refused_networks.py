"""Students and teachers that cannot be trained, or are not what they seem."""

import logging
import math

import pytest
import torch
from conftest import TinyNet, sharp_net, tiny_data, tiny_net
from refusing import Row, refused, table
from small_world import Answering, NormOfOne
from transformers import ViTConfig, ViTForImageClassification

from bmtard_hooks import BMTARDTrainer
from bmtard_hooks.batch_statistics import batch_norms


def student(name, make, received, allowed, fix, error=ValueError):
    """A row with a bad student, made when it is needed."""
    return Row(
        f"student {name}", lambda scene: scene.trainer(make(), method="sat").train(), received, allowed, fix, error
    )


def bare(name, model, received, allowed, fix, error=TypeError):
    """A row with something that is no student at all."""

    def do(scene):
        BMTARDTrainer(model, scene.config(method="sat"), train_dataset=tiny_data())

    return Row(f"student {name}", do, received, allowed, fix, error)


def small_vit():
    """A network that takes float32 pixels whatever its weights are."""
    return ViTForImageClassification(
        ViTConfig(hidden_size=8, num_hidden_layers=1, num_attention_heads=1, intermediate_size=8, image_size=8,
                  patch_size=4, num_labels=4)
    )  # fmt: skip


def teacher(name, make, received, allowed, fix, error=ValueError):
    """A row with a bad clean teacher."""

    def do(scene):
        teachers = {"clean": make(), "robust": sharp_net(2)}
        BMTARDTrainer(tiny_net(0), scene.config(), train_dataset=tiny_data(), teachers=teachers).train()

    return Row(f"teacher {name}", do, received, allowed, fix, error)


LOGITS, HOW = "expected logits, floats of shape (2, classes)", "Return the last layer's output"
FLOWS, REMOVE = "expected a differentiable forward", "Remove detach()"
BE_FLOAT32 = "weights that are trained must be float32"
MODULE = "pass a torch.nn.Module from pixels to logits"
LOAD, UNSET = "is no directory here, nor a hub id that can be read", "unset HF_HUB_OFFLINE"


@table(
    bare("a number", 5, "model is 5, a int", MODULE, "or the name of an architecture"),
    bare("a function", len, "model is <built-in function len>", MODULE, "or the name of an architecture"),
    bare("its class", TinyNet, "the class TinyNet", "pass an instance", "TinyNet(…)"),
    bare("an empty name", "", "model is ''", MODULE, "or the name of an architecture"),
    bare("missing", None, "model=…", "pass the student", "pass the student as model=", ValueError),
    bare("misspelt", "resnet18_cifra", "'resnet18_cifra'", "did you mean", "resnet18_cifar", ValueError),
    bare("a hub id offline", "someone/model", "the student 'someone/model'", LOAD, UNSET, ValueError),
    bare(
        "no directory",
        "./nowhere",
        "./nowhere",
        "a directory with a saved model",
        "config.json and weights",
        ValueError,
    ),
    bare(
        "without parameters",
        torch.nn.Flatten(),
        "no parameter to train",
        "it is frozen",
        "passed as a teacher?",
        ValueError,
    ),
    student("answers text", lambda: Answering(lambda y: "x"), "returned str", "a tensor of logits", "expected"),
    student(
        "answers a dict", lambda: Answering(lambda y: {"out": y}), "returned dict", "output with .logits", "expected"
    ),
    student("of three dimensions", lambda: Answering(lambda y: y[:, :, None]), "(2, 4, 1)", LOGITS, HOW),
    student("of one dimension", lambda: Answering(lambda y: y[:, 0]), "shape (2,)", LOGITS, HOW),
    student("of a mean", lambda: Answering(lambda y: y.mean(0, keepdim=True)), "(1, 4)", LOGITS, HOW),
    student("of whole numbers", lambda: Answering(lambda y: y.argmax(1)), "torch.int64", LOGITS, HOW),
    student("of fewer logits", lambda: Answering(lambda y: y[:, :3]), "gives 3 logits", "4 classes", "num_classes"),
    student("of NaN", lambda: Answering(lambda y: y * math.nan), "the student", "not finite", "check its weights"),
    student(
        "detached", lambda: Answering(lambda y: y.detach()), "no gradient with respect to its weights", FLOWS, REMOVE
    ),
    student(
        "deaf",
        lambda: Answering(lambda y: y, lambda x: x.detach()),
        *("no gradient with respect to the pixels", FLOWS, REMOVE),
    ),
    student("in half precision", lambda: tiny_net(0).half(), "torch.float16 weights", BE_FLOAT32, "model.float()"),
    student("in bfloat16", lambda: small_vit().bfloat16(), "torch.bfloat16 weights", BE_FLOAT32, "bf16=True"),
    student("in double precision", lambda: tiny_net(0).double(), "torch.float64", BE_FLOAT32, "model.float()"),
    student(
        "of one channel", lambda: tiny_net(0, channels=1), "images of shape (3, 8, 8)", "to have 1 channel", "channels"
    ),
    student("frozen", lambda: tiny_net(0).requires_grad_(False), "no parameter to train", "frozen", "as a teacher?"),
)
def test_student_that_cannot_be_trained_is_refused(row, request):
    refused(row, request)


@table(
    teacher("a number", lambda: 5, "the clean teacher is 5, a int", "a torch.nn.Module", "load_teacher(…)", TypeError),
    teacher(
        "misspelt",
        lambda: "resnett8",
        "'resnett8' is neither a directory",
        "nor an architecture of timm",
        "did you mean resnet",
    ),
    teacher("random", lambda: "resnet8_cifar", "'resnet8_cifar'", "no pretrained weights", "pass checkpoint=FILE"),
    teacher("a hub id offline", lambda: "someone/model", "the clean teacher 'someone/model'", LOAD, UNSET),
    teacher("of other classes", lambda: sharp_net(1, num_classes=7), "7 classes", "the student has 4", "num_classes"),
    teacher(
        "of one channel", lambda: tiny_net(1, channels=1), "shape (3, 8, 8)", "to have 1 channel", "clean teacher"
    ),
    teacher("in half precision", lambda: tiny_net(1).half(), "torch.float16", "float32 pixels", "model.float()"),
    teacher("of NaN", lambda: Answering(lambda y: y * math.nan), "clean teacher", "not finite", "check its weights"),
    teacher("of other logits", lambda: Answering(lambda y: y[:, :3]), "(2, 3)", "student (2, 4)", "same class count"),
    teacher(
        "of three dimensions", lambda: Answering(lambda y: y[:, :, None]), "(2, 4, 1)", "(2, 4)", "(batch, classes)"
    ),
    teacher("of a mean", lambda: Answering(lambda y: y.mean(0, keepdim=True)), "(1, 4)", "(2, 4)", "(batch, classes)"),
    teacher("that answers text", lambda: Answering(lambda y: "x"), "returned str", "a tensor of logits", "expected"),
)
def test_teacher_that_cannot_be_asked_is_refused(row, request):
    refused(row, request)


def of(**teachers):
    """Make a Trainer with these teachers."""

    def do(scene):
        BMTARDTrainer(tiny_net(0), scene.config(), train_dataset=tiny_data(), teachers=teachers)

    return do


@table(
    Row(
        "missing",
        of(robust=sharp_net(2)),
        "missing: clean",
        "needs two teachers, clean and robust",
        "Pass clean_teacher=…",
    ),
    Row("misnamed", of(cleen=sharp_net(1), robust=sharp_net(2)), "'cleen'", "missing: clean", "clean_teacher=…"),
)
def test_teachers_that_do_not_go_with_the_method_are_refused(row, request):
    refused(row, request)


def batches(count, **options):
    """Train the network that cannot take one image."""
    return lambda scene: scene.trainer(NormOfOne(), tiny_data(count), method="sat", **options).train()


DROP = "pass dataloader_drop_last=True"


@table(
    Row("last batch of one", batches(9), "1 image (9 images in batches of 4)", "needs 2 or more", DROP),
    Row(
        "all batches of one", batches(8, per_device_train_batch_size=1), "1 image", "needs 2 or more", "size=2 or more"
    ),
    Row(
        *("no batch at all", batches(3, dataloader_drop_last=True), "3 images, and batches of 4"),
        *("dataloader_drop_last=True leaves no batch", "lower per_device_train_batch_size"),
    ),
)
def test_batches_that_the_student_cannot_take_are_refused(row, request):
    refused(row, request)


def test_teacher_that_is_trained_in_half_precision_is_refused(make_trainer):
    with pytest.raises(ValueError, match="robust teacher, which is trained too, has torch.bfloat16 weights"):
        make_trainer(method="ciard", robust_teacher=small_vit().bfloat16())


def test_student_is_as_it_was_after_a_refusal(make_trainer):
    trainer = make_trainer(NormOfOne(), tiny_data(9), method="sat")
    before = {name: value.clone() for name, value in trainer.model.state_dict().items()}
    trainer.model.conv.eval()
    draw = torch.get_rng_state()
    with pytest.raises(ValueError, match="the last batch of an epoch has 1 image"):
        trainer.train()
    assert all(torch.equal(value, before[name]) for name, value in trainer.model.state_dict().items())
    assert len(batch_norms(trainer.model)) == 1 and int(trainer.model.norm.num_batches_tracked) == 0
    assert not trainer.model.conv.training and trainer.model.norm.training
    assert all(parameter.grad is None and parameter.requires_grad for parameter in trainer.model.parameters())
    assert torch.equal(draw, torch.get_rng_state())


@pytest.mark.parametrize("options", [{"dataloader_drop_last": True}, {"per_device_train_batch_size": 3}])
def test_the_fixes_that_are_named_do_fix_it(options, make_trainer):
    make_trainer(NormOfOne(), tiny_data(9), method="sat", **options).train()


@pytest.mark.parametrize(
    "change, message",
    [
        (lambda y: y * 0 + torch.arange(4.0), "the clean teacher gives the same logits for two different images"),
        (lambda y: y.softmax(1), "the clean teacher seems to return probabilities"),
        (lambda y: y, None),
    ],
)
def test_teachers_that_know_nothing_are_warned_about_before_training(change, message, make_trainer, caplog):
    trainer = make_trainer(clean_teacher=Answering(change))
    with caplog.at_level(logging.WARNING, logger="bmtard_hooks.model_checks"):
        trainer.train()
    found = [record.getMessage() for record in caplog.records if record.name == "bmtard_hooks.model_checks"]
    assert len(found) == (message is not None) and all(message in text for text in found)
