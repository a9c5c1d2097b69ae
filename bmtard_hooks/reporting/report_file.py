"""A report as one JSON file: a summary for people, and everything else to the last bit."""

from __future__ import annotations

import base64
import json
import math
import zlib
from collections.abc import Mapping
from dataclasses import asdict, fields
from pathlib import Path
from typing import Any

import numpy as np

from bmtard_hooks.evaluation.report import AttackOutcome, CheckResult, Example, RobustnessReport
from bmtard_hooks.reporting.files import write_file

SCHEMA_VERSION = 1
KIND = "bmtard_hooks robustness report"
ARRAY_KINDS = "biuf"
MODES = ("columns", "worst_case")
STATUSES = ("pass", "fail", "not run")
SEVERITIES = ("error", "warning")
ARRAYS = {"outcome": ("attacked", "broken", "broken_on_the_way", "queries"), "example": ("clean", "adversarial")}


def save_report(report: RobustnessReport, path: str | Path) -> Path:
    """Write a report as JSON in one go, so that a kill leaves the old file or the new one.

    Args:
        report: what was measured; its settings and environment must be plain JSON values.
        path: the file to write; missing directories are made.

    Returns:
        The path of the file.

    Raises:
        ValueError: if the report contradicts itself or holds values that JSON cannot.
    """
    _check(report)
    content = {"kind": KIND, "schema_version": SCHEMA_VERSION, "summary": _summary(report), **_encode(report)}
    try:
        text = json.dumps(content, ensure_ascii=False, allow_nan=False, indent=1, default=_plain_number)
    except TypeError as error:
        raise ValueError(f"the report of {report.model!r} cannot be written as JSON: {error}") from error
    return write_file(path, text)


def load_report(path: str | Path) -> RobustnessReport:
    """Read a report that ``save_report`` wrote; the numbers of its summary are computed anew.

    Args:
        path: the JSON file.

    Raises:
        ValueError: if the file is damaged, is something else, or was written by a newer version.
        FileNotFoundError: if there is no such file.
    """
    try:
        content = json.loads(Path(path).read_bytes(), parse_constant=_refuse_constant)
    except (ValueError, RecursionError) as error:
        raise ValueError(f"{path} is not a JSON file, or a damaged one ({error}): evaluate again") from error
    if not isinstance(content, dict) or content.get("kind") != KIND:
        raise ValueError(f"{path} is not a robustness report: expected a JSON object with kind {KIND!r}")
    version = content.get("schema_version")
    if type(version) is not int or version < 1:
        raise ValueError(f"{path} has schema_version {version!r}, expected a whole number from 1 to {SCHEMA_VERSION}")
    if version > SCHEMA_VERSION:
        raise ValueError(
            f"{path} has schema_version {version}, this version of bmtard_hooks reads up to {SCHEMA_VERSION}: "
            "pip install -U bmtard_hooks"
        )
    try:
        report = _decode(content)
        _check(report)
    except KeyError as error:
        raise ValueError(f"{path} is a damaged robustness report: {error} is missing") from error
    except (ValueError, TypeError, AttributeError, zlib.error) as error:
        raise ValueError(f"{path} is a damaged robustness report: {error}") from error
    return report


def _summary(report: RobustnessReport) -> dict[str, Any]:
    def percent(share: float) -> float | None:
        return round(100 * share, 4) if math.isfinite(share) else None

    rows = []
    for row in report.rows():
        numbers = {f"{key}_percent": percent(value) for key, value in asdict(row).items() if isinstance(value, float)}
        rows.append({"column": row.column, "images": row.images, "worst_class": row.worst_class, **numbers})
    return {
        "verdict": report.verdict,
        "failed_checks": [check.id for check in report.failed_checks],
        "images": len(report.labels),
        "clean_percent": percent(float(report.correct.mean())),
        "rows": rows,
    }


def _encode(report: RobustnessReport) -> dict[str, Any]:
    return {
        "model": report.model,
        "dataset": report.dataset,
        "mode": report.mode,
        "clean_weight": report.clean_weight,
        "warnings": report.warnings,
        "checks": [asdict(check) for check in report.checks],
        "environment": _encode_floats(report.environment),
        "columns": report.columns,
        "sweeps": _encode_floats(report.sweeps),
        "num_classes": report.num_classes,
        "label_names": report.label_names,
        "labels": _encode_array(report.labels),
        "predictions": _encode_array(report.predictions),
        "outcomes": {name: _encode_fields(outcome, ARRAYS["outcome"]) for name, outcome in report.outcomes.items()},
        "examples": [_encode_fields(example, ARRAYS["example"]) for example in report.examples],
    }


def _encode_fields(value: AttackOutcome | Example, arrays: tuple[str, ...]) -> dict[str, Any]:
    content = {entry.name: getattr(value, entry.name) for entry in fields(value)}
    return {key: _encode_array(item) if key in arrays else _encode_floats(item) for key, item in content.items()}


def _decode(content: Mapping[str, Any]) -> RobustnessReport:
    outcomes = {name: _decode_fields(value, ARRAYS["outcome"]) for name, value in content["outcomes"].items()}
    return RobustnessReport(
        model=content["model"],
        dataset=content["dataset"],
        labels=_require_array(content["labels"], "labels"),
        predictions=_require_array(content["predictions"], "predictions"),
        num_classes=content["num_classes"],
        label_names=content["label_names"],
        outcomes={name: AttackOutcome(**value) for name, value in outcomes.items()},
        columns=content["columns"],
        mode=content["mode"],
        clean_weight=content["clean_weight"],
        checks=[CheckResult(**check) for check in content["checks"]],
        sweeps={
            name: [(x, share, images) for x, share, images in points]
            for name, points in _decode_floats(content["sweeps"]).items()
        },
        examples=[Example(**_decode_fields(example, ARRAYS["example"])) for example in content["examples"]],
        environment=_decode_floats(content["environment"]),
        warnings=content["warnings"],
    )


