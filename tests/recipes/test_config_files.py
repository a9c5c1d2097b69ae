"""The YAML files: every one is listed and loads with its recipe, and holds the numbers of its method and data set."""

import pytest
import timm
from accelerate.commands.config.config_args import load_config_from_file
from scenery import CONFIGS, LAYOUTS, MODULES, RECIPES, listed_rows, options_of

from bmtard_hooks import BMTARDConfig
from bmtard_hooks.arguments import DataArguments, parse
from bmtard_hooks.distil import ModelArguments
from bmtard_hooks.methods import make_method

LISTED = listed_rows()
ROWS = [row for row in LISTED if row.recipe in MODULES]  # compare.py, which has options of its own, has its own tests
PARTS = [CONFIGS / "paper_run.yaml", *sorted((CONFIGS / "data").iterdir()), *sorted((CONFIGS / "methods").iterdir())]
PAPER = ("natural", "sat", "trades", "score", "ard", "rslad", "fair_ard", "absld", "mtard", "bmtard")
RIVALS = ("adaad", "adaad_igdm", "adaiad", "saad", "ciard")
DATASETS = {data: MODULES[f"{data}.py"].DEFAULTS["dataset"] for data in ("cifar10", "cifar100", "tiny_imagenet")}
STUDENTS = {"cifar10": "resnet18", "cifar100": "resnet18", "tiny_imagenet": "preactresnet18"}

SCHEDULES = {  # epochs, first rate, epochs after which it falls, weight decay, images a step
    "natural": (100, 0.1, [75, 90], 2e-4, 128),
    "sat": (205, 0.1, [102, 153], 2e-4, 128),
    "trades": (76, 0.1, [74], 2e-4, 128),
    "score": (110, 0.05, [100, 105], 5e-4, 128),
    **dict.fromkeys(("ard", "fair_ard", "iad"), (200, 0.1, [100], 2e-4, 128)),
    **dict.fromkeys(("rslad", "absld", "mtard", "lmtn", "bmtard"), (300, 0.1, [215, 260, 285], 2e-4, 128)),
    **dict.fromkeys(("adaad", "adaiad"), (200, 0.1, [100, 150], 5e-4, 128)),
    **dict.fromkeys(("adaad_igdm", "saad"), (200, 0.1, [100, 150], 2e-4, 128)),
    "ciard": (300, 0.1, None, 2e-4, 128),
}
TINY_SCHEDULES = {
    **SCHEDULES,
    "sat": (102, 0.01, [51, 77], 2e-4, 128),
    "score": (110, 0.01, [100, 105], 5e-4, 128),
    **dict.fromkeys(("rslad", "absld", "mtard", "bmtard"), (100, 0.1, [75, 90], 2e-4, 32)),
    "ciard": (100, 0.1, None, 2e-4, 32),
}


def load(path, tmp_path):
    return options_of(next(row for row in ROWS if row.path == path), tmp_path)


def main_rows():
    for data, student in STUDENTS.items():
        extra = ("iad", "lmtn") if data == "cifar10" else ()
        yield from ((data, student, name) for name in (*PAPER, *extra, *RIVALS))
        yield from ((data, "mobilenetv2", name) for name in PAPER)


def test_every_file_is_listed_once_and_every_listed_file_exists():
    complete = {str(path.relative_to(CONFIGS)) for path in CONFIGS.rglob("*.yaml") if path not in PARTS}
    assert sorted(row.path for row in LISTED) == sorted(complete)
    assert {row.recipe for row in LISTED} == {*MODULES, "compare.py"}


def test_every_method_of_the_paper_and_every_rival_has_its_rows():
    wanted = {f"{data}/{student}_{name}.yaml" for data, student, name in main_rows()}
    assert len(wanted) == 77 and wanted <= {row.path for row in ROWS}


@pytest.mark.parametrize("row", ROWS, ids=lambda row: row.path)
def test_every_file_loads_with_its_recipe(row, tmp_path):
    models, data, config = options_of(row, tmp_path)
    folder, _, file = row.path.rpartition("/")
    if folder in STUDENTS:
        assert row.recipe == f"{folder}.py" and models.student.startswith(file.split("_")[0] + "_")
    if folder in (*STUDENTS, "ablations", "teachers"):
        assert config.bf16 and config.load_best_model_at_end
    named = next(data for data in ("tiny_imagenet", "cifar100", "cifar10") if data in row.path + row.recipe)
    assert data.dataset == DATASETS[named]
    assert config.eval_strategy == "epoch" and config.save_strategy == "epoch"
    assert config.metric_for_best_model in ("w_robust", "clean_accuracy")


@pytest.mark.parametrize("path", PARTS, ids=lambda path: path.stem)
def test_parts_hold_options_that_exist(path, tmp_path):
    *_, config = parse(
        [ModelArguments, DataArguments, BMTARDConfig], ["--config", str(path), "--output_dir", str(tmp_path)]
    )
    assert config.output_dir == str(tmp_path) and make_method(config).weights


