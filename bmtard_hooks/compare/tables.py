"""``comparison.md``: the table in the form of the paper's, what may be concluded from it, and how it came about."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

from bmtard_hooks.compare.results import Results, collect, paths, to_json
from bmtard_hooks.evaluation.environment import PACKAGES
from bmtard_hooks.reporting.files import write_file
from bmtard_hooks.reporting.presentation import (
    DASH,
    accuracy,
    attack_heading,
    attack_name,
    ball_name,
    percent,
    with_error,
)
from bmtard_hooks.reporting.table import Cell, Column, Table

Content = Mapping[str, Any]
CHANCE = 0.05
"""A difference whose two-sided p-value is larger can be chance."""


def write_comparison(plan: Any) -> Results:
    """Write ``comparison.json`` and ``comparison.md`` from what is finished, and return it.

    Args:
        plan: the comparison.
    """
    results = collect(plan)
    places = paths(plan)
    write_file(places["json"], to_json(results))
    write_file(places["markdown"], to_markdown(results.content))
    return results


def to_markdown(content: Content) -> str:
    """Write the whole document.

    Args:
        content: of ``comparison.json``.
    """
    tables = [accuracy_table(content), *per_seed_tables(content), *paired_tables(content), training_table(content)]
    parts = [f"# {len(content['rows'])} models on {content['test']['name']}"]
    parts += [tables[0].markdown(0), *sentences(content)]
    parts += [table.markdown(2) for table in tables[1:]]
    parts += ["## Setting", setting(content)]
    return "\n\n".join(parts) + "\n"


def accuracy_table(content: Content) -> Table:
    """Make the table: a row per method, clean accuracy, and robust accuracy and W-Robust under every attack.

    Args:
        content: of ``comparison.json``.
    """
    headings = [Column("Method", numeric=False), Column("Clean")]
    headings += _attack_headings(content)
    body = [_accuracy_row(row, content) for row in content["rows"]]
    for position, column in enumerate(content["columns"]):
        values = [row["mean"][column]["w_robust"] if row["mean"] else None for row in content["rows"]]
        students = [value for row, value in zip(content["rows"], values, strict=True) if "method" in row]
        best = max((percent(value) for value in students if value is not None), key=float, default="")
        for line, row, value in zip(body, content["rows"], values, strict=True):
            if value is not None and percent(value) == best and "method" in row:
                line[3 + 2 * position] = Cell(str(line[3 + 2 * position]), strong=True)
    return Table("Accuracies", headings, body, _caption(content), _run_notes(content))


def _attack_headings(content: Content) -> list[Column]:
    """Name each attack twice, with the number of images where it saw a part of them only."""
    measured = [run for row in content["rows"] for run in row["runs"] if run["state"] == "finished"]
    headings = []
    for column in content["columns"]:
        title = attack_heading(
            column, {run["columns"][column]["images"] for run in measured}, {content["test"]["images"]}
        )
        headings += [Column("Robust", title), Column("W-Robust", title)]
    return headings


def _accuracy_row(row: Content, content: Content) -> list[Cell | str]:
    """Write the means of a row."""
    finished = [run for run in row["runs"] if run["state"] == "finished"]
    cells: list[Cell | str] = [_label(row, finished)]
    if not finished:
        return [*cells, *[DASH] * (1 + 2 * len(content["columns"]))]
    clean, images = row["mean_clean"], finished[0]["columns"]
    cells.append(accuracy(clean["clean"], clean["clean_error"], content["test"]["images"]))
    for column in content["columns"]:
        mean = row["mean"][column]
        cells.append(accuracy(mean["robust"], mean["robust_error"], images[column]["images"]))
        cells.append(with_error(mean["w_robust"], mean["w_robust_error"]))
    return cells


def _run_row(run: Content, content: Content) -> list[Cell | str]:
    """Write the numbers of one run, whose errors are over images alone."""
    if run["state"] != "finished":
        return [f"{run['name']} ({run['state']})", *[DASH] * (1 + 2 * len(content["columns"]))]
    cells: list[Cell | str] = [run["name"]]
    cells.append(accuracy(run["clean"], run["clean_error"], content["test"]["images"]))
    for column in content["columns"]:
        found = run["columns"][column]
        cells.append(accuracy(found["robust"], found["robust_error"], found["images"]))
        cells.append(with_error(found["w_robust"], found["w_robust_error"]))
    return cells


def _label(row: Content, finished: Sequence[Content]) -> str:
    runs = row["runs"]
    if len(finished) == len(runs):
        return row["label"]
    if len(runs) == 1:
        return f"{row['label']} ({runs[0]['state']})"
    return f"{row['label']} ({len(finished)} of {len(runs)} seeds)"


def _caption(content: Content) -> str:
    weight, several = content["clean_weight"], any(_finished(row) > 1 for row in content["rows"])
    text = f"Percent on n = {content['test']['images']} images of {content['test']['name']}; W-Robust = {weight:g} · clean + "
    text += f"{1 - weight:g} · robust. Bold: the highest W-Robust of the methods. "
    if several:
        return text + (
            "± is one standard error (a 95 % interval in brackets near 0 and 100), from the choice of the test images and from "
            "training again, as the rows with several seeds together show it. All rows see the same images, so two rows differ "
            "more surely than their ± suggest: see the paired differences."
        )
    return text + (
        "± is one standard error over test images (a 95 % interval in brackets near 0 and 100). There is one run per row, so "
        "how much a result changes when it is trained again with another seed is not known."
    )


def _finished(row: Content) -> int:
    return sum(run["state"] == "finished" for run in row["runs"])


def _run_notes(content: Content) -> list[str]:
    runs = [run for row in content["rows"] for run in row["runs"]]
    notes = [f"{run['name']} {run['state']}: {run['reason']}" for run in runs if run.get("reason")]
    waiting = [
        f"{run['name']} ({run['state']})" for run in runs if run["state"] in ("not started", "running", "interrupted")
    ]
    return notes + ([f"Not finished yet: {', '.join(waiting)}."] if waiting else [])


def sentences(content: Content) -> list[str]:
    """Say for every attack which method is best, and how surely."""
    said = []
    for column, best in content["best"].items():
        if best is None:
            continue
        ahead = f"{100 * best['w_robust']:.2f} ± {100 * best['w_robust_error']:.2f} points"
        surely = f"p = {best['p']:.2g}" + ("" if best["p"] <= CHANCE else ", which can be chance")
        among = f" (seeds {', '.join(map(str, best['seeds']))})" if len(best["seeds"]) > 1 else ""
        said.append(
            f"Under {attack_name(column)}, {best['row']} has the highest W-Robust of the methods, {ahead} above "
            f"{best['second']}, the second{among}: {surely}."
        )
    return said


def per_seed_tables(content: Content) -> list[Table]:
    """Make the table of every run, if there are several seeds; none otherwise."""
    if len(content["seeds"]) < 2:
        return []
    headings = [Column("Run", numeric=False), Column("Clean")]
    headings += _attack_headings(content)
    body = [_run_row(run, content) for row in content["rows"] for run in row["runs"]]
    return [Table("Every run", headings, body, "Percent ± one standard error over test images.")]


def paired_tables(content: Content) -> list[Table]:
    """Make a table per attack: every row minus the first on the same images."""
    tables = []
    for column in content["columns"]:
        entries = [entry for entry in content["against_first"] if entry["column"] == column]
        if entries:
            tables.append(_paired_table(content, column, entries))
    return tables


def _paired_table(content: Content, column: str, entries: Sequence[Content]) -> Table:
    headings = [Column("Method", numeric=False), *map(Column, ("Clean", "Robust", "W-Robust", "p of W-Robust"))]
    headings += [Column("Only this : only first robust"), Column("p of Robust")]
    body: list[list[Cell | str]] = []
    for entry in entries:
        differences = [
            f"{100 * entry[name]:+.2f} ± {100 * entry[f'{name}_error']:.2f}"
            for name in ("clean", "robust", "w_robust")
        ]
        tests = {test["seed"]: test for test in entry["tests"]}
        shown = [tests.get(seed) for seed in content["seeds"]] if None not in tests else [tests[None]]
        counts = "; ".join(f"{test['only_row']} : {test['only_other']}" if test else DASH for test in shown)
        p_values = "; ".join(f"{test['p_holm']:.2g}" if test else DASH for test in shown)
        body.append([entry["row"], *differences, f"{entry['p_holm']:.2g}", counts, p_values])
    several = any(row["mean"] and row["mean"][column]["seeds"] > 1 for row in content["rows"])
    caption = f"Difference to {content['compared_with']} on the same images, in points ± its standard error"
    caption += (
        " (paired over images, and over training again, as the seeds of all rows together show it)"
        if several
        else " (paired over images; of these trained models)"
    )
    caption += ". The p of W-Robust is Student's t, that of robust accuracy McNemar's exact test"
    caption += f", one per seed ({'; '.join(map(str, content['seeds']))})" if len(content["seeds"]) > 1 else ""
    caption += "; both by Holm's rule for the number of rows."
    return Table(f"{attack_name(column)}: each row minus {content['compared_with']}", headings, body, caption)


def training_table(content: Content) -> Table:
    """Make the table of what each run cost."""
    names = ("Epochs", "Images", "Steps", "Chosen step", "Held-out W-Robust", "Seconds", "ms per step")
    headings = [Column("Run", numeric=False), *map(Column, names)]
    body: list[list[Cell | str]] = []
    for run in (run for row in content["rows"] if "method" in row for run in row["runs"]):
        facts = run.get("training") or {}
        if "steps" not in facts:
            body.append([f"{run['name']} ({run['state']})", *[DASH] * len(names)])
            continue
        held_out = facts["validation"].get("eval_w_robust", math.nan)
        per_step = f"{1000 * facts['seconds'] / facts['steps']:.0f}" if facts["steps"] else DASH
        body.append(
            [
                run["name"],
                f"{facts['epochs']:g}",
                str(facts["images"]),
                str(facts["steps"]),
                str(facts["chosen_step"]),
                percent(held_out),
                f"{facts['seconds']:.0f}",
                per_step,
            ]
        )
    caption = "Wall time of the training with its measurements on held-out images, without what a kill lost."
    return Table("Training", headings, body, caption)


def setting(content: Content) -> str:
    """Write the budget that all rows share, in a few lines."""
    options = content["options"]
    devices = dict.fromkeys(
        f"{run['training']['device']}, {run['training']['threads']} threads"
        for row in content["rows"]
        for run in row["runs"]
        if run.get("training", {}).get("device")
    )
    schedule = options["lr_scheduler_type"]
    drops = options["lr_milestones"]
    if schedule == "constant":
        schedule = f"drops after epochs {drops}" if drops else "**each method's own drops of the learning rate**"
    length = f"{options['max_steps']} steps" if options["max_steps"] > 0 else f"{options['num_train_epochs']:g} epochs"
    balls = {attack_name(name): ball_name((spec["norm"], spec["eps"])) for name, spec in content["attacks"].items()}
    versions = ", ".join(f"{name} {content['packages'][name]}" for name in PACKAGES if name in content["packages"])
    lines = [
        f"Every row: {content['student']}, {length} of {content['train_images']} images, batch "
        f"{options['per_device_train_batch_size']}, {options['optim']}, learning rate {options['learning_rate']:g}, "
        f"{schedule}, weight decay {options['weight_decay']:g}, PGD-{options['steps']} in training.",
        f"Checkpoint: {content['choose']}"
        + (
            f", by {options['metric_for_best_model']} on {content['validation_images']} held-out training images."
            if content["choose"] == "best"
            else "."
        ),
        *(f"{row['label']}: {row['method']} with {_options(row)}." for row in content["rows"] if row["options"]),
        *(f"The {role} teacher: {name}." for role, name in content["teachers"].items()),
        "Attacks: "
        + "; ".join(f"{name} ({ball})" for name, ball in balls.items())
        + ". PGD alone overstates robustness: "
        "add `--attacks pgd_trades autoattack` before calling a model robust.",
        f"bmtard_hooks {content['bmtard_hooks']}, commit {content['commit'] or 'unknown'}; {versions}.",
        *([f"Trained on {'; '.join(devices)}."] if devices else []),
        f"Command: `compare.py {content['command']}`",
    ]
    return "\n".join(f"- {line}" for line in lines)


def _options(row: Content) -> str:
    return ", ".join(f"{name}={value}" for name, value in row["options"].items())
