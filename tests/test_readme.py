import re
from pathlib import Path

import pytest

README = (Path(__file__).parents[1] / "README.md").read_text()


@pytest.mark.parametrize("block", re.findall(r"```python\n(.*?)```", README, re.S))
def test_python_blocks_run(block):
    scope = {}
    exec(block, scope)
    if "logits" in block:
        assert scope["logits"].shape == (1, 10)
    if "evaluate_robustness" in block:
        assert list(scope["report"].columns) == ["pgd_sat", "DIFGSM", "worst_case"]


def test_options_named_in_the_table_of_choices_exist():
    from dataclasses import fields

    from bmtard_hooks import BMTARDConfig

    table = README[README.index("## Where paper and") : README.index("## Reliability")]
    named = set(re.findall(r"`(\w+)(?:=[^`]*)?`", table)) - {"ratio", "inner_mean", "inner_std", "eval_dataset"}
    assert len(named) > 12
    assert named <= {entry.name for entry in fields(BMTARDConfig)} | {"evaluate"}


def test_files_and_make_targets_named_exist():
    root = Path(__file__).parents[1]
    for path in set(re.findall(r"(?:recipes|docs|bmtard_hooks)/[\w./]+\w", README)):
        assert (root / path).exists(), path
    for target in re.findall(r"^make (\w+)", README, re.M):
        assert re.search(rf"^{target}:", (root / "Makefile").read_text(), re.M)
