"""One verdict per claim of the paper, each with the numbers that it rests on."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace

from bmtard_hooks.attacks.choosing import usual_name
from bmtard_hooks.compare.numbers import WEIGHTED, Reports, paired, share_seeds, training_again
from bmtard_hooks.compare.retraining import ENOUGH
from bmtard_hooks.evaluation.statistics import holm
from bmtard_hooks.plots.runs import ENTROPY, LOSS, Run, Series
from bmtard_hooks.reporting.presentation import attack_name
from claims.archive import CHECKED, Archive

HOLDS, FAILS, NOISE, OPEN = "holds", "does not hold", "within noise", "not measured"
ONE_RUN = " (one run each)"
"""What is added to a verdict that does not know how much training again would change."""
FEW_RUNS = " (spread between seeds known from few runs)"
"""What is added to a verdict for which this is known with fewer than ``ENOUGH`` degrees of freedom."""
READING = " (one run, read off)"
"""What is added to a verdict that rests on the course of one run, without a test."""
LEVEL = 0.05
"""Two-sided error probability, over all comparisons of one claim (Holm)."""
LAST = 0.25
"""Share of a run, at its end, over which balances are averaged."""
CLOSED = 0.1
"""Entropies have met if their gap at the end is at most this share of the gap at the beginning."""

NEEDED = {"P1", "P2", "P3", "P4", "A3", "A4"}
"""Checks without which nothing is said of obfuscated gradients: the paper's four, gradients that exist, and unbounded attacks."""

BMTARD, MTARD, FIXED, TEMPERATURES = "bmtard", "mtard", "baseline", "baseline+ebb"
BOTH = "Both together help (B-MTARD above the baseline)"
OWN = (BMTARD, MTARD, FIXED, TEMPERATURES)
"""Rows that are not competitors but B-MTARD and its ablations."""


@dataclass(frozen=True)
class Verdict:
    """What became of a claim.

    Args:
        claim: in words.
        verdict: one of ``HOLDS``, ``FAILS``, ``NOISE`` and ``OPEN``.
        numbers: what it rests on.
    """

    claim: str
    verdict: str
    numbers: str


@dataclass(frozen=True)
class Difference:
    """W-Robust of one row minus that of another, over images and seeds.

    Args:
        other: the row that was taken off.
        value: in [-1, 1].
        error: its standard error, from the choice of images and, as far as it is known, from training again.
        seeds: number of pairs of runs.
        p: two-sided p-value of Student's t.
        freedom: degrees of freedom behind what is known of training again; 0 if nothing is.
    """

    other: str
    value: float
    error: float
    seeds: int
    p: float
    freedom: int

    def __str__(self) -> str:
        return f"{self.other} {100 * self.value:+.2f} ± {100 * self.error:.2f}"


def judge(archive: Archive) -> list[Verdict]:
    """Hold every claim against an archive.

    Args:
        archive: see ``load``.
    """
    rivals = [row["label"] for row in archive.content["rows"] if "method" in row and _is_rival(row)]
    verdicts = [_above(archive, column, rivals) for column in archive.columns]
    verdicts += _above_mtard(archive, archive.columns)
    for claim, row, other in (
        ("Normalization Loss Balance helps fixed temperatures (MTARD above the baseline)", MTARD, FIXED),
        ("Normalization Loss Balance helps balanced temperatures (B-MTARD above baseline+EBB)", BMTARD, TEMPERATURES),
        ("Entropy-Based Balance helps fixed weights (baseline+EBB above the baseline)", TEMPERATURES, FIXED),
        ("Entropy-Based Balance helps balanced weights (B-MTARD above MTARD)", BMTARD, MTARD),
        (BOTH, BMTARD, FIXED),
    ):
        verdicts += [
            _one(f"{claim}, {attack_name(column)}", row, differences(archive, column, row, [other]))
            for column in _strongest(archive)
        ]
    verdicts += _under_autoattack(archive, rivals)
    return [*verdicts, _entropies_meet(archive.logs), _losses_fall_alike(archive.logs), _not_obfuscated(archive)]


