import json
from dataclasses import fields

import numpy as np
import pytest
from sample_report import sample_report, worst_case_report

from bmtard_hooks.evaluation.report import AttackOutcome, Example, RobustnessReport
from bmtard_hooks.reporting.report_file import SCHEMA_VERSION, load_report, save_report


def assert_same(first, second):
    """Compare field by field; arrays also by dtype."""
    assert type(first) is type(second)
    if isinstance(first, np.ndarray):
        assert first.dtype == second.dtype
        np.testing.assert_array_equal(first, second)
    elif isinstance(first, (RobustnessReport, AttackOutcome, Example)):
        for entry in fields(first):
            assert_same(getattr(first, entry.name), getattr(second, entry.name))
    elif isinstance(first, dict):
        assert list(first) == list(second)
        for key in first:
            assert_same(first[key], second[key])
    elif isinstance(first, (list, tuple)):
        assert len(first) == len(second)
        for one, other in zip(first, second, strict=True):
            assert_same(one, other)
    else:
        assert first == second or (first != first and second != second)


def edit(path, change):
    content = json.loads(path.read_text())
    change(content)
    path.write_text(json.dumps(content))
    return path


@pytest.mark.parametrize("make", [sample_report, worst_case_report])
def test_every_field_comes_back_exactly(make, tmp_path):
    report = make(warnings=["attention"], failed=True)
    path = save_report(report, tmp_path / "new" / "report.json")
    assert path == tmp_path / "new" / "report.json"
    loaded = load_report(path)
    assert_same(report, loaded)
    assert loaded.rows() == report.rows()
    assert loaded.verdict == report.verdict


def test_a_report_with_nothing_optional_comes_back_exactly(tmp_path):
    report = sample_report(
        count=3, attacks=("fgsm",), label_names=None, checks=[], sweeps={}, examples=[], environment={}
    )
    assert_same(report, load_report(save_report(report, tmp_path / "report.json")))


@pytest.mark.parametrize("value", [float("nan"), float("inf"), -float("inf")])
def test_values_that_json_lacks_come_back_and_the_file_is_strict_json(value, tmp_path):
    report = sample_report(environment={"limit": value, "nested": {"list": [1, value]}})
    report.sweeps["accuracy against queries"] = [(value, 0.5, 10)]
    path = save_report(report, tmp_path / "report.json")
    json.loads(path.read_text(), parse_constant=lambda name: pytest.fail(name))
    assert_same(report, load_report(path))


def test_classes_without_images_leave_no_nan_in_the_file(tmp_path):
    report = sample_report(count=2, num_classes=1000, label_names=None)
    content = json.loads(save_report(report, tmp_path / "report.json").read_text())
    assert content["summary"]["rows"][0]["worst_class"] in report.labels


def test_summary_can_be_read_without_decoding(tmp_path):
    report = sample_report(failed=True)
    content = json.loads(save_report(report, tmp_path / "report.json").read_text())
    assert list(content)[:3] == ["kind", "schema_version", "summary"]
    row = next(row for row in content["summary"]["rows"] if row["column"] == "autoattack")
    assert row["robust_percent"] == pytest.approx(100 * report.row("autoattack").robust, abs=1e-4)
    assert content["summary"]["verdict"].startswith("FAILED")
    assert content["checks"][1]["evidence"] == "99 % of images have gradient 0"


def test_summary_is_not_trusted(tmp_path):
    report = sample_report()
    path = save_report(report, tmp_path / "report.json")
    edit(path, lambda content: content["summary"].update(rows=[{"column": "fgsm", "robust_percent": 99.9}]))
    assert load_report(path).rows() == report.rows()


def test_ten_thousand_images_stay_small(tmp_path):
    assert save_report(sample_report(count=10_000, examples=[]), tmp_path / "report.json").stat().st_size < 400_000


def test_numpy_numbers_and_paths_become_plain_values(tmp_path):
    report = sample_report(environment={"seed": np.int64(3), "seconds": np.float32(0.5), "output": tmp_path})
    environment = load_report(save_report(report, tmp_path / "report.json")).environment
    assert environment == {"seed": 3, "seconds": 0.5, "output": str(tmp_path)}


