import re

import numpy as np
import pytest
from sample_report import CLASSES, sample_report, worst_case_report

from bmtard_hooks.reporting.accuracy_tables import attacks_table, breakdown_tables, headline_table, robustness_tables
from bmtard_hooks.reporting.presentation import accuracy, attack_name, pixels, plain_words, strongest
from bmtard_hooks.reporting.table import Cell, Column, Table, escape_markdown
from bmtard_hooks.reporting.tables import (
    checks_table,
    per_class_table,
    robustness_table,
    settings_table,
    to_markdown,
)


def cells(markdown, name):
    """Return the cells of the first line whose first cell is ``name``."""
    line = next(line for line in markdown.splitlines() if line.startswith(f"| {name} "))
    return [cell.strip() for cell in re.split(r"(?<!\\)\|", line)[1:-1]]


def texts(table):
    return [[cell.text if isinstance(cell, Cell) else cell for cell in row] for row in table.rows]


def test_numbers_are_those_of_the_report():
    report = sample_report()
    row = report.row("pgd_sat")
    markdown = robustness_table([report], ["pgd_sat"])
    assert cells(markdown, "Model") == ["Model", "Clean", "PGD-SAT Robust", "PGD-SAT W-Robust"]
    assert cells(markdown, report.model) == [
        report.model,
        f"{100 * row.clean:.2f} ± {100 * row.clean_error:.2f}",
        f"{100 * row.robust:.2f} ± {100 * row.robust_error:.2f}",
        f"{100 * row.w_robust:.2f} ± {100 * row.w_robust_error:.2f}",
    ]
    assert "n = 300 images of CIFAR-10 test" in markdown
    assert "W-Robust = 0.5 · clean + 0.5 · robust" in markdown


def test_attacks_stand_in_the_groups_and_order_of_the_paper():
    tables = robustness_tables([sample_report()])
    assert [table.title for table in tables] == ["White-box attacks", "Black-box attacks", "Other attacks"]
    groups = [list(dict.fromkeys(column.group for column in table.columns if column.group)) for table in tables]
    assert groups[0] == ["FGSM", "PGD-SAT", "PGD-TRADES", "CW∞", "AutoAttack"]
    assert groups[1] == ["Transfer PGD-TRADES", "Transfer CW∞", "Square", "RayS", "SPSA (n = 100)"]
    assert groups[2] == ["my_attack"]


def test_an_unknown_name_of_a_known_class_joins_its_group():
    report = sample_report(attacks=("fgsm", "rays"))
    report.columns = {"pgd_1000": ["fgsm"], "rays_10000": ["rays"]}
    assert [table.title for table in robustness_tables([report])] == ["White-box attacks", "Black-box attacks"]


def test_an_attack_with_other_settings_joins_the_usual_ones_group():
    report = sample_report(attacks=("fgsm", "spsa"))
    report.columns = {"autoattack:images=100": ["spsa"], "fgsm:eps=4/255": ["fgsm"]}
    (table,) = robustness_tables([report])
    assert table.title == "White-box attacks"
    heads = list(dict.fromkeys(column.group for column in table.columns if column.group))
    assert heads == ["FGSM (eps=4/255)", "AutoAttack on 100 images"]  # the number of images once


def test_best_of_several_models_is_bold_and_a_missing_column_is_a_dash():
    first, second = sample_report("A"), sample_report("B", seed=1, attacks=("fgsm",))
    markdown = robustness_table([first, second], ["fgsm", "cw_inf"])
    best = max((first, second), key=lambda report: report.row("fgsm").robust)
    for report in (first, second):
        assert cells(markdown, report.model)[2].startswith("**") == (report is best)
    assert cells(markdown, "B")[4:] == ["—", "—"]
    assert not cells(markdown, "A")[4].startswith("**")  # alone in its column
    assert "**" not in robustness_table([first])


