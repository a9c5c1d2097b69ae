import copy
import logging
from types import SimpleNamespace

import pytest
import torch
from conftest import TinyNet, tiny_data
from scene import short, trained
from torch import nn

from bmtard_hooks import ImageTensors, PixelClassifier, evaluate_robustness
from bmtard_hooks.attacks.base import NonFiniteLogits


@pytest.fixture(scope="module")
def scene():
    return trained()


def test_logits_that_are_not_finite_stop_the_evaluation_and_keep_what_was_computed(scene, tmp_path):
    net, data = scene

    class Breaks(TinyNet):
        calls = 0

        def forward(self, pixel_values):
            logits = super().forward(pixel_values)
            type(self).calls += pixel_values.requires_grad
            return logits * float("nan") if self.calls > 5 and pixel_values.requires_grad else logits

    broken = Breaks(batch_norm=True).eval()
    broken.load_state_dict(net.state_dict())
    with pytest.raises(NonFiniteLogits, match="NaN or infinite"):
        evaluate_robustness(
            broken, data, {"fgsm": "fgsm", "pgd": "pgd_sat"}, state_dir=tmp_path, **short(fold_batch_norm=False)
        )
    assert list(tmp_path.glob("fgsm-*.npz"))


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"mode": "best"}, "columns, worst_case"),
        ({"clean_weight": 2}, r"outside \[0, 1\]"),
        ({"batch_size": 0}, "1 or more"),
        ({"eps": 8}, "8/255"),
        ({"attacks": "pgd_sta"}, "did you mean"),
    ],
)
def test_bad_settings_are_refused_before_anything_is_computed(scene, options, message):
    net, data = scene
    with pytest.raises(ValueError, match=message):
        evaluate_robustness(net, data, **{"attacks": "fgsm", **short(), **options})


def test_data_that_cannot_be_measured_is_refused(scene):
    net, data = scene
    with pytest.raises(ValueError, match="empty"):
        evaluate_robustness(net, [], "fgsm", **short())
    with pytest.raises(ValueError, match=r"must be in \[0, 1\]"):
        evaluate_robustness(net, [(torch.full((3, 8, 8), 2.0), 0)], "fgsm", **short())
    with pytest.raises(ValueError, match="has 4 classes, but the data set has 7"):
        evaluate_robustness(net, ImageTensors(data.images, data.labels + 3), "fgsm", **short())
    with pytest.raises(ValueError, match="cannot take images of shape"):
        evaluate_robustness(net, tiny_data(size=20), "fgsm", **short())


class Normalising(nn.Module):
    """A net that expects pixels in [0, 1] and normalises by itself."""

    def __init__(self, net):
        super().__init__()
        self.net = net

    def forward(self, pixels):
        return self.net((pixels - 0.9) / 0.3)


def test_a_normalisation_too_many_or_too_few_is_named_as_the_likely_cause(scene, caplog):
    net, data = scene[0], tiny_data(80, seed=3)
    inner = Normalising(net).eval()
    with torch.no_grad():
        labels = inner(data.pixels(slice(None))).argmax(1)
    data = ImageTensors(data.images, labels)
    twice = PixelClassifier(inner, [0.9] * 3, [0.3] * 3)
    with caplog.at_level(logging.WARNING):
        report = evaluate_robustness(twice, data, "fgsm", **short())
    assert any("normalised twice" in warning for warning in report.warnings) and "normalised twice" in caplog.text
    assert evaluate_robustness(inner, data, "fgsm", **short()).warnings == []

    with torch.no_grad():
        bare = (data.pixels(slice(None)) - 0.5) / 0.5
        data = ImageTensors(data.images, net(bare).argmax(1))
    report = evaluate_robustness(net, data, "fgsm", **short())
    assert any("with mean and std of 0.5: the network seems to expect" in warning for warning in report.warnings)


def test_a_few_images_or_a_recorded_normalisation_give_no_advice(scene):
    net, data = scene
    with torch.no_grad():
        best = net((data.pixels(slice(None)) - 0.5) / 0.5).argmax(1)
    data = ImageTensors(data.images, best)

    def advice(model, images):
        report = evaluate_robustness(model, images, "fgsm", **short())
        return [warning for warning in report.warnings if "Pass mean= and std=" in warning]

    assert advice(net, data)
    wrong = (net(data.pixels(slice(None))).argmax(1) != best).nonzero().flatten().tolist()
    assert not advice(net, data.subset(wrong[:8]))  # all of them would be right, and yet it may be chance
    assert advice(net, data.subset(wrong[:9]))

    net = copy.deepcopy(net)
    net.config = SimpleNamespace()  # as networks of transformers have one
    assert advice(PixelClassifier(net, [0] * 3, [1] * 3), data)  # which somebody said just now
    assert not advice(PixelClassifier(net), data)  # recorded by the line above


def test_probabilities_in_place_of_logits_are_reported(scene):
    net, data = scene
    report = evaluate_robustness(nn.Sequential(net, nn.Softmax(dim=1)).eval(), data, "fgsm", **short())
    assert any("probabilities" in warning for warning in report.warnings)


def test_check_images_of_few_classes_are_warned_about(scene):
    net, data = scene
    ordered = data.subset(data.labels.argsort())
    first = len(data) // 6
    sorted_report = evaluate_robustness(net, ordered, "fgsm", **short(checks=True, check_images=first))
    assert any(f"the first {first} rows hold 1 of 4 classes" in warning for warning in sorted_report.warnings)
    mixed = evaluate_robustness(net, data, "fgsm", **short(checks=True, check_images=first))
    assert not any("sorted by class" in warning for warning in mixed.warnings)
