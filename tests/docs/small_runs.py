"""What makes the code of a page run in a moment: generated images, tiny networks, two steps, weak attacks."""

import os
import shutil
from contextlib import contextmanager
from dataclasses import fields
from functools import partial
from pathlib import Path
from types import SimpleNamespace

import datasets
import numpy as np
import pytest
import quickstart
import torch
import transformers
from fenced_blocks import ROOT
from PIL import Image
from scenery import LAYOUTS, save_teachers, write_dataset

from bmtard_hooks import create_model, evaluate_robustness, load_images, load_teacher, recipe
from bmtard_hooks.evaluation import evaluator
from bmtard_hooks.methods import base
from bmtard_hooks.plots import outputs as plots_of_runs
from bmtard_hooks.reporting import outputs as report_outputs
from bmtard_hooks.reporting import save_report

SMALL_ARGUMENTS = {"max_steps": 2, "use_cpu": True, "report_to": [], "disable_tqdm": True, "bf16": False}
"""What every run of a page gets in place of its own."""

UNFOLDED = {"fold_batch_norm": False, "channels_last": False, "torch_compile": False, "torch_compile_mode": None}
"""Of runs of this library: what pays in long runs only."""

AT_MOST = {"steps": 2, "eval_attack_steps": 2, "per_device_train_batch_size": 16}
COARSE = 20  # dots per inch of figures
SMALL_ATTACKS = {"steps": 2, "queries": 4, "pairs": 1, "restarts": 1, "target_classes": 2}


def make_world(directory):
    """Write the data sets and the networks that pages read, each once: a photo folder, tiny CIFAR-10, models, reports."""
    datasets.config.HF_DATASETS_CACHE = directory / "cache"
    layout = LAYOUTS["cifar10"]
    data = directory / "cifar10"
    data.mkdir()
    write_dataset(data, layout, images=32)
    write_photos(directory / "photos")
    outputs = directory / "outputs"
    saved = save_teachers(outputs, layout.classes)
    for name in ("bmtard", "sat"):
        shutil.copytree(saved["robust"], outputs / name)
    few = load_images(str(data), "test", limit=8)
    for report, name in (("report", "bmtard"), ("report_sat", "sat")):
        model = load_teacher(str(outputs / name))
        found = evaluate_robustness(
            model, few, "fgsm", dataset_name="test", checks=False, progress=False, device="cpu"
        )
        (outputs / report).mkdir()
        save_report(found, outputs / report / "report.json")
    return directory


def write_photos(directory):
    """Write a folder of pictures: photos/SPLIT/CLASS/NUMBER.png."""
    generator = np.random.default_rng(0)
    for split, count in (("train", 12), ("test", 6)):
        for name in ("cat", "dog", "owl"):
            folder = directory / split / name
            folder.mkdir(parents=True)
            for number in range(count):
                pixels = generator.integers(0, 256, (32, 32, 3), dtype=np.uint8)
                Image.fromarray(pixels).save(folder / f"{number}.png")


def make_place(world, directory):
    """Make the folder in which a page's code runs: as the repository looks to a user who has followed the pages."""
    directory.mkdir()
    for name in ("recipes", "benchmarks", "docs", "README.md"):
        (directory / name).symlink_to(ROOT / name)
    (directory / "photos").symlink_to(world / "photos")
    shutil.copytree(world / "outputs", directory / "outputs")
    for role in ("clean", "robust"):
        for data in ("100", "_tiny"):
            (directory / "outputs" / f"{role}{data}").symlink_to(directory / "outputs" / role)
    (directory / "path" / "to").mkdir(parents=True)
    for role in ("clean", "robust"):
        (directory / "path" / "to" / role).symlink_to(world / "outputs" / role)
    torch.save(create_model("resnet56_cifar", 10).backbone.timm_model.state_dict(), directory / "clean.pt")
    return SimpleNamespace(folder=directory, data=str(world / "cifar10"), scope={"__name__": "page"}, written=set())


@contextmanager
def inside(folder):
    """Work in a folder."""
    before = Path.cwd()
    os.chdir(folder)
    try:
        yield
    finally:
        os.chdir(before)


@contextmanager
def everything_small():
    """Shrink trainings, attacks and checks, and leave no registered method and no changed verbosity behind."""
    methods, verbosity = dict(base._METHODS), transformers.logging.get_verbosity()
    whole = quickstart.digits()
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(
            transformers.TrainingArguments, "__post_init__", _shrunk(transformers.TrainingArguments.__post_init__)
        )
        patch.setattr(evaluator, "choose_attacks", _weakened(evaluator.choose_attacks))
        patch.setattr(evaluator, "make_settings", _few_checks)
        patch.setattr(recipe, "measure", _student_alone(recipe.measure))
        patch.setattr(plots_of_runs, "DPI", COARSE)
        patch.setattr(torch, "compile", partial(torch.compile, backend="eager"))
        patch.setattr(report_outputs, "draw_figures", partial(report_outputs.draw_figures, dpi=COARSE))
        patch.setattr(quickstart, "digits", lambda: whole.subset(range(128)))
        patch.setattr(quickstart, "TEST_IMAGES", 40)
        patch.setattr(quickstart, "VALIDATION_IMAGES", 24)
        yield
    base._METHODS.clear()
    base._METHODS.update(methods)
    transformers.logging.set_verbosity(verbosity)
    transformers.logging.enable_progress_bar()


def _shrunk(original):
    def post_init(self):
        for name, value in SMALL_ARGUMENTS.items():
            setattr(self, name, value)
        for name, value in UNFOLDED.items() if hasattr(self, "fold_batch_norm") else ():
            setattr(self, name, value)
        for name, most in AT_MOST.items():
            if hasattr(self, name):
                setattr(self, name, min(getattr(self, name), most))
        original(self)

    return post_init


def _student_alone(original):
    def measure(models, test, config):
        return original(dict([list(models.items())[-1]]), test, config)

    return measure


def _weakened(original):
    def choose(*args, **kwargs):
        plan = original(*args, **kwargs)
        plan.attacks = {name: weak(attack) for name, attack in plan.attacks.items()}
        return plan

    return choose


def weak(attack):
    """Give an attack few steps, queries and starts, whatever it has of them."""
    own = {entry.name for entry in fields(attack)}
    changes = {name: value for name, value in SMALL_ATTACKS.items() if name in own and getattr(attack, name) > value}
    inner = {"attack": weak(attack.attack)} if "attack" in own else {}
    return attack.replace(**changes, **inner)


def _few_checks(settings):
    return evaluator_settings({**settings, "check_images": 2, "examples": 1, "fold_batch_norm": False})


evaluator_settings = evaluator.make_settings