def _under_autoattack(archive: Archive, rivals: Sequence[str]) -> list[Verdict]:
    """Judge the students that met AutoAttack on a part of the images, one run each."""
    columns = archive.strong[BMTARD].columns if BMTARD in archive.strong else ()
    verdicts = []
    for column in (name for name in columns if usual_name(name) == "autoattack"):
        reports: dict[str, Reports] = {
            label: {0: report} for label, report in archive.strong.items() if column in report.columns
        }
        met = replace(archive, reports=reports)
        verdicts += [_above(met, column, rivals), *_above_mtard(met, [column])]
        verdicts += [_one(f"{BOTH}, {attack_name(column)}", BMTARD, differences(met, column, BMTARD, [FIXED]))]
    return [verdict for verdict in verdicts if verdict.verdict != OPEN]


def _above_mtard(archive: Archive, columns: Sequence[str]) -> list[Verdict]:
    """Judge one claim under several attacks, any of which could be picked afterwards: Holm's rule goes over all of them."""
    found = {column: differences(archive, column, BMTARD, [MTARD]) for column in columns}
    adjusted = iter(holm([entries[0].p for entries in found.values() if entries]))
    corrected = {column: [replace(entry, p=next(adjusted)) for entry in entries] for column, entries in found.items()}
    return [
        _one(f"W-Robust of B-MTARD is above MTARD's under {attack_name(column)}", BMTARD, entries)
        for column, entries in corrected.items()
    ]


def _is_rival(row: Mapping[str, object]) -> bool:
    return row["label"] not in OWN and not (row["method"] in OWN and row["options"])


def _strongest(archive: Archive) -> list[str]:
    return [name for name in archive.columns if usual_name(name) in ("pgd_trades", "autoattack")]


def differences(archive: Archive, column: str, row: str, others: Sequence[str]) -> list[Difference]:
    """Compare a row with others by W-Robust; rows that were not measured, or share no seed with it, are left out.

    Args:
        archive: see ``load``.
        column: attack.
        row: label.
        others: labels.
    """
    again = training_again(archive.reports, column)
    own, found = archive.reports.get(row, {}), []
    for other in others:
        if share_seeds(own, archive.reports.get(other, {})):
            pair = paired(own, archive.reports[other], column, again)
            freedom = again[WEIGHTED].freedom if again else 0
            value, error = pair[WEIGHTED], pair[f"{WEIGHTED}_error"]
            found.append(Difference(other, value, error, len(pair["seeds"]), pair["p"], freedom))
    return found


def _verdict(found: Sequence[Difference], missing: Sequence[str] = ()) -> str:
    if not found:
        return OPEN
    sure = [p <= LEVEL for p in holm([difference.p for difference in found])]
    freedom = min(difference.freedom for difference in found)
    remark = FEW_RUNS if 0 < freedom < ENOUGH else ""
    if not freedom and any(difference.seeds == 1 for difference in found):
        remark = ONE_RUN
    if any(is_sure and difference.value < 0 for difference, is_sure in zip(found, sure, strict=True)):
        return FAILS + remark
    so_far = f" for {len(found)} of {len(found) + len(missing)}" if missing else ""
    return HOLDS + so_far + remark if all(sure) else NOISE


def _above(archive: Archive, column: str, rivals: Sequence[str]) -> Verdict:
    found = sorted(differences(archive, column, BMTARD, rivals), key=lambda difference: difference.value)
    missing = [rival for rival in rivals if rival not in {difference.other for difference in found}]
    numbers = "B-MTARD minus " + ", ".join(map(str, found)) if found else "no rows to compare"
    numbers += f"; not measured: {', '.join(missing)}" if found and missing else ""
    claim = f"W-Robust of B-MTARD is above that of every method but MTARD under {attack_name(column)}"
    return Verdict(claim, _verdict(found, missing), numbers)


def _one(claim: str, row: str, found: Sequence[Difference]) -> Verdict:
    numbers = (
        f"{row} minus {found[0]} ({found[0].seeds} seed{'s' * (found[0].seeds > 1)})" if found else "rows are missing"
    )
    return Verdict(claim, _verdict(found), numbers)