def test_a_failed_write_leaves_the_old_file_and_no_rest(tmp_path):
    path = save_report(sample_report(), tmp_path / "report.json")
    before = path.read_bytes()
    with pytest.raises(ValueError, match="cannot be written as JSON.*object.*pass text or numbers"):
        save_report(sample_report(environment={"device": object()}), path)
    assert path.read_bytes() == before
    assert list(tmp_path.iterdir()) == [path]


def test_a_report_that_contradicts_itself_is_not_written(tmp_path):
    report = sample_report(columns={"fgsm": ["unknown"]})
    with pytest.raises(ValueError, match=r"column 'fgsm' unites \['unknown'\], but outcomes has fgsm"):
        save_report(report, tmp_path / "report.json")
    assert not list(tmp_path.iterdir())


def test_a_newer_schema_is_refused_with_the_fix(tmp_path):
    path = save_report(sample_report(), tmp_path / "report.json")
    edit(path, lambda content: content.update(schema_version=SCHEMA_VERSION + 1))
    with pytest.raises(ValueError, match=rf"schema_version {SCHEMA_VERSION + 1}.*pip install -U bmtard_hooks"):
        load_report(path)


@pytest.mark.parametrize("version", [None, "1", 0, 1.5, True])
def test_a_senseless_schema_is_refused(version, tmp_path):
    path = save_report(sample_report(), tmp_path / "report.json")
    edit(path, lambda content: content.update(schema_version=version))
    with pytest.raises(ValueError, match="schema_version"):
        load_report(path)


@pytest.mark.parametrize("content", [b"", b"{", b"\xff\xfe\x00", b"NaN", b"[" * 100_000])
def test_what_is_no_json_is_refused(content, tmp_path):
    path = tmp_path / "report.json"
    path.write_bytes(content)
    with pytest.raises(ValueError, match="is not a JSON file, or a damaged one"):
        load_report(path)


@pytest.mark.parametrize("content", ["[]", "3", '{"schema_version": 1}', '{"kind": "something else"}'])
def test_other_json_is_refused(content, tmp_path):
    path = tmp_path / "report.json"
    path.write_text(content)
    with pytest.raises(ValueError, match="is not a robustness report"):
        load_report(path)


DAMAGES = {
    "a missing field": lambda content: content.pop("labels"),
    "a cut array": lambda content: content["labels"].update(data=content["labels"]["data"][:40]),
    "no base64": lambda content: content["labels"].update(data="§§"),
    "a wrong shape": lambda content: content["labels"].update(shape=[7]),
    "a huge shape": lambda content: content["labels"].update(shape=[10**15]),
    "a negative shape": lambda content: content["labels"].update(shape=[-1]),
    "objects instead of numbers": lambda content: content["labels"].update(dtype="O"),
    "no labels": lambda content: content.update(labels=None),
    "labels outside the classes": lambda content: content.update(num_classes=2),
    "an outcome without its images": lambda content: content["outcomes"]["fgsm"].update(broken=None),
    "an outcome of other images": lambda content: content["outcomes"]["rays"].update(
        queries=content["examples"][0]["clean"]
    ),
    "an unknown mode": lambda content: content.update(mode="other"),
    "a check without result": lambda content: content["checks"][0].update(status="maybe"),
    "an unknown field of a check": lambda content: content["checks"][0].update(more=1),
    "texts for tables": lambda content: content.update(outcomes="none"),
    "a short curve": lambda content: content["sweeps"].update(curve=[[1, 2]]),
    "a number for a name": lambda content: content.update(model=3),
    "numbers for class names": lambda content: content.update(label_names=[1, 2]),
}


@pytest.mark.parametrize("damage", DAMAGES.values(), ids=DAMAGES)
def test_damage_is_refused_with_the_name_of_the_file(damage, tmp_path):
    path = edit(save_report(sample_report(), tmp_path / "report.json"), damage)
    with pytest.raises(ValueError, match=r"report\.json is a damaged robustness report: "):
        load_report(path)


def test_a_missing_file_is_called_missing(tmp_path):
    with pytest.raises(FileNotFoundError):
        load_report(tmp_path / "none.json")


def test_loaded_arrays_can_be_changed(tmp_path):
    report = load_report(save_report(sample_report(), tmp_path / "report.json"))
    report.outcomes["fgsm"].broken[0] = True
    report.labels[0] = 1
    assert report.outcomes["fgsm"].broken[0] and report.labels[0] == 1