def test_a_model_with_failed_checks_is_marked_everywhere_and_never_best():
    good = sample_report("A", seed=1)
    failed = sample_report("B", failed=True)
    for outcome in failed.outcomes.values():
        outcome.broken[:] = False
    for markdown in (robustness_table([good, failed]), headline_table([good, failed]).markdown()):
        assert cells(markdown, "⚠ B")
        assert f"- ⚠ B: {failed.verdict}" in markdown
    assert "**" not in "".join(cells(robustness_table([good, failed], ["fgsm"]), "⚠ B")[2:])
    tables = [attacks_table(failed), *breakdown_tables(failed), checks_table(failed)]
    tables += [per_class_table(failed), settings_table(failed)]
    assert all(table.title.startswith("⚠ B") for table in tables)
    document = to_markdown([failed])
    assert document.startswith("# Robustness of ⚠ B on CIFAR-10 test\n\n**⚠ B**: FAILED the checks")


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        (lambda report: report.labels.__setitem__(0, 9 - report.labels[0]), "Do not compare these models: the labels"),
        (
            lambda report: report.outcomes["fgsm"].settings.update(eps=0.031),
            r"Do not compare, the settings differ: .*eps",
        ),
    ],
)
def test_what_cannot_be_compared_is_said_and_nothing_is_bold(change, reason):
    reports = [sample_report("A", attacks=("fgsm",)), sample_report("B", attacks=("fgsm",), seed=1)]
    change(reports[1])
    markdown = robustness_table(reports)
    assert re.search(reason, markdown)
    assert not cells(markdown, "A")[2].startswith("**") and not cells(markdown, "B")[2].startswith("**")


def test_a_column_on_fewer_images_tells_how_many():
    report = sample_report("A", attacks=("fgsm", "spsa"))
    markdown = robustness_table([report])
    assert "SPSA (n = 100) Robust" in markdown
    clean = report.row("spsa").clean
    assert f"SPSA, A: only the first 100 of 300 images; clean accuracy on these {100 * clean:.2f}" in markdown
    other = sample_report("B", attacks=("fgsm", "spsa"), seed=1)
    other.outcomes["spsa"].settings["images"] = 200
    both = robustness_table([report, other], ["spsa"])
    assert cells(both, "A")[2].endswith(r"\[n = 100\]") and cells(both, "B")[2].endswith(r"\[n = 200\]")


def test_columns_nobody_measured_and_empty_lists_are_refused():
    with pytest.raises(ValueError, match="no report has a column 'pgd': choose from fgsm"):
        robustness_table([sample_report(attacks=("fgsm",))], ["pgd"])
    for write in (robustness_table, to_markdown, headline_table):
        with pytest.raises(ValueError, match="at least one"):
            write([])
        with pytest.raises(TypeError, match=r"pass \[report\]"):
            write(sample_report(count=3))


def test_near_zero_an_interval_replaces_the_error():
    assert accuracy(0.0, 0.0, 100) == "0.00 (0.00–3.70)"
    assert accuracy(0.5, 0.05, 100) == "50.00 ± 5.00"
    report = sample_report(attacks=("fgsm",))
    report.outcomes["fgsm"].broken[:] = True
    assert "a 95 % interval stands in brackets" in robustness_table([report])


def test_worst_case_has_one_column_and_a_table_of_what_each_attack_broke():
    report = worst_case_report()
    assert [table.title for table in robustness_tables([report])] == ["Worst case of the attacks"]
    (table,) = breakdown_tables(report)
    rows = texts(table)
    assert [row[0] for row in rows] == ["clean", "FGSM", "PGD-SAT", "CW∞"]
    attacked, broken, first, left = (int(value) for value in rows[2][1:5])
    assert attacked == int(rows[1][4]) and broken == first and left == attacked - broken
    assert int(rows[-1][4]) == report.robust("worst_case").sum()
    assert "Worst case" in to_markdown([report])


def test_strongest_column_is_the_lowest_among_those_on_the_most_images():
    report = sample_report(attacks=("fgsm", "cw_inf", "spsa"))
    report.outcomes["spsa"].broken[:] = True
    assert strongest(report).column == "cw_inf"
    assert strongest(sample_report(columns={})) is None
    equal = sample_report(attacks=("fgsm",), columns={"fgsm": ["fgsm"], "worst_case": ["fgsm"]})
    assert strongest(equal).column == "worst_case"


def test_checks_come_failures_first_with_words():
    rows = texts(checks_table(sample_report(failed=True)))
    assert [row[:2] for row in rows] == [["A3", "FAILED"], ["P2", "passed"], ["A7", "passed"], ["A12", "not run"]]
    assert rows[0][3] == "99 % of images have gradient 0"