def _decode_fields(content: Mapping[str, Any], arrays: tuple[str, ...]) -> dict[str, Any]:
    return {key: _decode_array(item) if key in arrays else _decode_floats(item) for key, item in content.items()}


def _encode_array(array: np.ndarray | None) -> dict[str, Any] | None:
    if array is None:
        return None
    raw = np.packbits(array) if array.dtype == bool else np.ascontiguousarray(array)
    data = base64.b64encode(zlib.compress(raw.tobytes(), 9)).decode("ascii")
    return {"dtype": array.dtype.str, "shape": list(array.shape), "data": data}


def _decode_array(content: Mapping[str, Any] | None) -> np.ndarray | None:
    if content is None:
        return None
    dtype, shape = np.dtype(content["dtype"]), content["shape"]
    if dtype.kind not in ARRAY_KINDS or any(type(size) is not int or size < 0 for size in shape):
        raise ValueError(f"an array has dtype {content['dtype']!r} and shape {shape}")
    count = math.prod(shape)
    expected = (count + 7) // 8 if dtype.kind == "b" else count * dtype.itemsize
    # One byte more than expected is enough to notice an excess, however far the data would expand.
    raw = zlib.decompressobj().decompress(base64.b64decode(content["data"], validate=True), expected + 1)
    if len(raw) != expected:
        raise ValueError(f"an array of shape {shape} needs {expected} bytes and has {len(raw)} or more")
    if dtype.kind == "b":
        return np.unpackbits(np.frombuffer(raw, dtype=np.uint8), count=count).astype(bool).reshape(shape)
    return np.frombuffer(raw, dtype=dtype).reshape(shape).copy()


def _require_array(content: Any, name: str) -> np.ndarray:
    array = _decode_array(content)
    if array is None:
        raise ValueError(f"{name} is null, expected an array")
    return array


def _encode_floats(value: Any) -> Any:
    """Replace NaN and infinity, which JSON lacks, by ``{"float": "nan"}`` and the like."""
    if isinstance(value, Mapping):
        return {str(key): _encode_floats(item) for key, item in value.items()}
    if isinstance(value, (list, tuple)):
        return [_encode_floats(item) for item in value]
    if isinstance(value, (float, np.floating)) and not math.isfinite(value):
        return {"float": str(float(value))}
    return value


def _decode_floats(value: Any) -> Any:
    if isinstance(value, dict):
        if value.keys() == {"float"} and value["float"] in ("nan", "inf", "-inf"):
            return float(value["float"])
        return {key: _decode_floats(item) for key, item in value.items()}
    return [_decode_floats(item) for item in value] if isinstance(value, list) else value


def _plain_number(value: Any) -> Any:
    if isinstance(value, np.generic):
        return value.item()
    if isinstance(value, Path):
        return str(value)
    raise TypeError(f"{value!r} of type {type(value).__name__} is no JSON value, pass text or numbers")


def _refuse_constant(name: str) -> None:
    raise ValueError(f"{name} is no JSON")


def _check(report: RobustnessReport) -> None:
    """Raise ``ValueError`` if parts of a report contradict each other."""
    _check_types(report)
    count = len(report.labels)
    if not count or report.labels.ndim != 1 or report.predictions.shape != report.labels.shape:
        raise ValueError(
            f"labels {report.labels.shape} and predictions {report.predictions.shape}: expected one each per image"
        )
    if report.labels.min() < 0 or report.labels.max() >= report.num_classes:
        raise ValueError(f"a label is outside the {report.num_classes} classes")
    for name, outcome in report.outcomes.items():
        for key in ARRAYS["outcome"]:
            array = getattr(outcome, key)
            known = array is not None or key in ("broken_on_the_way", "queries")
            if not known or (array is not None and array.shape != (count,)):
                raise ValueError(f"{key} of {name!r} must have one value for each of the {count} images")
    for name, parts in report.columns.items():
        if not parts or not set(parts) <= report.outcomes.keys():
            raise ValueError(f"column {name!r} unites {parts}, but outcomes has {', '.join(report.outcomes)}")
    for check in report.checks:
        if check.status not in STATUSES or check.severity not in SEVERITIES:
            raise ValueError(f"check {check.id!r} has status {check.status!r} and severity {check.severity!r}")


def _check_types(report: RobustnessReport) -> None:
    expected: dict[str, Any] = {"model": str, "dataset": str, "num_classes": int, "columns": dict, "environment": dict}
    expected |= {"warnings": list, "clean_weight": (int, float), "label_names": (list, type(None))}
    for name, kind in expected.items():
        if not isinstance(getattr(report, name), kind):
            raise ValueError(f"{name} is {getattr(report, name)!r}")
    if report.mode not in MODES:
        raise ValueError(f"mode {report.mode!r} is unknown: expected {' or '.join(MODES)}")
    if report.label_names is not None and not all(isinstance(name, str) for name in report.label_names):
        raise ValueError("label_names must be texts")
