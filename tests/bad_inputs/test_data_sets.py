"""Data sets of the wrong kind, size, columns or labels."""

import math

import datasets
import torch
from conftest import tiny_data, tiny_net
from refusing import Row, refused, table
from small_world import Stream, good_image, pairs

from bmtard_hooks import BMTARDTrainer, ImageTensors, PGDCollator


def train(name, make, received, allowed, fix, error=ValueError, **options):
    """A row that trains on bad rows, made when they are needed."""

    def do(scene):
        config = scene.config(method="sat", **options)
        BMTARDTrainer(tiny_net(0), config, train_dataset=make()).train()

    return Row(f"train on {name}", do, received, allowed, fix, error)


def evaluate(name, make, received, allowed, fix, error=ValueError):
    """A row that evaluates on bad rows, after an epoch."""

    def do(scene):
        config = scene.config(method="sat", eval_strategy="epoch")
        BMTARDTrainer(tiny_net(0), config, train_dataset=tiny_data(), eval_dataset=make()).train()

    return Row(f"evaluate on {name}", do, received, allowed, fix, error)


def columns(**values):
    return lambda: datasets.Dataset.from_dict(values)


KINDS, TENSORS = "pass a datasets.Dataset, ImageTensors", "(image, label) pairs"
IMAGES = [[[[0.5] * 8] * 8] * 3] * 2


@table(
    train("text", lambda: "cifar10", "train_dataset is the text 'cifar10'", KINDS, "load_images('cifar10'", TypeError),
    train("a number", lambda: 5, "train_dataset is 5, a int", KINDS, TENSORS, TypeError),
    train("nothing", lambda: None, "train_dataset is None", "expected a data set", "pass train_dataset="),
    train(
        "all splits",
        lambda: datasets.DatasetDict(train=columns(x=[1])()),
        "'train'",
        "pass one",
        "rows['train']",
        TypeError,
    ),
    train("an empty list", list, "train_dataset", "expected 1 row or more", "check its filter"),
    train("rows of None", lambda: [None] * 4, "row 0 of train_dataset is None", KINDS, TENSORS, TypeError),
    train("rows of text", lambda: ["ab"] * 4, "row 0 of train_dataset is 'ab'", KINDS, TENSORS, TypeError),
    train("rows of one item", lambda: [(1,)] * 4, "row 0 of train_dataset is (1,)", KINDS, TENSORS, TypeError),
    train(
        "no image column",
        columns(scan=[1], label=[0]),
        "'scan'",
        "no image column",
        "pass image_column=NAME",
    ),
    train(
        "no label column",
        columns(image=[1], grade=[0]),
        "'grade'",
        "no label column",
        "pass label_column=NAME",
    ),
    train("a class too many", columns(pixel_values=IMAGES, label=[0, 9]), "0 to 9", "(0 to 3)", "check label_column"),
    train(
        "labels below 0", columns(pixel_values=IMAGES, label=[-1, 2]), "from -1 to 2", "(0 to 3)", "check label_column"
    ),
    train(
        "more classes",
        lambda: tiny_data(16, num_classes=6),
        "labels go from 0 to 5",
        "4 classes",
        "check label_column",
    ),
    train(
        "labels of text",
        lambda: pairs(good_image, lambda i: "cat"),
        "'cat'",
        "no whole number",
        "class_encode_column()",
    ),
    train("labels of 0.5", lambda: pairs(good_image, lambda i: 0.5), "0.5", "no whole number", "pass a class index"),
    train(
        "labels of lists",
        lambda: pairs(good_image, lambda i: [0, 1]),
        "[0, 1]",
        "no whole number",
        "pass a class index",
    ),
    train(
        "labels of None", lambda: pairs(good_image, lambda i: None), "from -1 to -1", "(0 to 3)", "check label_column"
    ),
    train(
        "late labels", lambda: pairs(good_image, lambda i: 9 if i < 2 else 0), "to 9", "(0 to 3)", "check label_column"
    ),
    train(
        "values up to 255", lambda: pairs(lambda i: good_image(i) * 255), "values from", "in [0, 1]", "Divide by 255"
    ),
    train(
        "normalised values",
        lambda: pairs(lambda i: good_image(i) * 4 - 2),
        "values from -",
        "in [0, 1]",
        "normalisation",
    ),
    train("NaN", lambda: pairs(lambda i: good_image(i) * math.nan), "nan to nan", "in [0, 1]", "Divide by 255"),
    train(
        "whole numbers",
        lambda: pairs(lambda i: good_image(i).long()),
        "torch.int64",
        "uint8 (0 to 255)",
        "floats in [0, 1]",
    ),
    train(
        "paths", lambda: [{"image": "a.png", "label": 0}] * 4, "an image is a str", "PIL images", "datasets.Image()"
    ),
    train(
        "several sizes", lambda: pairs(lambda i: torch.rand(3, 8 + i % 2, 8)), "(3, 9, 8)", "one batch", "resize them"
    ),
    train(
        "one channel", lambda: pairs(lambda i: torch.rand(1, 8, 8)), "shape (1, 8, 8)", "to have 3 channels", "student"
    ),
    train("a stream for ever", Stream, "__len__", "known in advance", "max_steps has to be specified"),
    train(
        "a stream by epochs",
        Stream,
        "lr_milestones",
        "a stream has none",
        "leave them out",
        max_steps=2,
        lr_milestones=[1],
    ),
    evaluate("text", lambda: "cifar10", "eval_dataset is the text 'cifar10'", KINDS, "load_images", TypeError),
    evaluate("nothing", lambda: None, "eval_strategy", "eval_dataset", "pass an `eval_dataset`"),
    evaluate("an empty dictionary", dict, "an empty dictionary", "one or more data sets by name", "pass None"),
    evaluate("an empty set", lambda: {"small": []}, "eval_dataset['small']", "1 row or more", "check its filter"),
    evaluate("a list of sets", lambda: [tiny_data(4)], "row 0 of eval_dataset", KINDS, TENSORS, TypeError),
    evaluate(
        "another size",
        lambda: tiny_data(4, size=6),
        "eval_dataset: the student",
        "(3, 6, 6)",
        "resize all images to 8x8",
    ),
    evaluate(
        "one of another size", lambda: {"a": tiny_data(4, size=6)}, "eval_dataset['a']", "(3, 6, 6)", "resize all"
    ),
    evaluate(
        "a class too many", columns(pixel_values=IMAGES, label=[0, 9]), "0 to 9", "(0 to 3)", "check label_column"
    ),
)
def test_data_set_that_cannot_be_used_is_refused(row, request):
    refused(row, request)