def test_classes_without_images_are_left_out():
    report = sample_report(num_classes=12, label_names=None)
    rows = texts(per_class_table(report))
    assert [row[0] for row in rows] == [str(index) for index in range(10)]
    assert sum(int(row[3]) for row in rows) == 300


def test_settings_show_radius_steps_passes_and_queries():
    report = sample_report()
    rows = {row[0]: row for row in texts(settings_table(report))}
    assert rows["PGD-SAT"][1:3] == ["0.031373 (8/255)", "L∞"]
    assert "step_size 0.007843 (2/255)" in rows["PGD-SAT"][3]
    assert "surrogate WRN-34-10, attack PGD (step_size 0.003000 (0.765/255))" in rows["Transfer PGD-TRADES"][3]
    assert rows["PGD-SAT"][5] == "41.0" and rows["PGD-SAT"][7] == "—"
    rays = report.outcomes["rays"]
    assert rows["RayS"][7] == f"{np.mean(rays.queries[rays.attacked]):.1f}"
    assert settings_table(report).notes == ["APGD-T: 6 target classes instead of 9"]


def test_document_holds_warnings_command_extras_and_environment():
    report = sample_report(warnings=["labels | were guessed"])
    extra = {"Pairs": "Same **images**.", "Runs": Table("Three runs", [Column("Run", numeric=False)], [["one"]])}
    document = to_markdown([report], extra)
    assert r"- Warning: labels \| were guessed" in document
    assert "```\nbmtard evaluate --model resnet18.pt --attacks paper\n```" in document
    assert "## Pairs\n\nSame **images**." in document and "### Three runs" in document
    assert re.search(r"\| versions: torch +\| 2\.9\.1", document)
    assert re.search(r"\| fingerprint of the images +\| 0f1e2d3c4b5a6978", document)
    assert re.search(r"\| folded_batch_norm +\| —", document)
    assert "| attacks: " not in document


def test_names_cannot_become_markup():
    name = "a|b*c*_d_ <script> `e` [f](g) $h$\nnew"
    document = to_markdown([sample_report(name, attacks=("fgsm",), label_names=[name] * 10)])
    assert "<script>" not in document and "\nnew" not in document
    for line in (line for line in document.splitlines() if line.startswith("|")):
        assert line.count("|") - line.count(r"\|") == line.replace(r"\|", "").count("|")
    widths = [
        len(re.findall(r"(?<!\\)\|", line)) for line in robustness_table([sample_report(name)]).splitlines()[2:5]
    ]
    assert len(set(widths)) == 1
    assert escape_markdown("snake_case_name") == "snake_case_name"


def test_a_row_of_the_wrong_length_is_refused():
    with pytest.raises(ValueError, match="a row has 2 cells, expected 1"):
        Table("numbers", [Column("one")], [["1", "2"]])


def test_names_and_lengths_are_written_as_people_know_them():
    assert [attack_name(name) for name in ("cw_inf", "mine", "mine:images=5")] == ["CW∞", "mine", "mine:images=5"]
    assert attack_name("autoattack:images=500") == "AutoAttack on 500 images"
    assert attack_name("pgd_trades:eps=4/255,steps=50,images=20") == "PGD-TRADES (eps=4/255, steps=50) on 20 images"
    assert attack_name("autoattack:images=500/apgd_ce") == "AutoAttack on 500 images, APGD-CE"
    assert pixels(0.031) == "0.031000 (7.905/255)"


def test_counts_are_said_in_plain_words():
    report = sample_report(attacks=("fgsm", "pgd_sat"), count=300)
    report.outcomes["pgd_sat"].broken[:] = report.correct  # everything falls
    clean = int(report.correct.sum())
    assert plain_words(report) == (
        f"Of 300 images, {clean} are classified correctly as they are. Under the strongest attack that was run on them (PGD-SAT, "
        "which may change every colour value by up to 3.1 % of its range), none still is."
    )
    report.predictions[report.labels == 4] = 5
    assert plain_words(report).endswith(f"Never recognised, not even unattacked: {CLASSES[4]}.")
    text = plain_words(sample_report(failed=True))
    assert "classified correctly" in text and "strongest" not in text
    assert plain_words(sample_report(attacks=(), columns={})) == ""
