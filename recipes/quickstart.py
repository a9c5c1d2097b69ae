"""See B-MTARD work in a few minutes: real handwritten digits, two teachers, a student, an SAT baseline, one table.

    python recipes/quickstart.py

Nothing is downloaded and no GPU is needed; scikit-learn brings the 1,797 images of 8x8 grey pixels. Results depend on the
seed: `--seed 1` shows another run. `--epochs_factor 2` trains everything twice as long.
"""

from __future__ import annotations

import time
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
import transformers
from sklearn.datasets import load_digits
from transformers import PrinterCallback

from bmtard_hooks import BMTARDConfig, BMTARDTrainer, ImageTensors, create_model, load_teacher
from bmtard_hooks.arguments import parse
from bmtard_hooks.plots import plot_balance
from bmtard_hooks.recipe import measure

TEST_IMAGES, VALIDATION_IMAGES = 797, 500  # the 500 others are for training
EPS = 0.2  # of the range from black to white; the 8/255 of photographs would hardly hurt on digits

RUNS: dict[str, dict[str, Any]] = {
    # Shifted digits help on clean images; attacked ones are hard enough as they are in so short a time.
    "clean teacher": dict(method="natural", num_train_epochs=20, augment="crop", crop_padding=1),
    "robust teacher": dict(method="sat", num_train_epochs=25, augment="none"),
    "SAT baseline": dict(method="sat", num_train_epochs=25, augment="none"),
    "B-MTARD student": dict(
        method="bmtard",
        num_train_epochs=25,
        augment="none",
        temperature_rate=0.01,  # the paper's 0.001 suits 117,000 steps: in these 400, temperatures would hardly move
        loss_scale=3.0,  # the authors' 0.1 suits 300 epochs: a larger loss learns faster
    ),
}
MILESTONES = (215 / 300, 260 / 300, 285 / 300)  # B-MTARD's, for all four runs
COMMON: dict[str, Any] = dict(
    eps=EPS,
    step_size=0.4 * EPS,
    steps=4,
    eval_attack_step_size=EPS / 8,
    eval_attack_steps=20,
    learning_rate=0.05,
    per_device_train_batch_size=32,
    logging_steps=5,
    logging_first_step=True,
    save_strategy="no",
    overwrite_output_dir=True,
    use_cpu=True,
    report_to="none",
    disable_tqdm=True,
)


@dataclass
class QuickstartArguments:
    """What can be changed."""

    output_dir: str = field(default="outputs/quickstart", metadata={"help": "Where models and the picture go."})
    seed: int = field(default=0, metadata={"help": "Of the weights, the order of the images and the noise."})
    epochs_factor: float = field(default=1.0, metadata={"help": "Factor on the number of epochs of all four runs."})


def main(argv: list[str] | None = None) -> dict[str, dict[str, float]]:
    """Train two teachers, a B-MTARD student and an SAT baseline; return and print their accuracies on test images."""
    (arguments,) = parse([QuickstartArguments], argv, __doc__)
    torch.set_num_threads(1)  # networks this small gain nothing from more
    quiet()
    rest, test = digits().split(TEST_IMAGES)
    train, validation = rest.split(VALIDATION_IMAGES)
    directories = {name: Path(arguments.output_dir) / name.replace(" ", "_") for name in RUNS}

    def fit(name: str, seed: int, **teachers: Any) -> BMTARDTrainer:
        epochs = RUNS[name]["num_train_epochs"] * arguments.epochs_factor
        drops = [share * epochs for share in MILESTONES]
        options = {**COMMON, **RUNS[name], "num_train_epochs": epochs, "lr_milestones": drops}
        config = BMTARDConfig(output_dir=str(directories[name]), seed=seed, **options)
        return train_one(name, config, train, validation, **teachers)

    first = 3 * arguments.seed
    fit("clean teacher", first)
    fit("robust teacher", first + 1)
    fit("SAT baseline", first + 2)
    trainer = fit(
        "B-MTARD student",
        first + 2,  # starts from the weights that the baseline started from
        clean_teacher=load_teacher(str(directories["clean teacher"])),
        robust_teacher=load_teacher(str(directories["robust teacher"])),
    )

    models = {name: load_teacher(str(path)) for name, path in directories.items()}
    rows, table = measure(models, test, trainer.args)
    picture = Path(arguments.output_dir) / "balance.png"
    plot_balance(trainer.state.log_history, picture, "B-MTARD on handwritten digits")
    print(f"\n{table}\n\n{verdict(rows)}")
    print(f"Models are in {arguments.output_dir}, temperatures and weights over the student's run in {picture}")
    return rows


def digits() -> ImageTensors:
    """Read scikit-learn's digits as one-channel images with values from 0 to 255."""
    bunch = load_digits()
    images = torch.from_numpy(bunch.images) * (255 / 16)
    return ImageTensors(images.round().to(torch.uint8).unsqueeze(1), torch.from_numpy(bunch.target))


def train_one(
    name: str, config: BMTARDConfig, train: ImageTensors, validation: ImageTensors, **teachers: Any
) -> BMTARDTrainer:
    """Train and save one network, and print one line about it."""
    started = time.perf_counter()
    torch.manual_seed(config.seed)  # of the first weights
    network = create_model("resnet8_cifar", train.num_classes, in_chans=1)
    trainer = BMTARDTrainer(network, config, train_dataset=train, eval_dataset=validation, **teachers)
    trainer.remove_callback(PrinterCallback)  # one line at the end is enough
    trainer.train()
    trainer.save_model()
    found = trainer.evaluate()
    print(
        f"{name:<15} trained with {config.method:<7} for {trainer.state.global_step} steps: validation clean "
        f"{found['eval_clean_accuracy']:.1%}, PGD-20 {found['eval_robust_accuracy']:.1%} "
        f"({time.perf_counter() - started:.0f} s)",
        flush=True,
    )
    return trainer


def quiet() -> None:
    """Leave the screen to this script: no progress bars, no notes about loaded files."""
    transformers.logging.set_verbosity_error()
    transformers.logging.disable_progress_bar()


def verdict(rows: Mapping[str, Mapping[str, float]]) -> str:
    """Say in a sentence how the student's W-Robust compares with the others'."""
    *others, (student, reached) = [(f"the {name}", row["w_robust"]) for name, row in rows.items()]
    said = []
    for verb, names in (
        ("is above", [f"{name} ({value:.2%})" for name, value in others if reached > value]),
        ("is not above", [f"{name} ({value:.2%})" for name, value in others if reached <= value]),
    ):
        if names:
            said.append(f"{verb} that of {', '.join(names[:-1])}{' and ' if names[1:] else ''}{names[-1]}")
    return f"W-Robust of {student} ({reached:.2%}) {', but '.join(said)}."


if __name__ == "__main__":
    main()
