"""Bytes as pixels, and what serves a finished network: traced, exported, compiled, quantised."""

import copy

import pytest
import torch
from conftest import tiny_data, tiny_net
from torch import nn

from bmtard_hooks import PixelClassifier, create_model, evaluate_robustness
from bmtard_hooks.models.folding import FoldedClassifier

BYTES = torch.randint(0, 256, (3, 3, 32, 32), dtype=torch.uint8, generator=torch.Generator().manual_seed(0))
PIXELS = BYTES / 255
NORMALISATIONS = {"none": {}, "own": {"mean": [0.5, 0.4, 0.3], "std": [0.2, 0.3, 0.4]}}


def network(**options):
    with torch.random.fork_rng():
        torch.manual_seed(0)
        return create_model("resnet8_cifar", 4, **options).eval()


@pytest.mark.parametrize("options", NORMALISATIONS.values(), ids=NORMALISATIONS)
@torch.no_grad()
def test_bytes_are_pixels_for_a_classifier_and_for_its_folded_copy(options):
    model = network(**options)
    expected = model(PIXELS)
    torch.testing.assert_close(model(BYTES), expected)
    torch.testing.assert_close(FoldedClassifier(model)(BYTES), expected)
    torch.testing.assert_close(torch.compile(model, backend="eager")(BYTES), expected)


def test_whole_numbers_of_unknown_range_are_refused():
    with pytest.raises(TypeError, match=r"torch.int64: pass uint8 \(0 to 255\) or floats"):
        PixelClassifier(nn.Flatten())(BYTES.long())


@pytest.mark.filterwarnings("ignore::FutureWarning", "ignore::DeprecationWarning")  # of torch.jit, in newer releases
@pytest.mark.parametrize("images", [PIXELS, BYTES], ids=["floats", "bytes"])
@torch.no_grad()
def test_traced_and_exported_classifiers_answer_alike(images):
    model = network(**NORMALISATIONS["own"])
    traced = torch.jit.trace(model, images[:1])
    batch = torch.export.Dim("batch", min=1, max=64)
    exported = torch.export.export(model, (images[:2],), dynamic_shapes=({0: batch},)).module()
    for serving in (traced, exported):
        for count in (1, 3):
            torch.testing.assert_close(serving(images[:count]), model(PIXELS[:count]))


def quantised(model):
    return torch.ao.quantization.quantize_dynamic(copy.deepcopy(model), {nn.Linear}, dtype=torch.qint8)


QUANTISING = pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore::FutureWarning", "ignore::UserWarning")


@QUANTISING
def test_quantised_network_is_saved_and_loaded(tmp_path):
    model = quantised(network())
    torch.save(model.state_dict(), tmp_path / "int8.pt")
    other = quantised(create_model("resnet8_cifar", 4).eval())
    other.load_state_dict(torch.load(tmp_path / "int8.pt", weights_only=True))
    with torch.no_grad():
        torch.testing.assert_close(other(PIXELS), model(PIXELS))


@QUANTISING
@pytest.mark.parametrize("is_function", [False, True])
def test_quantised_network_is_evaluated_and_fails_the_checks_for_want_of_gradients(is_function, tmp_path):
    data, model = tiny_data(12), quantised(PixelClassifier(tiny_net(0)).eval())
    with torch.no_grad():
        data.labels[:] = model(data.pixels(slice(None))).argmax(1)
    report = evaluate_robustness(
        (lambda pixels: model(pixels)) if is_function else model, data, ["pgd_sat", "square:queries=5"],
        check_images=4, examples=0, state_dir=tmp_path, progress=False, device="cpu",
    )  # fmt: skip
    assert report.correct.all() and report.verdict.startswith("FAILED")
    assert "A3" in [check.id for check in report.failed_checks]


def test_exported_network_is_evaluated_as_the_network_is():
    data, model = tiny_data(12), PixelClassifier(tiny_net(0), [0.5] * 3, [0.25] * 3).eval()
    with torch.no_grad():
        data.labels[:] = model(data.pixels(slice(None))).argmax(1)
    batch = torch.export.Dim("batch", min=1, max=512)
    shown = (data.pixels(slice(0, 4)),)
    exported = torch.export.export(model, shown, dynamic_shapes=({0: batch},)).module()
    options = {"checks": False, "progress": False, "device": "cpu", "examples": 0}
    expected, found = (evaluate_robustness(network, data, "pgd_sat", **options) for network in (model, exported))
    assert found.row("pgd_sat").robust == expected.row("pgd_sat").robust < 1
    half = torch.export.export(model.double(), (shown[0].double(),), dynamic_shapes=({0: batch},)).module()
    with pytest.raises(ValueError, match="torch.float64 weights"):
        evaluate_robustness(half, data, "pgd_sat", **options)
