"""The tables of the pages that say what the code has: made from the code, so that they cannot go stale.

python tests/docs/generated_tables.py     writes them into the pages, between their marks
"""

import re
import sys
from dataclasses import MISSING, fields, replace
from fractions import Fraction

from fenced_blocks import DOCS, ROOT

sys.path.insert(0, str(ROOT / "benchmarks"))

from claims.archive import load
from claims.document import verdict_table
from claims.verdicts import judge

from bmtard_hooks import BMTARDConfig, method_names
from bmtard_hooks.attacks.suite import ATTACKS, PRESETS, TRANSFERRED, UNIONS
from bmtard_hooks.compare.tables import accuracy_table
from bmtard_hooks.evaluation.checks.registry import CHECKS
from bmtard_hooks.methods import make_method
from bmtard_hooks.options import MethodOptions

MARKED = re.compile(r"(<!-- generated: ([\w ]+) -->\n).*?(<!-- end -->)", re.S)
ORDER = (
    *("bmtard", "mtard", "baseline", "bmtard_union", "natural", "sat", "trades", "score", "ard", "rslad", "fair_ard"),
    *("absld", "iad", "lmtn", "adaad", "adaiad", "saad", "ciard"),
)
ADDITIONS = {"igdm": ("igdm_",), "perturbation": ("awp_",), "averaging": ("averaging_", "weight_averaging")}
LABELS = {
    **{"trades": "TRADES", "score": "SCORE", "ard": "ARD", "fair_ard": "Fair-ARD", "absld": "ABSLD", "iad": "IAD"},
    **{"lmtn": "LMTN", "adaad": "AdaAD", "adaiad": "AdaIAD", "saad": "SAAD", "ciard": "CIARD"},
    "bmtard_union": "bmtard_union",
}
ARCHIVES = {"claims": "cifar10_small", "longer": "cifar10_small_12_epochs"}
SLICES = {
    "balance": ("entropy_balance", "log_eps"),
    "attack": ("eps", "crop_padding"),
    "evaluation": ("eval_attack", "w_robust_clean_weight"),
}


def number(value):
    """Write a number as a person would: fractions of 255, 3 and 6 as such."""
    if isinstance(value, bool) or not isinstance(value, float):
        return str(value)
    for bottom in (255, 6, 3):
        found = Fraction(value).limit_denominator(bottom)
        if found.denominator in (255, 85, 51, bottom) and abs(float(found) - value) < 1e-12 and bottom != found:
            return (
                f"{found.numerator * bottom // found.denominator}/{bottom}" if found.denominator > 1 else f"{value:g}"
            )
    return f"{value:g}"


def option_rows(names):
    """One row per option: name, default, help."""
    known = {entry.name: entry for entry in fields(BMTARDConfig)}
    lines = ["| option | default | what it does |", "|---|---|---|"]
    for name in names:
        entry = known[name]
        default = entry.default if entry.default is not MISSING else entry.default_factory()
        lines.append(f"| `{name}` | `{number(default)}` | {entry.metadata['help'].replace('|', '/')} |")
    return lines


def own_options(label):
    """Names of the options whose help begins with a method's label."""
    return [
        entry.name
        for entry in fields(MethodOptions)
        if label in [part.partition(" ")[0] if " variant" in part else part for part in heads(entry)]
        and entry.name not in additions()
    ]


def heads(entry):
    """The labels before the colon of an option's help."""
    head, colon, _ = entry.metadata["help"].partition(":")
    return [part.strip() for part in head.split(",")] if colon else []


def additions():
    """Names of the options that can be added to any method."""
    prefixes = tuple(prefix for group in ADDITIONS.values() for prefix in group)
    return [entry.name for entry in fields(MethodOptions) if entry.name.startswith(prefixes)]


def between(first, last):
    """Names of BMTARDConfig's own options from one to another."""
    names = [entry.name for entry in fields(BMTARDConfig)]
    return names[names.index(first) : names.index(last) + 1]


