"""From the words a user types to the attacks of an evaluation."""

from __future__ import annotations

import difflib
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, fields
from typing import Any

from torch import nn

from bmtard_hooks.attacks.base import Attack
from bmtard_hooks.attacks.foreign import Foreign
from bmtard_hooks.attacks.gradient import PGD
from bmtard_hooks.attacks.pgd import NORMS
from bmtard_hooks.attacks.suite import ATTACKS, PRESETS, TRANSFERRED, UNIONS
from bmtard_hooks.attacks.transfer import Transfer
from bmtard_hooks.options import read_number


@dataclass
class AttackPlan:
    """The attacks of an evaluation.

    Args:
        attacks: by name; the name is part of the key of an attack's random numbers.
        columns: column of the tables to the names of the attacks whose union it is.
        warnings: what was left out, and why.
        ball: norm and radius that were asked for.
    """

    attacks: dict[str, Attack] = field(default_factory=dict)
    columns: dict[str, list[str]] = field(default_factory=dict)
    warnings: list[str] = field(default_factory=list)
    ball: tuple[str, float] = ("linf", 8 / 255)

    def add(self, column: str, attacks: Mapping[str, Attack]) -> None:
        """Add a column and its attacks, which share their outcomes with equal attacks of the same name.

        Raises:
            ValueError: if the column exists and is another one.
        """
        named = {
            name if self.attacks.get(name, attack) == attack else f"{column}/{name}": attack
            for name, attack in attacks.items()
        }
        if column in self.columns and self.columns[column] != list(named):
            raise ValueError(f"{column!r} was asked for twice: give one of them a name of its own with a mapping")
        self.attacks.update(named)
        self.columns[column] = list(named)


def usual_name(column: str) -> str:
    """Give the name of a column's attack without its settings: ``autoattack`` for ``autoattack:images=500``."""
    return column.partition(":")[0]


def choose_attacks(
    chosen: Any,
    *,
    eps: float = 8 / 255,
    norm: str = "linf",
    surrogate: nn.Module | None = None,
    surrogate_name: str = "surrogate",
) -> AttackPlan:
    """Turn what a user asked for into attacks.

    Args:
        chosen: the name of a preset (``paper``, ``white_box``, ``black_box``, ``quick``) or of an attack, an ``Attack``, a
            torchattacks object or callable, a list of these, or a mapping from names of your own to them. A name can
            carry settings: ``"pgd_sat:steps=50,restarts=5"``, ``"square:rescale_schedule=false"``; beside a preset that
            has the attack, as in ``["paper", "spsa:images=100"]``, it takes the place of the preset's.
        eps: radius for every attack that does not state its own; step sizes in L2 are scaled with it.
        norm: ``linf`` or ``l2``, likewise.
        surrogate: pixels-to-logits model on which the transfer attacks are made.
        surrogate_name: its name in the report.

    Raises:
        ValueError: for an unknown name or setting (with the nearest ones), a setting out of range, a norm that an attack
            asked for by name does not know, or a transfer attack without a surrogate.
    """
    if norm not in NORMS:
        raise ValueError(f"norm={norm!r} is unknown: choose one of {', '.join(NORMS)}")
    plan = AttackPlan(ball=(norm, eps))
    chooser = _Chooser(eps, norm, surrogate, surrogate_name)
    if isinstance(chosen, Mapping):
        for column, source in chosen.items():
            plan.add(column, chooser.attacks(source, column))
    sources = [] if isinstance(chosen, Mapping) else _listed(chosen)
    own = {_split(source)[0] for source in sources if isinstance(source, str) and ":" in source}
    for source in sources:
        if isinstance(source, str) and source in PRESETS:
            for name in PRESETS[source]:
                reason = chooser.obstacle(name)
                if reason is not None:
                    plan.warnings.append(f"{name} was left out: {reason}.")
                elif name not in own:
                    plan.add(name, chooser.attacks(name, name))
        else:
            column = source if isinstance(source, str) else _name_of(source)
            plan.add(column, chooser.attacks(source, column))
    plan.warnings += [text for name, attack in plan.attacks.items() if (text := _falls_short(name, attack))]
    if not plan.columns:
        raise ValueError("no attack is left to run: " + (" ".join(plan.warnings) or "the list is empty"))
    return plan