@pytest.mark.parametrize("data, student, name", list(main_rows()))
def test_schedule_is_that_of_the_method_and_data_set(data, student, name, tmp_path):
    _, _, config = load(f"{data}/{student}_{name}.yaml", tmp_path)
    expected = (TINY_SCHEDULES if data == "tiny_imagenet" else SCHEDULES)[name]
    drops = config.lr_milestones
    if drops is None and name != "ciard":  # CIARD has a curve of its own
        drops = [share * config.num_train_epochs for share in make_method(config).lr_drops]
    found = (config.num_train_epochs, config.learning_rate, drops, config.weight_decay)
    assert (*found, config.per_device_train_batch_size) == expected
    assert (config.momentum, config.nesterov, config.weight_decay_all) == (0.9, name == "fair_ard", True)
    assert config.method == name.removesuffix("_igdm")
    attack = config.train_attack()
    assert (attack.eps, attack.steps, attack.norm) == (8 / 255, 10, "linf")
    assert attack.step_size == (0.007 if name == "trades" else 2 / 255)


@pytest.mark.parametrize("data, student, name", list(main_rows()))
def test_loss_scale_and_temperature_follow_the_number_of_classes(data, student, name, tmp_path):
    _, images, config = load(f"{data}/{student}_{name}.yaml", tmp_path)
    classes = LAYOUTS[images.dataset].classes
    if name in ("ard", "fair_ard"):  # their code averages over classes
        assert config.loss_scale == pytest.approx(1 / classes)
        assert (config.ard_temperature, config.ard_alpha) == ((30, 1) if classes == 10 else (5, 0.95))
    if name in ("rslad", "absld", "mtard", "bmtard", "ciard", "lmtn"):  # these average and multiply by classes / 10
        assert config.loss_scale == 0.1
    if name == "adaad":
        assert config.loss_scale == (0.1 if classes == 10 else 1.0)
    if name in ("adaad_igdm", "saad"):
        assert config.igdm_weight == (1 if classes == 10 else 10)
    start = 2 if (data, student, name) == ("cifar10", "mobilenetv2", "bmtard") else 1
    assert (config.clean_temperature, config.robust_temperature) == (start, start)


@pytest.mark.parametrize("data", STUDENTS)
def test_files_and_recipe_name_the_same_data_set(data, tmp_path):
    types, words = [ModelArguments, DataArguments, BMTARDConfig], ["--output_dir", str(tmp_path)]
    _, from_recipe, _ = parse(types, words, defaults=MODULES[f"{data}.py"].DEFAULTS)
    _, from_file, _ = parse(types, [*words, "--config", str(CONFIGS / "data" / f"{data}.yaml")])
    assert from_recipe == from_file


@pytest.mark.parametrize("path, changed", [
    ("figure3_baseline", {"method": "baseline"}),
    ("figure3_baseline_ebb", {"method": "baseline", "entropy_balance": True}),
    ("figure3_mtard", {"method": "mtard"}),
    ("figure3_bmtard", {}),
    *[(f"table7_temperature_{t}", {"clean_temperature": t, "robust_temperature": t}) for t in (1, 2, 3, 5)],
    *[(f"table8_power_{str(b).replace('.', '_')}", {"loss_balance_power": b}) for b in (0.5, 1, 2, 4)],
])  # fmt: skip
def test_ablations_change_nothing_else(path, changed, tmp_path):
    main, row = load("cifar10/resnet18_bmtard.yaml", tmp_path), load(f"ablations/{path}.yaml", tmp_path)
    assert row[:2] == main[:2]
    differing = {
        name: getattr(row[2], name)
        for name in BMTARDConfig.__dataclass_fields__
        if repr(getattr(row[2], name)) != repr(getattr(main[2], name)) and name != "logging_dir"
    }
    assert differing == {name: value for name, value in changed.items() if value != getattr(main[2], name)}


def test_networks_named_in_the_files_exist(tmp_path):
    models = [options_of(row, tmp_path)[0] for row in ROWS]
    named = [
        vars(entry).get(key) for entry in models for key in ("student", "model", "clean_teacher", "robust_teacher")
    ]
    assert not [name for name in named if name is not None and not timm.is_model(name)]


@pytest.mark.parametrize("path", sorted((RECIPES / "accelerate").glob("*.yaml")), ids=lambda path: path.stem)
def test_accelerate_files_load(path):
    config = load_config_from_file(str(path))
    kind = {
        "cpu": ("NO", 1, True),
        "single_gpu": ("NO", 1, False),
        "multi_gpu": ("MULTI_GPU", 4, False),
        "multi_node": ("MULTI_GPU", 64, False),
        "fsdp2": ("FSDP", 8, False),
    }[path.stem]
    assert (config.distributed_type.value, config.num_processes, config.use_cpu) == kind
