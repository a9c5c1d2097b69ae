"""What a recipe does when it is not told otherwise: look at held-out images every epoch, and keep the best checkpoint."""

from __future__ import annotations

import logging
from collections.abc import Mapping
from typing import Any

from bmtard_hooks.config import BMTARDConfig

logger = logging.getLogger(__name__)

KEPT = 2
"""Checkpoints that stay on the disk: the best and the newest."""


def choosing_defaults(given: Mapping[str, Any]) -> dict[str, Any]:
    """Give the defaults with which a run evaluates, and ends with its best checkpoint, as far as the given options let it.

    The best checkpoint can be loaded only if every evaluated one is saved, so evaluating and saving follow each other: a run
    that saves every 500 steps is also evaluated every 500.

    Args:
        given: the options of the command line and the YAML file.

    Returns:
        Option to default. No checkpoint is chosen if ``eval_strategy`` or ``save_strategy`` is ``no``, or if they differ.
    """
    defaults = {"eval_strategy": "epoch", "load_best_model_at_end": True, "save_total_limit": KEPT}
    evaluates, saves = (_word(given.get(f"{kind}_strategy")) for kind in ("eval", "save"))
    if not {evaluates, saves} <= {None, "no", "epoch", "steps", "best"}:
        return {}  # a word that the config refuses
    if "no" in (evaluates, saves) or saves == "best":
        return defaults | {"load_best_model_at_end": "no" not in (evaluates, saves)}
    together = evaluates or saves or "epoch"
    if saves not in (None, together):
        if "load_best_model_at_end" not in given:
            logger.warning(
                "eval_strategy=%r and save_strategy=%r differ, so the last weights are kept and no checkpoint is chosen: pass the "
                "same for both to keep the best",
                evaluates,
                saves,
            )
        return defaults | {"load_best_model_at_end": False}
    return defaults | {"eval_strategy": together, "save_strategy": together} | _steps(given, together)


def _steps(given: Mapping[str, Any], together: str) -> dict[str, Any]:
    if together != "steps":
        return {}
    usual = given.get("logging_steps", BMTARDConfig.logging_steps)
    every = given.get("eval_steps") or given.get("save_steps") or usual
    return {"eval_steps": every, "save_steps": every}


def _word(value: Any) -> str | None:
    return None if value is None else str(getattr(value, "value", value))
