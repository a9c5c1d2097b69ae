"""A word when the balance has come to an end of its range and stays there, or when the attack does nothing."""

from __future__ import annotations

import logging
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from transformers import TrainerCallback, TrainerState

from bmtard_hooks.callbacks.entropy_balance import EntropyBalance
from bmtard_hooks.callbacks.loss_balance import LossBalance

if TYPE_CHECKING:
    from bmtard_hooks.events import FiresEvents

logger = logging.getLogger(__name__)

LONG = 0.05
"""Share of the run after which a value that does not leave its bound is worth a warning, at least ``FEW`` steps."""
FEW = 100
MANY = 0.5
"""Share of images without a gradient for the attack that is worth a warning."""
NEARLY = 0.01
"""Distance of a weight from 0 or 1 that counts as none."""


class BalanceWatch(TrainerCallback):
    """Warns once when a temperature stays at its upper bound, all stay at the lower one, a loss weight at 0 or 1.

    And when most images give the attack no gradient.

    That one teacher stays at the lower bound while the other's temperature rises is how Entropy-Based Balance ends
    usually, and nothing to tell. The values are those of the log, so the step waits for nothing.

    Args:
        trainer: whose callbacks say what is balanced.
    """

    def __init__(self, trainer: FiresEvents) -> None:
        self.trainer = trainer
        self._since: dict[str, int] = {}
        self._told: set[str] = set()

    def on_log(self, args: Any, state: TrainerState, control: Any, **kwargs: Any) -> None:
        """Look at the balance of a training log."""
        logs = kwargs.get("logs") or {}
        if "loss" not in logs:
            return
        self._look_at_attack(logs.get("attack_zero_gradient", 0.0), state)
        now = {**self._stuck_temperatures(logs), **self._stuck_weights(logs)}
        self._since = {what: self._since.get(what, state.global_step) for what in now}
        patience = max(FEW, LONG * state.max_steps)
        for what, advice in now.items():
            if state.global_step - self._since[what] >= patience and what not in self._told:
                self._told.add(what)
                logger.warning("%s since step %d. %s", what, self._since[what], advice)

    def _look_at_attack(self, share: float, state: TrainerState) -> None:
        if share > MANY and "attack" not in self._told:
            self._told.add("attack")
            logger.warning(
                "up to step %d, the attack had no gradient at all on %.0f%% of the images, so it hardly moved them. The student is "
                "certain to the last bit, hides its gradient, or fp16 rounds it to 0: use bf16 or float32, and measure the student "
                "with bmtard evaluate, whose checks look for this",
                *(state.global_step, 100 * share),
            )

    def _stuck_temperatures(self, logs: Mapping[str, float]) -> dict[str, str]:
        balance = self._find(EntropyBalance)
        temperatures = _named(logs, "temperature_")
        if balance is None or not temperatures:
            return {}
        low, high = balance.min_temperature, balance.max_temperature
        advice = (
            "The teachers' entropies cannot meet within the bounds: look at them with `bmtard preview`, raise max_temperature, or "
            "choose another teacher"
        )
        stuck = {
            f"the {teacher} teacher's temperature is at its upper bound, {high:g},": advice
            for teacher, value in temperatures.items()
            if value >= high > low
        }
        if all(value in (low, high) for value in temperatures.values()) and not stuck:
            stuck[f"all temperatures are at their lower bound, {low:g},"] = (
                "Entropy-Based Balance does nothing there: the teachers are equally sure, or temperature_rate is very small"
            )
        return stuck

    def _stuck_weights(self, logs: Mapping[str, float]) -> dict[str, str]:
        weights = _named(logs, "weight_")
        if self._find(LossBalance) is None or len(weights) < 2:
            return {}
        total = sum(weights.values())
        advice = "The student learns from one side only: lower weight_rate or loss_balance_power, or look at the relative losses"
        return {
            f"the {part} loss has a weight of {'nearly 0' if value < NEARLY * total else 'nearly everything'}": advice
            for part, value in weights.items()
            if not NEARLY * total <= value <= (1 - NEARLY) * total
        }

    def _find(self, kind: Any) -> Any:
        return next((c for c in self.trainer.distillation_callbacks() if isinstance(c, kind)), None)


def _named(logs: Mapping[str, float], prefix: str) -> dict[str, float]:
    return {name.removeprefix(prefix): value for name, value in logs.items() if name.startswith(prefix)}
