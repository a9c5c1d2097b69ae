"""Every row of the tables, trained for two steps by its recipe on generated images of its data set's size."""

import dataclasses
import functools

import datasets
import pytest
import torch
from scenery import CONFIGS, LAYOUTS, MODULES, ROLES, listed_rows, options_of, save_teachers, types_of, write_dataset
from transformers import set_seed

from bmtard_hooks import arguments, create_model, distil, load_teacher, recipe

ROWS = [row for row in listed_rows() if row.recipe in MODULES]
TEACHERS = [f"{role}_teacher" for role in ROLES]
STAND_IN = "resnet8_cifar"
DRY = {  # what makes a run of the paper's size one of two steps on a CPU; everything else stays as the row has it
    **{"max_steps": 2, "per_device_train_batch_size": 4, "gradient_accumulation_steps": 1, "steps": 1, "bf16": False},
    **{"eval_strategy": "no", "save_strategy": "no", "load_best_model_at_end": False, "eval_attack_steps": 1},
    **{"warmup_steps": 0, "report_to": "none", "disable_tqdm": True, "use_cpu": True},
    **{"validation_images": 4, "test_limit": 2, "torch_compile": False},
}
WORDS = [word for name, value in DRY.items() for word in (f"--{name}", str(value))]


@pytest.fixture(scope="module")
def scene(tmp_path_factory):
    """Data set's name to the directory of a small one like it and to its teachers, made when first asked for.

    Four images are left for training, so each of the two steps is an epoch, at whose end some methods do something.
    Images and teachers are read once, and the table of the end, which takes half of the time, is a glance at clean images:
    the recipes' own tests have the whole.
    """
    datasets.config.HF_DATASETS_CACHE = tmp_path_factory.mktemp("cache")
    made = {}

    def of(dataset):
        if dataset not in made:
            layout = LAYOUTS[dataset]
            written = write_dataset(tmp_path_factory.mktemp("data"), layout, images=8)
            made[dataset] = written, save_teachers(tmp_path_factory.mktemp("teachers"), layout.classes)
        return made[dataset]

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(arguments, "load_images", functools.cache(arguments.load_images))
        patch.setattr(distil, "load_teacher", functools.cache(distil.load_teacher))
        patch.setattr(recipe, "measure", glance)
        yield of


def glance(models, test, config):
    with torch.no_grad():
        logits = {name: model(test.pixels(slice(None))) for name, model in models.items()}
    return {name: float((found.argmax(1) == test.labels).float().mean()) for name, found in logits.items()}, "a table"


def rows_that_differ():
    """One row for every recipe and combination of options other than the networks, which stand-ins replace."""
    chosen = {}
    for row in ROWS:
        known = {entry.name for kind in types_of(row) for entry in dataclasses.fields(kind)}
        options = arguments.read_options(CONFIGS / row.path, known)
        kept = {name: value for name, value in options.items() if name not in ("student", "model", *TEACHERS)}
        chosen.setdefault((row.recipe, repr(sorted(kept.items()))), row)
    return [
        pytest.param(row, id=row.path, marks=[] if is_always_trained(row) else pytest.mark.exhaustive)
        for row in chosen.values()
    ]


def is_always_trained(row):
    """Rows of CIFAR-10, and one of every other data set: the others of those differ in the data set alone, or in schedules."""
    return not row.path.startswith(("cifar100/", "tiny_imagenet/")) or row.path.endswith("_bmtard.yaml")


def train(row, network, scene, output_dir, argv=()):
    _, data, config = options_of(row, output_dir, WORDS)
    written, teachers = scene(data.dataset)
    words = ["--config", str(CONFIGS / row.path), *WORDS, "--dataset", written, "--output_dir", str(output_dir), *argv]
    words += ["--model" if row.recipe == "train_teacher.py" else "--student", network]
    words += [word for role in row.teachers for word in (f"--{role}_teacher", teachers[role])]
    return MODULES[row.recipe].main(words), config, LAYOUTS[data.dataset]


def check_trained(row, network, outcome, output_dir):
    """Measured beside the teachers that the list of files names, saved, finite, and moved away from the first weights."""
    rows, config, layout = outcome
    *others, own = rows
    assert others == [f"{role} teacher" for role in row.teachers] and config.method in own
    trained = load_teacher(str(output_dir), num_classes=layout.classes)
    set_seed(config.seed)
    first = create_model(network, layout.classes, image_size=layout.side)
    pairs = list(zip(trained.backbone.parameters(), first.backbone.parameters(), strict=True))
    assert all(torch.isfinite(now).all() for now, _ in pairs)
    assert any(not torch.equal(now, then) for now, then in pairs)


@pytest.mark.parametrize("row", rows_that_differ())
def test_row_trains_for_two_steps(row, scene, tmp_path):
    """Rows that differ in nothing but networks (the students of Tables III and IV, the teachers of Table XI) share a run.

    A ResNet-8 stands in for every network, so that the test is about the method and its options; attacks have one step.
    """
    check_trained(row, STAND_IN, train(row, STAND_IN, scene, tmp_path), tmp_path)


STUDENTS = [
    *(("cifar10/resnet18_bmtard.yaml", "resnet18_cifar"), ("cifar10/mobilenetv2_bmtard.yaml", "mobilenetv2_cifar")),
    pytest.param("cifar100/resnet18_bmtard.yaml", "resnet18_cifar", marks=pytest.mark.exhaustive),
    pytest.param("cifar100/mobilenetv2_bmtard.yaml", "mobilenetv2_cifar", marks=pytest.mark.exhaustive),
    ("tiny_imagenet/preactresnet18_bmtard.yaml", "preactresnet18_tiny"),
    pytest.param("tiny_imagenet/mobilenetv2_bmtard.yaml", "mobilenetv2_cifar", marks=pytest.mark.exhaustive),
]


@pytest.mark.parametrize("path, student", STUDENTS)
def test_papers_students_train_for_two_steps(path, student, scene, tmp_path):
    row = next(row for row in ROWS if row.path == path)
    assert options_of(row, tmp_path, WORDS)[0].student == student
    check_trained(row, student, train(row, student, scene, tmp_path, ["--per_device_train_batch_size", "2"]), tmp_path)
