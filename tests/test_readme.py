"""What the README says in tables and paths; tests/docs runs its code."""

import re
from dataclasses import fields
from pathlib import Path

from bmtard_hooks import BMTARDConfig

README = (Path(__file__).parents[1] / "README.md").read_text()


def test_options_named_in_the_table_of_choices_exist():
    table = README[README.index("## Where paper and") : README.index("## Reliability")]
    named = set(re.findall(r"`(\w+)(?:=[^`]*)?`", table)) - {"ratio", "inner_mean", "inner_std", "eval_dataset"}
    assert len(named) > 12
    assert named <= {entry.name for entry in fields(BMTARDConfig)} | {"evaluate"}
