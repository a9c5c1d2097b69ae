"""Which reports may be compared with each other, and what a reader of the comparison must know."""

from __future__ import annotations

from typing import Any

import numpy as np

from bmtard_hooks.evaluation.report import WORST_CASE, RobustnessReport


def require_same_images(first: RobustnessReport, second: RobustnessReport) -> None:
    """Raise ``ValueError`` unless two reports are on the same images and weigh W-Robust alike."""
    fix = "evaluate both models on the same data set, in the same order"
    if not np.array_equal(first.labels, second.labels):
        raise ValueError(
            f"the labels of {first.model} on {first.dataset} ({len(first.labels)} images) and of {second.model} on "
            f"{second.dataset} ({len(second.labels)} images) differ: {fix}"
        )
    images = [report.environment.get("images") for report in (first, second)]
    if None not in images and images[0] != images[1]:
        raise ValueError(f"the images have fingerprints {images[0]} and {images[1]}: {fix}")
    if first.clean_weight != second.clean_weight:
        raise ValueError(
            f"W-Robust has clean_weight={first.clean_weight} in one report and {second.clean_weight} in the other: set both "
            "to the same"
        )


def shared_columns(first: RobustnessReport, second: RobustnessReport) -> list[str]:
    """List the columns that two reports share; ``ValueError`` if there are none."""
    shared = [name for name in first.columns if name in second.columns]
    if first.mode != second.mode:
        shared = [name for name in shared if name == WORST_CASE]
    if not shared:
        raise ValueError(
            f"no column to compare: {', '.join(first.columns)} (mode {first.mode}) and {', '.join(second.columns)} (mode "
            f"{second.mode}); evaluate both models with the same attacks in the same mode"
        )
    return shared


def require_same_attack(first: RobustnessReport, second: RobustnessReport, column: str) -> None:
    """Raise ``ValueError`` if a column was measured in two modes, or with two radii or norms."""
    if first.mode != second.mode and column != WORST_CASE:
        raise ValueError(
            f"{column} was measured in mode {first.mode} and in mode {second.mode}, which attack different images: evaluate "
            f"both models in one mode, or compare {WORST_CASE} only"
        )
    radii = [
        {(part["norm"], part["eps"]) for part in _settings(report, column).values()} for report in (first, second)
    ]
    if radii[0] != radii[1]:
        shown = [", ".join(f"{norm} eps={eps:.6f}" for norm, eps in sorted(values)) for values in radii]
        raise ValueError(
            f"{column} was measured with {shown[0]} for {first.model} and {shown[1]} for {second.model}: evaluate both models "
            "with the same radius"
        )


def differing_settings(first: RobustnessReport, second: RobustnessReport, column: str) -> list[str]:
    """Tell how the attacks of a column differ between two reports, apart from radius and norm."""
    parts = [_settings(report, column) for report in (first, second)]
    if set(parts[0]) != set(parts[1]):
        return [f"{column} is the union of {', '.join(parts[0])} in one report, of {', '.join(parts[1])} in the other"]
    found = []
    for name, settings in parts[0].items():
        others = parts[1][name]
        keys = [key for key in {**settings, **others} if key != "images" and settings.get(key) != others.get(key)]
        shown = ", ".join(f"{key} {settings.get(key)!r} and {others.get(key)!r}" for key in keys)
        found += [f"{column}: {name} has {shown}"] if keys else []
    return found


def _settings(report: RobustnessReport, column: str) -> dict[str, dict[str, Any]]:
    return {name: report.outcomes[name].settings for name in report.columns[column]}


def doubts(first: RobustnessReport, second: RobustnessReport) -> list[str]:
    """Tell why a comparison of two reports may mislead: failed checks, different seeds."""
    found = [f"{report.model} {report.verdict}" for report in (first, second) if report.failed_checks]
    seeds = [report.environment.get("seed") for report in (first, second)]
    if seeds[0] != seeds[1]:
        found.append(
            f"the seeds differ ({seeds[0]} and {seeds[1]}), so the attacks' random numbers are not shared and the pairing is "
            "looser: evaluate with one seed"
        )
    return found
