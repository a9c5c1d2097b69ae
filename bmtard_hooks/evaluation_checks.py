"""What evaluations during training will need, before the first of them comes hours later."""

from __future__ import annotations

import difflib
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from transformers import EarlyStoppingCallback, Trainer

from bmtard_hooks.data import is_map_style
from bmtard_hooks.data_checks import check_batch
from bmtard_hooks.decoding import as_pixels
from bmtard_hooks.evaluation.in_training import EvaluatesRobustness
from bmtard_hooks.evaluation.metrics import RobustMetrics
from bmtard_hooks.models.teachers import try_classifier

if TYPE_CHECKING:
    from bmtard_hooks.config import BMTARDConfig
    from bmtard_hooks.trainer import BMTARDTrainer

ALWAYS = ("loss", "clean_accuracy")
ATTACKED = ("robust_accuracy", "w_robust")
TIMES = ("runtime", "samples_per_second", "steps_per_second")


def check_evaluations(trainer: BMTARDTrainer) -> None:
    """Check the name of the best model's metric, callbacks that wait for it, and the images of every evaluation set.

    Raises:
        ValueError: for a metric that no evaluation gives, or images that the student cannot take.
    """
    args = trainer.args
    stops_early = any(isinstance(callback, EarlyStoppingCallback) for callback in trainer.callback_handler.callbacks)
    if stops_early and (args.metric_for_best_model is None or args.eval_strategy == "no"):
        raise ValueError(
            f"EarlyStoppingCallback has nothing to watch with metric_for_best_model={args.metric_for_best_model!r} and "
            f"eval_strategy={getattr(args.eval_strategy, 'value', args.eval_strategy)!r}: pass metric_for_best_model='w_robust' and eval_strategy='epoch'"
        )
    if args.eval_strategy == "no":
        return
    _check_metric(trainer)
    _check_images(trainer, trainer.eval_dataset)


def _check_metric(trainer: BMTARDTrainer) -> None:
    metrics, kind = trainer.compute_metrics, type(trainer)
    stock = kind.evaluate is Trainer.evaluate and kind.evaluation_loop is EvaluatesRobustness.evaluation_loop
    if stock and isinstance(metrics, RobustMetrics) and metrics.users is None:  # else code of a user's decides
        parts = list(trainer.eval_dataset) if isinstance(trainer.eval_dataset, dict) else []
        require_metric(trainer.args, parts)


def require_metric(config: BMTARDConfig, parts: Sequence[str] = ()) -> None:
    """Refuse a ``metric_for_best_model`` that no evaluation of this library gives.

    Args:
        config: the run's options.
        parts: names of the evaluation sets, if there are several.

    Raises:
        ValueError: with the names that there are.
    """
    wanted = config.metric_for_best_model
    names: Sequence[str] = (*ALWAYS, *(ATTACKED if config.eval_attack else ()), *TIMES)
    known = [f"{part}_{name}" for part in parts for name in names] if parts else list(names)
    if wanted is None or wanted.removeprefix("eval_") in known:
        return
    useful = [name for name in known if not name.endswith(TIMES)]
    near = difflib.get_close_matches(wanted.removeprefix("eval_"), useful, n=2, cutoff=0.4)
    hint = f" Did you mean {' or '.join(near)}?" if near else ""
    more = "" if config.eval_attack else " (robust accuracy needs eval_attack=True)"
    raise ValueError(
        f"metric_for_best_model={wanted!r} is no metric of an evaluation: pass one of {', '.join(useful)}{more}.{hint}"
    )


def _check_images(trainer: BMTARDTrainer, given: Any) -> None:
    several = isinstance(given, dict)
    named = {f"eval_dataset[{name!r}]": rows for name, rows in given.items()} if several else {"eval_dataset": given}
    for name, rows in named.items():
        if not is_map_style(rows) or len(rows) == 0:
            continue
        try:
            batch = trainer.data_collator([rows[0], rows[min(1, len(rows) - 1)]])
            check_batch(batch, trainer.student.num_classes)
            try_classifier("student", trainer.student, as_pixels(batch["pixel_values"].to(trainer.args.device)))
        except (ValueError, KeyError, TypeError) as error:
            raise ValueError(f"{name}: {error}") from error
