"""The progress bar with the losses, temperatures and weights of the last log beside it."""

from __future__ import annotations

from typing import Any

from transformers.trainer_callback import CallbackHandler, ProgressCallback

SHOWN = ("loss_", "temperature_", "weight_")


class BalanceProgress(ProgressCallback):
    """Transformers' progress bar, plus each loss part, temperature and weight when they are logged."""

    def on_log(self, args: Any, state: Any, control: Any, logs: Any = None, **kwargs: Any) -> None:
        """Write the log as always and put the balance beside the bar."""
        super().on_log(args, state, control, logs=logs, **kwargs)
        if state.is_world_process_zero and self.training_bar is not None and logs:
            shown = {key: f"{value:.3g}" for key, value in logs.items() if key.startswith(SHOWN)}
            if shown:
                self.training_bar.set_postfix(shown)


def show_balance_in_progress(handler: CallbackHandler) -> None:
    """Replace the plain progress bar, where there is one."""
    handler.callbacks = [
        BalanceProgress() if type(callback) is ProgressCallback else callback for callback in handler.callbacks
    ]