def methods():
    """One row per method: what its class and its config say."""
    lines = [
        "| `method` | teachers | loss parts and weights | inner attack | `loss_scale` | rate falls at |",
        "|---|---|---|---|---|---|",
    ]
    for name in ORDER:
        config = BMTARDConfig(output_dir="none", method=name)
        method = make_method(config)
        parts = ", ".join(f"{part} {number(weight)}" for part, weight in method.part_weights.items())
        scale = number(method.loss_scale) if method.teachers else "–"
        drops = (
            ", ".join(f"{drop:.3g}" for drop in method.lr_drops) if method.lr_factor(0, 300) is None else "own curve"
        )
        lines.append(
            f"| `{name}` | {', '.join(method.teachers) or 'none'} | {parts} | {attack(method, config)} | {scale} | {drops} |"
        )
    return lines


def attack(method, config):
    """The inner attack in a few words."""
    if method.attack is None:
        return "none"
    settings = config.train_attack()
    words = [
        f"{settings.start} start" + (", clipped" if settings.clip_start else ""),
        f"steps of {number(settings.step_size)}",
    ]
    words += ["training mode"] if settings.train_mode else []
    words += [f"and one in L2 of {config.l2_eps:g}"] if len(method.adversarial_views) > 1 else []
    return ", ".join(words)


def attacks():
    """One row per named attack: its settings."""
    lines = ["| name | class | access | settings |", "|---|---|---|---|"]
    for name, found in ATTACKS.items():
        kept = {key: value for key, value in found.settings().items() if key not in ("class", "eps", "norm", "access")}
        shown = ", ".join(f"`{key}={number(value)}`" for key, value in kept.items() if value is not None)
        lines.append(f"| `{name}` | {type(found).__name__} | {found.access} | {shown} |")
    lines += [
        f"| `{name}` | Transfer | another model | that of `{names(inner)}` |" for name, inner in TRANSFERRED.items()
    ]
    lines += [
        f"| `{name}` | union | as its parts | `{'`, `'.join(parts)}` one after the other |"
        for name, parts in UNIONS.items()
    ]
    return lines


def names(wanted):
    """Name of an attack of the suite."""
    return next(name for name, found in ATTACKS.items() if found == wanted)


def presets():
    """One row per preset."""
    return [
        "| preset | attacks |",
        "|---|---|",
        *(f"| `{name}` | {', '.join(f'`{part}`' for part in parts)} |" for name, parts in PRESETS.items()),
    ]


def checks():
    """One row per check."""
    return [
        "| check | asks that | a failure is |",
        "|---|---|---|",
        *(f"| {check.id} | {check.title} | {check.severity} |" for check in CHECKS),
    ]


def claims(folder, which):
    """What came out of a comparison: the accuracies under all attacks or the strongest, or the verdicts."""
    archive = load(ROOT / "benchmarks" / "results" / folder)
    if which == "verdicts":
        return [verdict_table(judge(archive)).markdown(0)]
    rows = [row for row in archive.content["rows"] if row["mean"]]
    columns = archive.columns if which == "accuracies" else [archive.columns[-1]]
    table = accuracy_table({**archive.content, "rows": rows, "columns": columns})
    return [replace(table, notes=[]).markdown(0) if which == "short" else table.markdown(0)]


def table(name):
    """Make the table of a mark."""
    kind, _, which = name.partition(" ")
    if kind in ARCHIVES:
        return claims(ARCHIVES[kind], which)
    if kind == "options":
        if which in SLICES:
            return option_rows(between(*SLICES[which]))
        if which in ADDITIONS:
            return option_rows(name for name in additions() if name.startswith(ADDITIONS[which]))
        return option_rows(own_options(LABELS[which]))
    return {"methods": methods, "attacks": attacks, "presets": presets, "checks": checks}[kind]()


def rewritten(text):
    """A page's text with every marked table made anew."""
    return MARKED.sub(lambda found: found[1] + "\n".join([*table(found[2]), "", ""]) + found[3], text)


def marks(text):
    """Names of the tables of a page."""
    return [found[2] for found in MARKED.finditer(text)]


if __name__ == "__main__":
    assert sorted(ORDER) == method_names()
    for page in [ROOT / "README.md", *sorted(DOCS.rglob("*.md"))]:
        before = page.read_text()
        if marks(before) and rewritten(before) != before:
            page.write_text(rewritten(before))
