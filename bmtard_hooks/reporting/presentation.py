"""What the tables, the figures and the page share: names of attacks, marks of models, and how numbers are written."""

from __future__ import annotations

import math
from collections.abc import Collection, Sequence

import numpy as np

from bmtard_hooks.attacks.choosing import usual_name
from bmtard_hooks.evaluation.report import WORST_CASE, RobustnessReport, Row
from bmtard_hooks.evaluation.statistics import per_class_accuracy, wilson_interval

WHITE_BOX, BLACK_BOX, OTHER = "White-box attacks", "Black-box attacks", "Other attacks"
GROUPS = (WORST_CASE, WHITE_BOX, BLACK_BOX, OTHER)

ATTACKS = {
    WORST_CASE: ("Worst case", WORST_CASE),
    "fgsm": ("FGSM", WHITE_BOX),
    "fgsm_rs": ("FGSM (random start)", WHITE_BOX),
    "pgd_sat": ("PGD-SAT", WHITE_BOX),
    "pgd_trades": ("PGD-TRADES", WHITE_BOX),
    "cw_inf": ("CW∞", WHITE_BOX),
    "autoattack": ("AutoAttack", WHITE_BOX),
    "apgd_ce": ("APGD-CE", WHITE_BOX),
    "apgd_dlr": ("APGD-DLR", WHITE_BOX),
    "apgd_t": ("APGD-T", WHITE_BOX),
    "fab": ("FAB", WHITE_BOX),
    "fab_t": ("FAB-T", WHITE_BOX),
    "transfer_pgd": ("Transfer PGD-TRADES", BLACK_BOX),
    "transfer_cw": ("Transfer CW∞", BLACK_BOX),
    "square": ("Square", BLACK_BOX),
    "square_literal": ("Square (literal schedule)", BLACK_BOX),
    "square_5000": ("Square-5000", BLACK_BOX),
    "rays": ("RayS", BLACK_BOX),
    "spsa": ("SPSA", BLACK_BOX),
    "nes": ("NES", BLACK_BOX),
}
"""Column or attack to how it is written and the group it belongs to, in the order of the paper's tables."""

GROUP_OF_CLASS = {
    "PGD": WHITE_BOX,
    "APGD": WHITE_BOX,
    "FAB": WHITE_BOX,
    "Transfer": BLACK_BOX,
    "Square": BLACK_BOX,
    "RayS": BLACK_BOX,
    "SPSA": BLACK_BOX,
}
"""Class of an attack with an unknown name to its group."""

IMAGES = "images="
"""How a column's name begins the setting that limits it to the first images."""

DASH = "—"
FEWEST_FOR_ERROR = 10
"""With fewer hits or misses than this, a standard error says too little and an interval is written."""

MOST_NAMES = 10
"""More classes than these are not named in a sentence."""

HOW_TO_READ = (
    "Clean is the share of images classified correctly as they are; robust is the share that is still correct after "
    "the attack. An image that is wrong when clean counts as not robust. W-Robust is a weighted mean of the two (one "
    "half each unless said otherwise): read it together with both, because a model without any robustness can reach "
    "almost 50 % by clean accuracy alone. A robust accuracy is only as good as the attack behind it. FGSM and attacks "
    "with few queries are weak: a high number there is no evidence of robustness. Trust the strongest attack "
    "(AutoAttack, or the worst case of several), and only if the checks against false robustness passed."
)


def attack_name(name: str) -> str:
    """Write an attack or column as people know it, for example ``AutoAttack on 500 images``; unknown names stay as they are."""
    whole, _, part = name.rpartition("/")
    if whole and part in ATTACKS:
        return f"{attack_name(whole)}, {ATTACKS[part][0]}"
    base, _, settings = name.partition(":")
    if base not in ATTACKS:
        return name
    changed = [setting for setting in settings.split(",") if setting and not setting.startswith(IMAGES)]
    images = [setting.removeprefix(IMAGES) for setting in settings.split(",") if setting.startswith(IMAGES)]
    return (
        ATTACKS[base][0] + (f" ({', '.join(changed)})" if changed else "") + "".join(f" on {n} images" for n in images)
    )


def attack_heading(name: str, sizes: Collection[int], whole: Collection[int]) -> str:
    """Write an attack for the head of a column, with the number of images if it saw a part of them and does not say so.

    Args:
        name: of the column.
        sizes: numbers of images that the column speaks of.
        whole: numbers of images that the table speaks of.
    """
    title = attack_name(name)
    told = len(sizes) != 1 or set(sizes) == set(whole) or IMAGES in name
    return title if told else f"{title} (n = {min(sizes)})"


