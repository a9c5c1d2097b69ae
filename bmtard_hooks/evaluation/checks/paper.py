"""The four signs of false robustness that the B-MTARD paper looks for, read off the columns of a report."""

from __future__ import annotations

import re

import numpy as np

from bmtard_hooks.attacks.choosing import usual_name
from bmtard_hooks.evaluation.checks.context import (
    Context,
    Finding,
    NotRun,
    aligned,
    listed,
    not_above,
    percent,
    strays_allowed,
    tolerance,
)
from bmtard_hooks.evaluation.report import WORST_CASE

ONE_STEP = ("fgsm", "fgsm_rs")
ITERATED = ("pgd_sat", "pgd_trades", "cw_inf", "apgd_ce", "apgd_dlr", "apgd_t", "fab_t", "autoattack")
WHITE_BOX = ITERATED + ONE_STEP
BLACK_BOX = ("transfer", "square", "rays")
"""How the names of black-box columns begin."""

GRADIENT_ESTIMATION = ("spsa", "nes")
CW_GAP = 0.05


def survives_autoattack(context: Context) -> Finding:
    """Check that AutoAttack is the strongest attack and that its gradient attacks did the work.

    An error: it stopped early, another attack breaks more, or Square broke what the gradient attacks could not. A
    warning: the model is no better than guessing, or CW is more than 5 points off AutoAttack, by more than chance; then AutoAttack's own number
    can still be believed.

    Reference:
        Croce and Hein 2020, Reliable evaluation of adversarial robustness; the flags of RobustBench.
    """
    columns = _by_attack(context)
    _require(columns, "autoattack")
    column = columns["autoattack"]
    final = context.report.robust(column)
    errors = _unfinished(context, column, final)
    others = [name for name in context.columns() if name not in (column, WORST_CASE)]
    for name in others:
        robust = context.report.robust(name)
        if not not_above(final, robust):
            errors.append(f"{name} leaves only {percent(robust)}")
    by_square = _only_by_square(context, column)
    if by_square is not None and by_square.sum() > strays_allowed(len(final)):
        errors.append(f"its Square attack broke {percent(by_square)} that its gradient attacks had left")
    warnings = [] if final.mean() > context.chance else [f"that is no better than guessing, {percent(context.chance)}"]
    if "cw_inf" in columns:
        first, second = aligned(context.report.robust(columns["cw_inf"]), final)
        if abs(float(first.mean() - second.mean())) > CW_GAP + tolerance(first, second):
            warnings.append(f"CW leaves {percent(first)}, more than 5 points off")
    evidence = "; ".join([f"AutoAttack leaves {percent(final)} of {len(final)} images", *errors, *warnings])
    return Finding(not errors and not warnings, evidence, "error" if errors else "warning")


def iterations_help(context: Context) -> Finding:
    """Check that iterated attacks break at least what one step does, and AutoAttack at least what CW does.

    Reference:
        Athalye et al. 2018, Obfuscated Gradients Give a False Sense of Security.
    """
    columns = _by_attack(context)
    _require(columns, "fgsm", "pgd_sat", "cw_inf")
    robust = {name: context.report.robust(columns[name]) for name in WHITE_BOX if name in columns}
    pairs = [("pgd_sat", "fgsm"), ("cw_inf", "fgsm"), ("autoattack", "cw_inf")]
    pairs = [pair for pair in pairs if pair[0] in robust]
    wrong = [pair for pair in pairs if not not_above(robust[pair[0]], robust[pair[1]])]
    shown = [name for name in ("fgsm", "pgd_sat", "cw_inf", "autoattack") if name in robust]
    evidence = ", ".join(f"{name} leaves {percent(robust[name])} of {len(robust[name])} images" for name in shown)
    if wrong:
        evidence += "; " + ", ".join(f"{strong} is weaker than {weak}" for strong, weak in wrong)
    return Finding(not wrong, evidence)


def white_box_beats_black_box(context: Context) -> Finding:
    """Check that attackers without gradients break no more than those with gradients, in number and image by image.

    The accuracies compared are the lowest of a column of either kind; the union of all white-box columns would forgive
    more. The images are compared with that union. AutoAttack counts without its Square part, which uses no gradients.
    """
    names = [name for name in context.columns() if name.startswith(BLACK_BOX)]
    if not names:
        raise NotRun("the report has no column of a black-box attack: transfer_pgd, transfer_cw, square or rays")
    return _compare(context, names)


def gradient_estimation_is_weaker(context: Context) -> Finding:
    """Check that gradients estimated from queries break no more than true gradients, now or with more queries.

    A curve that still falls when the queries run out proves nothing if the fall could go below the white-box attacks. So
    "flat" means here that once more the fall of the last doubling of queries would stay above them; otherwise the check
    fails with a warning.

    Reference:
        Uesato et al. 2018, Adversarial Risk and the Dangers of Evaluating Against Weak Attacks.
    """
    names = _estimations(context)
    if not names:
        raise NotRun("the report has no column of gradient estimation: spsa or nes")
    finding = _compare(context, names)
    remarks, flat = [], True
    for name in names:
        fall = _last_fall(context, name)
        if fall is None:
            continue
        estimated, white = aligned(context.report.robust(name), _strongest(context, context.report.scope(name))[1])
        prospect = max(0.0, float(estimated.mean()) - fall)
        enough = prospect >= float(white.mean()) - tolerance(estimated, white)
        flat = flat and enough
        remark = f"{name} fell by {100 * fall:.1f} points over the last doubling of queries"
        remarks.append(remark if enough else f"{remark}: give it more")
    evidence = "; ".join([finding.evidence, *remarks])
    return Finding(finding.passed and flat, evidence, "warning" if finding.passed else "error")


