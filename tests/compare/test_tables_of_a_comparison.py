"""What the tables of a comparison say of images, seeds and chance."""

import numpy as np
import pytest

from bmtard_hooks.compare.numbers import (
    against_first,
    best_and_second,
    clean_over_seeds,
    mean_over_seeds,
    single,
    training_again,
)
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
    entries, again = [], training_again(rows, "spsa")
    for label, reports in rows.items():
        runs = [
            {"name": f"{label}/seed{seed}", "seed": seed, "state": "finished", **single(one)}
            if (one := reports.get(seed)) is not None
            else {"name": f"{label}/seed{seed}", "seed": seed, "state": "not started"}
            for seed in seeds
        ]
        mean = {"spsa": mean_over_seeds(reports, "spsa", again)} if reports else None
        clean = clean_over_seeds(rows).get(label)
        entries.append(
            {"label": label, "method": label, "options": {}, "runs": runs, "mean": mean, "mean_clean": clean}
        )
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
    row = {seed: report(200, 100, seed, scope=100) for seed in (0, 1)}
    content = content_of({"a": row})
    assert content["rows"][0]["mean"]["spsa"]["clean_error_seeds"] > 0
    right = (row[0].correct.astype(float) + row[1].correct) / 2
    assert accuracy_table(content).rows[0][1] == f"50.00 ± {100 * right.std() / 20:.2f}"


def test_errors_of_rows_with_one_seed_and_with_several_mean_the_same():
    rows = {"a": {seed: report(200 + 80 * seed, 100, seed) for seed in (0, 1)}, "b": {0: report(240, 100, 5)}}
    content = content_of(rows)
    a, b = accuracy_table(content).rows
    between = 0.2**2 / 2  # variance of the two accuracies of a, 50 and 70 %
    both = (rows["a"][0].correct.astype(float) + rows["a"][1].correct) / 2
    assert a[1] == f"60.00 ± {100 * (both.var() / 400 + between / 2) ** 0.5:.2f}"
    assert b[1] == f"60.00 ± {100 * (0.6 * 0.4 / 400 + between) ** 0.5:.2f}"
    assert "from training again" in accuracy_table(content).caption
    alone = content_of({"b": rows["b"]}, seeds=(0,))
    assert accuracy_table(alone).rows[0][1] == f"60.00 ± {100 * (0.6 * 0.4 / 400) ** 0.5:.2f}"
    assert "one run per row" in accuracy_table(alone).caption


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
