"""A model card that says how a student was trained and what was measured."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from huggingface_hub import ModelCard, ModelCardData
from transformers import TrainerCallback

from bmtard_hooks.attacks.pgd import PGDSettings
from bmtard_hooks.config import BMTARDConfig
from bmtard_hooks.models.pixels import PixelClassifier

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
    log_history: Sequence[Mapping[str, Any]],
) -> None:
    """Write a model card.

    Args:
        directory: gets a ``README.md``.
        args: the run's options.
        student: the trained student.
        teachers: its teachers by role.
        attack: the training attack, None without one.
        log_history: the Trainer's log; the last evaluation in it is reported.
    """
    evaluation = args.evaluation_attack()
    measured = next((dict(entry) for entry in reversed(log_history) if "eval_clean_accuracy" in entry), None)
    lines = [
        f"# {name_of(student)} trained with {args.method}",
        "",
        "Trained with `bmtard_hooks`. Input: pixels in [0, 1]; the normalisation is recorded in `config.json`.",
        "",
        "| role | model |",
        "|---|---|",
        f"| student | {name_of(student)}, {sum(p.numel() for p in student.parameters()):,} parameters |",
        *(f"| {role} teacher | {name_of(teacher)} |" for role, teacher in teachers.items()),
        "",
        f"Training attack: {_describe(attack)}. {_epochs(args)}, batch {args.per_device_train_batch_size} per device, "
        f"learning rate {args.learning_rate}, seed {args.seed}.",
        "",
        *_results(measured, _describe(evaluation)),
        "",
        "## Citation",
        "",
        "```bibtex",
        CITATION,
        "```",
        "",
    ]
    data = ModelCardData(
        library_name="transformers",
        pipeline_tag="image-classification",
        tags=["bmtard_hooks", "adversarial-robustness", "knowledge-distillation", args.method],
    )
    card = ModelCard(f"---\n{data.to_yaml()}\n---\n\n" + "\n".join(lines))
    Path(directory).mkdir(parents=True, exist_ok=True)
    card.save(Path(directory) / "README.md")


def name_of(model: PixelClassifier) -> str:
    """Name a model's architecture for a reader."""
    config = getattr(model.backbone, "config", None)
    return getattr(config, "architecture", None) or type(model.backbone).__name__


def _describe(attack: PGDSettings | None) -> str:
    if attack is None:
        return "none"
    return (
        f"PGD-{attack.steps}, {attack.norm}, eps {attack.eps:.6f} ({attack.eps * 255:.3g}/255), "
        f"step {attack.step_size:.6f}, {attack.start} start"
    )


def _epochs(args: BMTARDConfig) -> str:
    return f"{args.max_steps} steps" if args.max_steps > 0 else f"{args.num_train_epochs:g} epochs"


def _results(measured: Mapping[str, Any] | None, attack: str) -> list[str]:
    if measured is None:
        return ["Not evaluated during training."]
    rows = ["| metric | value |", "|---|---|", f"| clean accuracy | {measured['eval_clean_accuracy']:.2%} |"]
    if "eval_robust_accuracy" in measured:
        rows.append(f"| robust accuracy | {measured['eval_robust_accuracy']:.2%} |")
        rows.append(f"| W-Robust | {measured['eval_w_robust']:.2%} |")
        rows += ["", f"Measured at epoch {measured.get('epoch', 0):g} under {attack}. This is one weak attack: use a"]
        rows.append("stronger evaluation before relying on the robust accuracy.")
    return rows