def queries_curve(context: Context) -> list[tuple[float, float, int]]:
    """Follow the robust accuracy of the first gradient estimation in the report against queries per image.

    Returns:
        Points ``(queries, robust accuracy, images)`` at 0 and at halves of the budget; empty without such a column.
    """
    for name in _estimations(context):
        outcome = context.outcome(name)
        if outcome is not None and outcome.queries is not None and outcome.queries.any():
            budget = int(outcome.queries.max())
            marks = sorted({budget >> halvings for halvings in range(8)} - {0})
            clean = context.report.correct[: outcome.scope]
            points = [(float(mark), float(_robust_after(context, name, mark).mean()), len(clean)) for mark in marks]
            return [(0.0, float(clean.mean()), len(clean)), *points]
    return []


def _robust_after(context: Context, name: str, queries: int) -> np.ndarray:
    outcome = context.outcome(name)
    assert outcome is not None and outcome.queries is not None
    broken = outcome.broken & (outcome.queries <= queries)
    return (context.report.correct & ~broken)[: outcome.scope]


def _last_fall(context: Context, name: str) -> float | None:
    outcome = context.outcome(name)
    if outcome is None or outcome.queries is None or not outcome.queries.any():
        return None
    budget = int(outcome.queries.max())
    return float(_robust_after(context, name, budget // 2).mean() - _robust_after(context, name, budget).mean())


def _compare(context: Context, names: list[str]) -> Finding:
    """Compare attackers without gradients, one column each, with the white-box columns."""
    parts, passed = [], True
    alone = np.zeros(len(context.report.labels), dtype=bool)
    for name in names:
        weak = context.report.robust(name)
        strongest, strong = _strongest(context, len(weak))
        weak, strong = aligned(weak, strong)
        passed = passed and not_above(strong, weak)
        parts.append(f"{name} leaves {percent(weak)} and {strongest} {percent(strong)} of {len(weak)} images")
        survived_white = np.all([robust[: len(weak)] for robust in _white_box(context, len(weak)).values()], axis=0)
        alone[: len(weak)] |= survived_white & ~weak
    seen = max(context.report.scope(name) for name in names)
    strays = np.flatnonzero(alone)
    passed = passed and len(strays) <= strays_allowed(seen)
    parts.append(f"broken without gradients only: {listed(strays)}")
    return Finding(passed, "; ".join(parts))


def _strongest(context: Context, count: int) -> tuple[str, np.ndarray]:
    """Find the white-box column of the lowest accuracy on the first ``count`` images."""
    columns = _white_box(context, count)
    name = min(columns, key=lambda column: float(columns[column].mean()))
    return name, columns[name]


def _white_box(context: Context, count: int) -> dict[str, np.ndarray]:
    """Give the outcomes ``(m,)`` of all white-box columns on the images that all of them and ``count`` have."""
    named, known = _by_attack(context), context.columns()
    if not any(name in named for name in ITERATED):
        raise NotRun(f"the report has no column of an iterated white-box attack: {', '.join(ITERATED)}")
    columns = {}
    for name in WHITE_BOX:
        if name in named:
            column = named[name]
            parts = [part for part in known[column] if not _is_square(context, part)]
            broken = np.any([context.report.outcomes[part].broken for part in parts], axis=0)
            columns[name] = (context.report.correct & ~broken)[: context.report.scope(column)]
    shortest = min([count, *(len(robust) for robust in columns.values())])
    return {name: robust[:shortest] for name, robust in columns.items()}


def _by_attack(context: Context) -> dict[str, str]:
    """Give attacks by their usual names the columns that hold them, if need be on the first images only (``cw_inf:images=500``)."""
    found: dict[str, str] = {}
    for column in sorted(context.columns(), key=len, reverse=True):  # the plain name last, so that it wins
        found[re.sub(r":images=\d+$", "", column)] = column
    return found


def _unfinished(context: Context, column: str, final: np.ndarray) -> list[str]:
    """Name the parts of AutoAttack that did not see every image that is left."""
    missing = []
    for part in context.report.columns[column]:
        skipped = int((final & ~context.report.outcomes[part].attacked[: len(final)]).sum())
        if skipped:
            missing.append(f"its part {part} did not see {skipped} of the images left")
    return missing


def _only_by_square(context: Context, column: str) -> np.ndarray | None:
    parts = context.report.columns[column]
    square = [part for part in parts if _is_square(context, part)]
    gradients = [part for part in parts if part not in square]
    if not square or not gradients:
        return None
    broken = [np.any([context.report.outcomes[p].broken for p in group], axis=0) for group in (square, gradients)]
    return context.report.correct & broken[0] & ~broken[1]


def _is_square(context: Context, part: str) -> bool:
    return bool(context.report.outcomes[part].settings["class"] == "Square")


def _estimations(context: Context) -> list[str]:
    """List the columns of gradient estimation, those with settings of their own (``spsa:images=200``) too."""
    return [name for name in context.columns() if usual_name(name) in GRADIENT_ESTIMATION]


def _require(columns: dict[str, str], *names: str) -> None:
    missing = [name for name in names if name not in columns]
    if missing:
        raise NotRun(f"the report has no column {' and no column '.join(missing)} of the evaluation's eps and norm")
