"""A model card that says how a student was trained and what was measured."""

from __future__ import annotations

import logging
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from huggingface_hub import ModelCard, ModelCardData
from transformers import PreTrainedModel, TrainerCallback, TrainerState

from bmtard_hooks.attacks.pgd import PGDSettings
from bmtard_hooks.config import BMTARDConfig
from bmtard_hooks.models.architectures import is_own_architecture
from bmtard_hooks.models.create import channels_of
from bmtard_hooks.models.pixels import RGB, PixelClassifier

logger = logging.getLogger(__name__)

TAG = "bmtard_hooks"
CITATION = """@article{zhao2024bmtard,
  title   = {Mitigating Accuracy-Robustness Trade-off via Balanced Multi-Teacher Adversarial Distillation},
  author  = {Zhao, Shiji and Wang, Xizhe and Wei, Xingxing},
  journal = {IEEE Transactions on Pattern Analysis and Machine Intelligence},
  year    = {2024}
}"""


class ModelCardCallback(TrainerCallback):
    """Writes ``README.md`` beside the model when training ends.

    Args:
        facts: called at the end of training, returns the keyword arguments of ``write_model_card``.
    """

    def __init__(self, facts: Callable[[], dict[str, Any]]) -> None:
        self.facts = facts

    def on_train_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        """Write the card on the main process."""
        if state.is_world_process_zero:
            write_model_card(args.output_dir, **self.facts())


def write_model_card(
    directory: str | Path,
    *,
    args: BMTARDConfig,
    student: PixelClassifier,
    teachers: Mapping[str, PixelClassifier],
    attack: PGDSettings | None,
    state: TrainerState,
    averaging: str = "",
) -> None:
    """Write a model card.

    Args:
        directory: gets a ``README.md``.
        args: the run's options.
        student: the trained student.
        teachers: its teachers by role.
        attack: the training attack, None without one.
        state: the Trainer's state; the evaluation of the best checkpoint is reported if that one was loaded at the end,
            the last one otherwise.
        averaging: how the weights were averaged, empty if they were not.
    """
    path = Path(directory) / "README.md"
    if path.exists() and TAG not in path.read_text():
        logger.warning("%s is not a model card of ours, so it was left alone", path)
        return
    lines = [
        f"# {name_of(student)} trained with {args.method}",
        "",
        f"Trained with `{TAG}`. {_loading(student)}",
        "",
        "| role | model |",
        "|---|---|",
        f"| student | {name_of(student)}, {sum(p.numel() for p in student.parameters()):,} parameters |",
        *(f"| {role} teacher | {name_of(teacher)} |" for role, teacher in teachers.items()),
        "",
        f"Training attack: {_describe(attack)}. {_epochs(args)}, batch {args.per_device_train_batch_size} per device, "
        f"learning rate {args.learning_rate}, seed {args.seed}.",
        *([f"The weights are averages of those that were trained ({averaging})."] if averaging else []),
        "",
        *_results(state, args),
        "",
        *usage(student),
        "## Citation",
        "",
        "```bibtex",
        CITATION,
        "```",
        "",
    ]
    tags = [TAG, "adversarial-robustness", "knowledge-distillation", args.method]
    library = "transformers" if isinstance(student.backbone, PreTrainedModel) else "pytorch"
    data = ModelCardData(library_name=library, pipeline_tag="image-classification", tags=tags)
    ModelCard(f"---\n{data.to_yaml()}\n---\n\n" + "\n".join(lines)).save(path)


def name_of(model: PixelClassifier) -> str:
    """Name a model's architecture for a reader."""
    config = getattr(model.backbone, "config", None)
    return getattr(config, "architecture", None) or type(model.backbone).__name__


def usage(student: PixelClassifier) -> list[str]:
    """Write the section that says how transformers' pipeline loads the student.

    Args:
        student: the trained student.

    Returns:
        Lines of Markdown; none for a student that a pipeline cannot take: a module without a config, or one whose images are
        not RGB.
    """
    if not isinstance(student.backbone, PreTrainedModel) or channels_of(student) not in (None, RGB):
        return []
    own = is_own_architecture(name_of(student))
    return [
        "## Usage",
        "",
        "```python",
        *([f"import {TAG}  # registers {name_of(student)}, which timm does not have"] if own else []),
        "from transformers import pipeline",
        "",
        'classify = pipeline("image-classification", model="DIRECTORY")',
        'print(classify("photo.png"))',
        "```",
        "",
    ]


def _describe(attack: PGDSettings | None) -> str:
    if attack is None:
        return "none"
    return (
        f"PGD-{attack.steps}, {attack.norm}, eps {attack.eps:.6f} ({attack.eps * 255:.3g}/255), "
        f"step {attack.step_size:.6f}, {attack.start} start"
    )


def _epochs(args: BMTARDConfig) -> str:
    return f"{args.max_steps} steps" if args.max_steps > 0 else f"{args.num_train_epochs:g} epochs"


def _loading(student: PixelClassifier) -> str:
    if isinstance(student.backbone, PreTrainedModel):
        return f"`{TAG}.create_model(directory)` takes pixels in [0, 1]; {_normalisation(student)}"
    return (
        "These are the weights alone: build the network, load `model.safetensors` into it, and wrap it as "
        f"`{TAG}.PixelClassifier(network, mean, std)` to have it take pixels in [0, 1]; {_normalisation(student)}"
    )


def _normalisation(student: PixelClassifier) -> str:
    if student.mean is None or student.std is None:
        return "nothing else is done to them."
    numbers = [[round(float(value), 4) for value in values.flatten()] for values in (student.mean, student.std)]
    return f"loaded in any other way, it expects them normalised with mean {numbers[0]} and std {numbers[1]}."


def _results(state: TrainerState, args: BMTARDConfig) -> list[str]:
    evaluations = [entry for entry in state.log_history if any(key.endswith("clean_accuracy") for key in entry)]
    loaded = str(state.best_model_checkpoint).rpartition("-")[2] if args.load_best_model_at_end else ""
    best = [entry for entry in evaluations if str(entry.get("step")) == loaded]
    chosen = best or evaluations[-1:]
    if not chosen:
        return ["Not evaluated during training."]
    names = {"clean_accuracy": "clean accuracy", "robust_accuracy": "robust accuracy", "w_robust": "W-Robust"}
    rows = ["| metric | value |", "|---|---|"]
    for key, value in chosen[0].items():
        for suffix, name in names.items():
            if key.endswith(suffix):
                which = key.removeprefix("eval_").removesuffix(suffix).strip("_")
                rows.append(f"| {name}{f' ({which})' if which else ''} | {value:.2%} |")
    where = f"Measured at step {chosen[0].get('step', 0)} on the evaluation set"
    if args.eval_attack:
        where += (
            f" under {_describe(args.evaluation_attack())}. This is one weak attack: use a stronger evaluation before"
        )
        where += " relying on the robust accuracy"
    return [*rows, "", f"{where}."]
