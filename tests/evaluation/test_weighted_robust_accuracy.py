import math
import sys

import evaluate
import numpy as np
import pytest
import torch

from bmtard_hooks.evaluation import weighted_robust_accuracy
from bmtard_hooks.evaluation.weighted_robust_accuracy import WeightedRobustAccuracy

# Six images: right both ways; wrong under attack; right only under attack; wrong both ways; right both ways twice.
REFERENCES = [0, 0, 1, 1, 2, 2]
CLEAN = [0, 0, 0, 2, 2, 2]
ADVERSARIAL = [0, 1, 1, 0, 2, 2]
EXPECTED = {
    "clean_accuracy": 4 / 6,
    "robust_accuracy": 3 / 6,
    "w_robust": 3.5 / 6,
    "w_robust_error": math.sqrt((3 + 0.25) / 6 - (3.5 / 6) ** 2) / math.sqrt(6),
    "worst_class_robust_accuracy": 0.0,
}


@pytest.fixture
def load(tmp_path, monkeypatch):
    """``evaluate.load`` of this file's metric with every cache of its own."""
    monkeypatch.setattr(evaluate.config, "HF_MODULES_CACHE", str(tmp_path / "modules"))
    monkeypatch.setattr(sys, "path", list(sys.path))
    yield lambda **options: evaluate.load(
        weighted_robust_accuracy.__file__, cache_dir=str(tmp_path / "metrics"), **options
    )
    for name in [name for name in sys.modules if name.startswith("evaluate_modules")]:
        del sys.modules[name]


@pytest.fixture
def metric(tmp_path):
    return WeightedRobustAccuracy(cache_dir=str(tmp_path))


def in_one_go(metric, **options):
    return metric.compute(predictions=CLEAN, adversarial_predictions=ADVERSARIAL, references=REFERENCES, **options)


def test_values_are_those_worked_out_by_hand(metric):
    assert in_one_go(metric) == pytest.approx(EXPECTED)
    assert in_one_go(metric) == pytest.approx(EXPECTED)  # nothing is left of the first


def test_loading_by_path_gives_the_same_without_a_network(load):
    loaded = load()
    assert type(loaded).__module__.startswith("evaluate_modules")
    assert loaded.name == "weighted_robust_accuracy" and loaded.module_type == "metric"
    assert in_one_go(loaded) == pytest.approx(EXPECTED)
    assert in_one_go(load(clean_weight=0.25)) == pytest.approx(in_one_go(loaded, clean_weight=0.25))


@pytest.mark.parametrize("convert", [list, np.array, torch.tensor])
def test_batches_of_any_kind_give_the_same_as_one_go(metric, convert):
    for rows in (slice(0, 1), slice(1, 4), slice(4, 6)):
        metric.add_batch(
            predictions=convert(CLEAN[rows]),
            adversarial_predictions=convert(ADVERSARIAL[rows]),
            references=convert(REFERENCES[rows]),
        )
    assert metric.compute() == pytest.approx(EXPECTED)


def test_single_images_and_memory_only_give_the_same(tmp_path):
    metric = WeightedRobustAccuracy(cache_dir=str(tmp_path), keep_in_memory=True)
    for clean, adversarial, label in zip(CLEAN, ADVERSARIAL, REFERENCES, strict=True):
        metric.add(
            prediction=None, reference=label, predictions=clean, adversarial_predictions=adversarial, references=label
        )
    assert metric.compute() == pytest.approx(EXPECTED)


def test_weight_of_clean_accuracy(metric, tmp_path):
    assert in_one_go(metric, clean_weight=1.0)["w_robust"] == pytest.approx(4 / 6)
    heavy = WeightedRobustAccuracy(cache_dir=str(tmp_path), clean_weight=0.0)
    assert in_one_go(heavy)["w_robust"] == pytest.approx(3 / 6)
    assert in_one_go(heavy, clean_weight=0.5) == pytest.approx(EXPECTED)
    with pytest.raises(ValueError, match=r"clean_weight=1\.5 is outside"):
        in_one_go(metric, clean_weight=1.5)


def test_worst_class_is_one_that_has_images(metric):
    result = metric.compute(predictions=[5, 5, 7], adversarial_predictions=[5, 0, 7], references=[5, 5, 7])
    assert result["worst_class_robust_accuracy"] == 0.5


def test_missing_unequal_and_impossible_inputs_are_refused(metric):
    with pytest.raises(ValueError, match="adversarial_predictions"):
        metric.compute(predictions=[0], references=[0])
    with pytest.raises(ValueError, match="a reference is -1"):
        metric.compute(predictions=[0, 1], adversarial_predictions=[0, 1], references=[0, -1])


def test_unequal_lengths_are_refused(metric):
    with pytest.raises(ValueError, match="Mismatch in the number"):
        metric.compute(predictions=[0, 1], adversarial_predictions=[0], references=[0, 1])


def test_combined_with_another_metric(metric, tmp_path):
    class Accuracy(evaluate.Metric):
        def _info(self):
            features = {
                name: weighted_robust_accuracy.datasets.Value("int64") for name in ("predictions", "references")
            }
            return evaluate.MetricInfo(
                description="", citation="", features=weighted_robust_accuracy.datasets.Features(features)
            )

        def _compute(self, predictions, references):
            return {"accuracy": float((np.array(predictions) == np.array(references)).mean())}

    both = evaluate.combine([metric, Accuracy(cache_dir=str(tmp_path))])
    both.add_batch(predictions=CLEAN, adversarial_predictions=ADVERSARIAL, references=REFERENCES)
    assert both.compute() == pytest.approx({**EXPECTED, "accuracy": 4 / 6})