def spread(lines: Mapping[str, Series], take: Callable[[list[float]], list[float]]) -> float | None:
    """Compute the mean distance of the highest from the lowest of several series over a part of a run.

    Args:
        lines: at least two series, logged at the same places.
        take: chooses the part, given a series' values.

    Returns:
        The distance; None with fewer than two series.
    """
    chosen = [take(series.values) for series in lines.values()]
    if len(chosen) < 2:
        return None
    gaps = [max(values) - min(values) for values in zip(*chosen, strict=False)]
    return math.fsum(gaps) / len(gaps) if gaps else None


def first(values: list[float]) -> list[float]:
    """Take the first logged value."""
    return values[:1]


def last(values: list[float]) -> list[float]:
    """Take the last part of a run, a quarter."""
    return values[-max(1, round(LAST * len(values))) :]


def _entropies_meet(logs: Mapping[str, Run]) -> Verdict:
    claim = "With Entropy-Based Balance the teachers' entropies meet"
    if BMTARD not in logs:
        return Verdict(claim, OPEN, "no log of B-MTARD")
    ends = {name: (spread(logs[name].series(ENTROPY), first), spread(logs[name].series(ENTROPY), last))
            for name in (BMTARD, MTARD) if name in logs}  # fmt: skip
    told = [
        f"{name}: {begin:.3f} → {end:.3f} nats" for name, (begin, end) in ends.items() if begin and end is not None
    ]
    begin, end = ends[BMTARD]
    if begin is None or end is None:
        return Verdict(claim, OPEN, "entropies of two teachers were not logged")
    numbers = f"gap at the first log → mean gap over the last quarter; {', '.join(told)}"
    return Verdict(claim, (HOLDS if end <= CLOSED * begin else FAILS) + READING, numbers)


def relative_gap(run: Run) -> float | None:
    """Compute how far apart the losses are at the end of a run, each relative to its first logged value.

    Only rows with Normalization Loss Balance log losses relative to their first step, so the first logged value, a mean
    over the first steps, serves for all rows alike.

    Args:
        run: the log.

    Returns:
        The mean gap over the last quarter; None with fewer than two losses.
    """
    lines = {}
    for part, series in run.series(LOSS).items():
        if series.values[0] > 0:
            lines[part] = Series(series.places, [value / series.values[0] for value in series.values])
    return spread(lines, last)


def _losses_fall_alike(logs: Mapping[str, Run]) -> Verdict:
    claim = "With Normalization Loss Balance the relative losses are closer together"
    gaps = {name: relative_gap(logs[name]) for name in OWN if name in logs}
    known = {name: gap for name, gap in gaps.items() if gap is not None}
    pairs = [
        (with_it, without)
        for with_it, without in ((MTARD, FIXED), (BMTARD, TEMPERATURES))
        if with_it in known and without in known
    ]
    told = [f"{with_it} {known[with_it]:.3f} against {without} {known[without]:.3f}" for with_it, without in pairs]
    if BMTARD in known and FIXED in known:
        told.append(f"with both balances {known[BMTARD]:.3f}, with neither {known[FIXED]:.3f}")
    numbers = f"mean gap over the last quarter: {'; '.join(told)}"
    if not pairs:
        return Verdict(claim, OPEN, numbers if told else "rows are missing")
    holds = all(known[with_it] < known[without] for with_it, without in pairs)
    return Verdict(claim, (HOLDS if holds else FAILS) + READING, numbers)


def _not_obfuscated(archive: Archive) -> Verdict:
    claim = "B-MTARD's robustness does not come from obfuscated gradients"
    checked = archive.strong.get(CHECKED)
    if checked is None:
        return Verdict(claim, OPEN, "no evaluation with checks")
    checks = checked.checks
    ran = {check.id for check in checks if check.status != "not run"}
    counts = {
        status: sum(check.status == status for check in checks) for status in dict.fromkeys(c.status for c in checks)
    }
    numbers = ", ".join(f"{count} {status}" for status, count in counts.items()) + f" of {len(checks)} checks"
    missing = sorted(NEEDED - ran)
    if missing:
        return Verdict(claim, OPEN, f"{numbers}; not run: {', '.join(missing)}")
    failed = [check.id for check in checked.failed_checks]
    warned = [check.id for check in checks if check.status == "fail" and check.id not in failed]
    numbers += f"; failed: {', '.join(failed)}" * bool(failed) + f"; warnings: {', '.join(warned)}" * bool(warned)
    return Verdict(claim, FAILS if failed else HOLDS, numbers)