def attack_group(report: RobustnessReport, column: str) -> str:
    """Tell which group of the paper's tables a column belongs to, by its name or else by its attack's class."""
    if usual_name(column) in ATTACKS:
        return ATTACKS[usual_name(column)][1]
    groups = {
        GROUP_OF_CLASS.get(str(report.outcomes[part].settings.get("class")), OTHER) for part in report.columns[column]
    }
    return groups.pop() if len(groups) == 1 else OTHER


def column_order(name: str) -> int:
    """Give a sort key that puts columns in the order of the paper's tables, unknown ones last."""
    usual = usual_name(name)
    return list(ATTACKS).index(usual) if usual in ATTACKS else len(ATTACKS)


def model_name(report: RobustnessReport) -> str:
    """Write the model's name, with a warning sign if its robust accuracies are not to be believed."""
    return f"⚠ {report.model}" if report.failed_checks else report.model


def strongest(report: RobustnessReport) -> Row | None:
    """Sum up the column with the lowest robust accuracy; None without columns.

    It is chosen among the columns with the norm and radius that most of them have, and of these the ones on the most
    images. The worst case comes before a single attack that is as strong.
    """
    balls = [report.ball(column) for column in report.columns]
    rows = [row for row, ball in zip(report.rows(), balls, strict=True) if ball == max(balls, key=balls.count)]
    most = max((row.images for row in rows), default=0)
    candidates = [row for row in rows if row.images == most]
    return min(candidates, key=lambda row: (row.robust, row.column != WORST_CASE), default=None)


def plain_words(report: RobustnessReport) -> str:
    """Say in counts what was found, for a reader who knows no attack; no robust count if a check says not to believe it."""
    row = strongest(report)
    if row is None:
        return ""
    clean, robust = round(row.clean * row.images), round(row.robust * row.images)
    told = f"Of {row.images:,} images, {clean:,} {'is' if clean == 1 else 'are'} classified correctly as they are."
    if clean and not report.failed_checks:
        norm, eps = report.ball(row.column) or (None, 0.0)
        allowed = (
            f", which may change every colour value by up to {100 * eps:.1f} % of its range" if norm == "linf" else ""
        )
        left = f"{robust:,} still {'is' if robust == 1 else 'are'}" if robust else "none still is"
        told += f" Under the strongest attack that was run on them ({attack_name(row.column)}{allowed}), {left}."
    by_class = per_class_accuracy(report.labels, report.correct, report.num_classes)
    never = [class_name(report, int(index)) for index in np.flatnonzero(by_class == 0)]
    if never and clean:
        told += f" Never recognised, not even unattacked: {', '.join(never[:MOST_NAMES])}{' …' * (len(never) > MOST_NAMES)}."
    return told


def ball_name(ball: tuple[str, float] | None) -> str:
    """Write a norm and a radius, for example ``L∞ 8/255``; L2 radii as they are."""
    if ball is None:
        return "several radii"
    norm, eps = ball
    return f"L∞ {eps * 255:.4g}/255" if norm == "linf" else f"L2 {eps:.4g}" if norm == "l2" else f"{norm} {eps:.4g}"


def percent(share: float) -> str:
    """Write a share in percent with two decimals."""
    return DASH if math.isnan(share) else f"{100 * share:.2f}"


def with_error(share: float, error: float) -> str:
    """Write a share in percent with its standard error."""
    return f"{percent(share)} ± {percent(error)}"


def accuracy(share: float, error: float, images: int) -> str:
    """Write an accuracy with its standard error, or with Wilson's 95 % interval where it is close to 0 or 1.

    Args:
        share: in [0, 1].
        error: standard error of ``share``.
        images: number of images.
    """
    hits = round(share * images)
    if min(hits, images - hits) >= FEWEST_FOR_ERROR:
        return with_error(share, error)
    low, high = wilson_interval(hits, images)
    return f"{percent(share)} ({percent(low)}–{percent(high)})"


def pixels(length: float) -> str:
    """Write a length in pixel scale with six decimals and in units of 1/255."""
    return f"{length:.6f} ({length * 255:.4g}/255)"


def class_name(report: RobustnessReport, index: int) -> str:
    """Write a class by its name if known, else by its number."""
    names = report.label_names
    return names[index] if names is not None and 0 <= index < len(names) else str(index)


def require_reports(reports: Sequence[RobustnessReport]) -> None:
    """Raise ``ValueError`` for an empty list, and ``TypeError`` for a single report passed without a list."""
    if isinstance(reports, RobustnessReport):
        raise TypeError("received one report, expected a list of reports: pass [report]")
    if not reports:
        raise ValueError("received no reports: pass a list with at least one RobustnessReport")
