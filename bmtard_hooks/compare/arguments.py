"""Options of a comparison."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

from bmtard_hooks.arguments import option

DEFAULTS: dict[str, Any] = {
    "eval_strategy": "epoch",
    "metric_for_best_model": "w_robust",
    "save_total_limit": 2,
    "disable_tqdm": True,  # every evaluation is one line
    "overwrite_output_dir": True,  # runs are told apart by their own record
}
"""Options whose default differs from that of a single run: checkpoints to go on from, and a choice among them."""


@dataclass
class CompareArguments:
    """What is compared, and how it is measured."""

    methods: list[str] = field(
        default_factory=list,
        metadata={
            "help": "Rows of the table: METHOD, METHOD:option=value,option=value or LABEL=METHOD:option=value. Every row is "
            "compared with the first. Several values of one option are separated by spaces."
        },
    )
    seeds: list[int] = field(default_factory=lambda: [0], metadata={"help": "One run of every row per seed."})
    with_teachers: bool = option(False, "Measure the teachers too, as the first rows of the table.")
    choose: str = option("best", "Checkpoint to measure: best (on held-out training images) or last.")
    attacks: list[str] = field(
        default_factory=lambda: ["pgd_trades"], metadata={"help": "Attacks of the table, as of `bmtard evaluate`."}
    )
    checks: bool = option(False, "Run the checks against false robustness on every model.")
    processes: int | None = option(None, "Runs at the same time (None: one per GPU, one on a CPU).")
    retrain: bool = option(False, "Train runs again that were made with other options, instead of refusing.")
    only: list[str] | None = field(
        default=None, metadata={"help": "Do only these runs, written LABEL/seedN; for arrays of cluster jobs."}
    )

    def __post_init__(self) -> None:
        if self.choose not in ("best", "last"):
            raise ValueError(f"choose={self.choose!r} is unknown: pass best or last")
        if self.processes is not None and self.processes < 1:
            raise ValueError(f"processes={self.processes}: pass 1 or more, or leave it out")
        if len(set(self.seeds)) != len(self.seeds) or not self.seeds:
            raise ValueError(f"seeds={self.seeds}: pass at least one, each once")
