"""What the tables of a comparison say of images, seeds and chance."""

import numpy as np
import pytest

from bmtard_hooks.compare.numbers import against_first, best_and_second, mean_over_seeds, single
from bmtard_hooks.compare.tables import accuracy_table, paired_tables, sentences
from bmtard_hooks.evaluation.report import AttackOutcome, RobustnessReport

IMAGES = 400


def report(clean, robust, seed, scope=IMAGES):
    """A model that is right on so many images, and stays right on so many of the first ``scope`` under attack."""
    order = np.random.default_rng(seed).permutation(IMAGES)
    right, left = order < clean, order < robust
    attacked = right & (np.arange(IMAGES) < scope)
    outcome = AttackOutcome({"norm": "linf", "eps": 0.03, "images": scope}, attacked, attacked & ~left)
    labels = np.zeros(IMAGES, dtype=int)
    return RobustnessReport("m", "d", labels, np.where(right, 0, 1), 2, None, {"spsa": outcome}, {"spsa": ["spsa"]})


def content_of(rows, seeds=(0, 1)):
    """As much of ``comparison.json`` as the tables need."""
    entries = []
    for label, reports in rows.items():
        runs = [
            {"name": f"{label}/seed{seed}", "seed": seed, "state": "finished", **single(one)}
            if (one := reports.get(seed)) is not None
            else {"name": f"{label}/seed{seed}", "seed": seed, "state": "not started"}
            for seed in seeds
        ]
        mean = {"spsa": mean_over_seeds(reports, "spsa")} if reports else None
        entries.append({"label": label, "method": label, "options": {}, "runs": runs, "mean": mean})
    first, found = next(iter(rows)), best_and_second(rows, "spsa")
    best = None if found is None else {"row": found[0], "second": found[1], **found[2]}
    return {
        "rows": entries,
        "columns": ["spsa"],
        "seeds": list(seeds),
        "compared_with": first,
        "clean_weight": 0.5,
        "test": {"images": IMAGES, "name": "d"},
        "against_first": against_first(rows, first, "spsa"),
        "best": {"spsa": best},
    }


def test_attack_on_a_part_of_the_images_says_on_how_many():
    content = content_of({"a": {seed: report(200, 100, seed, scope=100) for seed in (0, 1)}})
    assert [column.group for column in accuracy_table(content).columns[2:]] == ["SPSA (n = 100)"] * 2
    whole = content_of({"a": {0: report(200, 100, 0)}})
    assert [column.group for column in accuracy_table(whole).columns[2:]] == ["SPSA"] * 2


def test_error_of_clean_accuracy_is_over_all_images_whatever_the_attacks_saw():
    """Both seeds are right on half of all images, though not on half of the first hundred."""
    content = content_of({"a": {seed: report(200, 100, seed, scope=100) for seed in (0, 1)}})
    assert content["rows"][0]["mean"]["spsa"]["clean_error_seeds"] > 0
    assert accuracy_table(content).rows[0][1] == "50.00 ± 0.00"


@pytest.mark.parametrize("robust, certain", [(190, True), (103, False)])
def test_sentence_says_what_can_be_chance(robust, certain):
    rows = {"a": {seed: report(300, robust, seed) for seed in (0, 1)}}
    rows["b"] = {seed: report(300, 100, seed + 10) for seed in (0, 1)}
    (sentence,) = sentences(content_of(rows))
    assert "a has the highest W-Robust" in sentence and ("which can be chance" not in sentence) == certain


def test_seed_that_is_missing_has_a_dash_in_the_column_of_tests():
    rows = {"a": {seed: report(300, 150, seed) for seed in (0, 1)}, "b": {1: report(300, 100, 5)}}
    (table,) = paired_tables(content_of(rows))
    counts, p_values = table.rows[0][-2:]
    assert counts.startswith("—; ") and p_values.startswith("—; ")
