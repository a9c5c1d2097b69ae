"""A claim that is made of several attacks is not held by the one of them that chance favours."""

from dataclasses import replace

import pytest

from small_archives import archive, verdict_of  # isort: skip  # first, it makes claims importable
from claims import verdicts
from claims.verdicts import HOLDS, NOISE

from bmtard_hooks.reporting.presentation import attack_name


@pytest.mark.parametrize(("attacks", "expected"), [(["fgsm"], HOLDS), (["fgsm", "pgd_sat", "cw_inf"], NOISE)])
def test_attacks_are_counted_where_one_of_them_would_do(monkeypatch, attacks, expected):
    def found(archive, column, row, others):
        chance = 0.04 if column == "fgsm" else 0.7  # alone, the first is sure enough
        return [verdicts.Difference("mtard", 0.007, 0.003, 2, chance, 9)]

    monkeypatch.setattr(verdicts, "differences", found)
    made = archive({"bmtard": (0.5, 0.2), "mtard": (0.5, 0.2)})
    lines = verdicts.judge(replace(made, content={**made.content, "columns": attacks}))
    for attack in attacks:
        line = verdict_of(lines, f"above MTARD's under {attack_name(attack)}")
        assert line.verdict == (expected if attack == "fgsm" else NOISE) and "+0.70 ± 0.30" in line.numbers