def tensors(images, labels, **more):
    return lambda scene: ImageTensors(images, labels, **more)


BYTES = torch.zeros(2, 3, 8, 8, dtype=torch.uint8)


@table(
    Row("float64", tensors(BYTES.double(), torch.zeros(2)), "torch.float64", "uint8 or float32", "(N, C, H, W)"),
    Row("three dimensions", tensors(BYTES[0], torch.zeros(3)), "(3, 8, 8)", "(N, C, H, W)", "one label each"),
    Row("a label too few", tensors(BYTES, torch.zeros(1)), "1 labels", "expected", "one label each"),
    Row("floats above 1", tensors(BYTES.float() + 2, torch.zeros(2)), "from 2 to 2", "in [0, 1]", "Divide by 255"),
    Row(
        "broken labels", tensors(BYTES, torch.tensor([0, 0.5])), "the label 0.5", "whole number", "pass class indices"
    ),
)
def test_image_tensors_of_something_else_are_refused(row, request):
    refused(row, request)


def collator(**options):
    return lambda scene: PGDCollator(**options)


def attacked(method, attack):
    """Train a method with a foreign attack."""
    return lambda scene: scene.trainer(method=method, data_collator=PGDCollator(attack=attack)).train()


def identity(images, labels):
    return images


@table(
    Row("loss", collator(loss="cee"), "loss='cee'", "ce, kl, margin", "or pass a callable"),
    Row("augment", collator(augment="mixup"), "augment='mixup'", "crop_flip, crop, flip, none", "choose one of"),
    Row("crop_padding", collator(crop_padding=-1), "crop_padding=-1", "0 or more", "pass pixels per side"),
    Row("eps", collator(eps=8), "eps=8", "(0, 1]", "pass 8/255"),
    Row("steps", collator(steps=2.5), "steps=2.5", "a number of steps", "pass 0"),
    Row("norm", collator(norm="l1"), "norm='l1'", "linf, l2", "choose one of"),
    Row("attack of text", attacked("sat", "pgd"), "attack='pgd'", "a torchattacks object", "leave it out", TypeError),
    Row(
        "attack of fair_ard",
        attacked("fair_ard", identity),
        "attack=identity",
        "every step of PGD",
        "leave attack= out",
    ),
    Row(
        "attack of a union",
        attacked("bmtard_union", identity),
        "attack=identity",
        "several attacks",
        "leave attack= out",
    ),
    Row(
        "attack to None",
        attacked("sat", lambda x, y: None),
        "NoneType",
        "a tensor of that shape",
        "must return",
        TypeError,
    ),
    Row("attack to one image", attacked("sat", lambda x, y: x[:1]), "(1, 3, 8, 8)", "(4, 3, 8, 8)", "must keep"),
    Row("attack out of range", attacked("sat", lambda x, y: x + 2), "from 2 to 3", "in [0, 1]", "must stay"),
    Row("attack to NaN", attacked("sat", lambda x, y: x * math.nan), "nan", "in [0, 1]", "must stay"),
)
def test_collator_and_attacks_that_cannot_work_are_refused(row, request):
    refused(row, request)
