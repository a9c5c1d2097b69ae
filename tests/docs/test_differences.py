"""What the table of differences to paper and authors' code says of options; tests/docs runs the code of all pages."""

import re
from dataclasses import fields
from pathlib import Path

from bmtard_hooks import BMTARDConfig

DIFFERENCES = (Path(__file__).parents[2] / "docs" / "differences.md").read_text()


def test_options_named_in_the_table_of_choices_exist():
    named = set(re.findall(r"`(\w+)(?:=[^`]*)?`", DIFFERENCES)) - {"ratio", "inner_mean", "inner_std", "eval_dataset"}
    assert len(named) > 12
    assert named <= {entry.name for entry in fields(BMTARDConfig)} | {"evaluate"}