@dataclass
class _Chooser:
    eps: float
    norm: str
    surrogate: nn.Module | None
    surrogate_name: str

    def attacks(self, source: Any, column: str) -> dict[str, Attack]:
        """Name the attacks whose union is the column."""
        if isinstance(source, Attack):
            return {column: source}
        if not isinstance(source, str):
            ball: dict[str, Any] = {} if hasattr(source, "eps") else {"eps": self.eps, "norm": self.norm}
            return {column: Foreign(run=source, name=column, **ball)}
        name, changes = _split(source)
        if name in PRESETS:
            raise ValueError(f"{source!r}: {name} is a list of attacks, give the settings to each of them")
        parts = UNIONS.get(name, (name,))
        named: dict[str, Attack] = {}
        for part in parts:
            found = self._find(part)
            wanted = changes.get("norm", self.norm)
            if wanted in NORMS and wanted not in found.norms:
                raise ValueError(
                    f"norm={wanted!r}: {part} knows {', '.join(found.norms)} alone: leave it out, or pass another norm"
                )
            label = part if not changes and column == name else f"{column}/{part}" if len(parts) > 1 else column
            named[label] = self._change(found, changes, part)
        return named

    def obstacle(self, name: str) -> str | None:
        """Say why an attack of a preset cannot run here; None if it can."""
        if name in TRANSFERRED and self.surrogate is None:
            return "it needs a surrogate model to make its images on"
        if any(self.norm not in self._find(part).norms for part in UNIONS.get(name, (name,))):
            return f"it does not know the norm {self.norm}"
        return None

    def _find(self, name: str) -> Attack:
        if name in TRANSFERRED:
            if self.surrogate is None:
                raise ValueError(
                    f"{name} needs a model to make its images on: pass surrogate=, for example the robust teacher"
                )
            return Transfer(surrogate=self.surrogate, attack=TRANSFERRED[name], surrogate_name=self.surrogate_name)
        if name not in ATTACKS:
            raise ValueError(f"unknown attack {name!r}: {_nearest(name, [*ATTACKS, *TRANSFERRED, *UNIONS, *PRESETS])}")
        return ATTACKS[name]

    def _change(self, attack: Attack, changes: Mapping[str, str], name: str) -> Attack:
        values: dict[str, Any] = {"eps": self.eps, "norm": self.norm}
        inner: dict[str, Any] = {}
        for key, text in changes.items():
            if key in _settings(attack):
                values[key] = _value(attack, key, text, name)
            elif isinstance(attack, Transfer) and key in _settings(attack.attack):
                inner[key] = _value(attack.attack, key, text, name)
            else:
                raise ValueError(f"{name} has no setting {key!r}: {_nearest(key, _settings(attack))}")
        if isinstance(attack, Transfer):
            values["attack"] = _in_ball(attack.attack, {"eps": values["eps"], "norm": values["norm"], **inner})
        return _in_ball(attack, values)


def _in_ball(attack: Attack, values: dict[str, Any]) -> Attack:
    step = getattr(attack, "step_size", None)
    if step is not None and values["norm"] == "l2" and "step_size" not in values:
        values = {**values, "step_size": step * values["eps"] / attack.eps}
    return attack.replace(**values)


def _falls_short(name: str, attack: Attack) -> str | None:
    inner = attack.attack if isinstance(attack, Transfer) else attack
    search = inner.search() if isinstance(inner, PGD) else None
    if search is None or not search.falls_short:
        return None
    setting = f"{name}{',' if ':' in name else ':'}step_size={search.ample_step:.4g}"
    return (
        f"{name} makes {search.steps} steps of {search.step_size:.4g}, which together do not reach the radius {search.eps:.4g}: a weak "
        f"attack. Set its step, for example {setting}."
    )


def _settings(attack: Attack) -> list[str]:
    return [entry.name for entry in fields(attack) if entry.name not in ("surrogate", "attack", "run")]


def _listed(chosen: Any) -> list[Any]:
    return list(chosen) if isinstance(chosen, Sequence) and not isinstance(chosen, str) else [chosen]


def _nearest(word: str, known: Sequence[str]) -> str:
    near = difflib.get_close_matches(word, known, n=3)
    return f"did you mean {', '.join(near)}?" if near else f"choose from {', '.join(known)}"


def _name_of(source: Any) -> str:
    for attribute in ("name", "attack", "__name__"):
        name = getattr(source, attribute, None)
        if isinstance(name, str):
            return name
    return type(source).__name__


def _split(word: str) -> tuple[str, dict[str, str]]:
    name, _, rest = word.partition(":")
    changes: dict[str, str] = {}
    for entry in filter(None, rest.split(",")):
        key, equals, value = entry.partition("=")
        if not equals:
            raise ValueError(f"{word!r}: write settings as {name}:setting=value,setting=value")
        if key.strip() in changes:
            raise ValueError(f"{word!r}: {key.strip()} is set twice, expected once: delete one of them")
        changes[key.strip()] = value.strip()
    return name.strip(), changes


def _value(attack: Attack, key: str, text: str, name: str) -> Any:
    """Read a setting's value by the type that its class declares."""
    declared = next(str(entry.type) for entry in fields(attack) if entry.name == key)
    readers: dict[str, Callable[[str], Any]] = {"bool": _read_bool, "int": int, "float": read_number, "str": str}
    kind = declared.removesuffix(" | None")
    if declared != kind and text.lower() == "none":
        return None
    try:
        return readers[kind](text)
    except ValueError as error:
        wanted = {"bool": "true or false", "int": "a whole number", "float": "a number or a fraction such as 8/255"}
        raise ValueError(
            f"{name}:{key}={text}: expected {wanted[kind]}, as in {name}:{key}={_default(attack, key)}"
        ) from error


def _default(attack: Attack, key: str) -> str:
    value = getattr(attack, key)
    return str(value).lower() if isinstance(value, bool) else str(value)


def _read_bool(text: str) -> bool:
    if text.lower() not in ("true", "false"):
        raise ValueError(text)
    return text.lower() == "true"
