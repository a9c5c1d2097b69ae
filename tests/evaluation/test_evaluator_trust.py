"""What would make a report say something that was not measured."""

import numpy as np
import pytest
import torch
from conftest import TinyNet, tiny_data, tiny_net
from scene import short, trained
from torch import nn

from bmtard_hooks import ImageTensors, PixelClassifier, evaluate_robustness
from bmtard_hooks.attacks.gradient import PGD
from bmtard_hooks.reporting.presentation import strongest


@pytest.fixture(scope="module")
def scene():
    return trained()


class Rounding(nn.Module):
    """Has the weights of a net and hides its gradients."""

    def __init__(self, net):
        super().__init__()
        self.net = net

    def forward(self, pixels):
        return self.net((pixels * 8).round() / 8)


def test_a_union_speaks_only_of_the_images_its_attacks_were_meant_for(scene):
    net, data = scene
    report = evaluate_robustness(
        net, data, {"fgsm": "fgsm", "pgd": "pgd_sat", "few": "autoattack:images=6,eps=0.3"}, **short()
    )
    row = report.row("few")
    assert row.images == 6 and row.robust == 0
    assert report.columns["worst_case"] == ["fgsm", "pgd"] and report.row("worst_case").images == 40
    assert any("few/apgd_ce" in warning and "not part of the worst case" in warning for warning in report.warnings)
    assert strongest(report).column in ("pgd", "worst_case")


def test_the_worst_case_does_not_mix_radii(scene):
    net, data = scene
    words = ["pgd_sat:eps=1/255", "fgsm:eps=1/255", "pgd_sat:eps=64/255"]
    report = evaluate_robustness(net, data, words, **short())
    assert report.columns["worst_case"] == words[:2]
    assert strongest(report).column in (words[0], "worst_case")
    worst = evaluate_robustness(net, data, words, mode="worst_case", **short())
    assert worst.columns == {"worst_case": [words[1], words[0]]}
    assert any("pgd_sat:eps=64/255 not run" in warning for warning in worst.warnings)


def test_worst_case_mode_runs_with_the_checks(scene):
    net, data = scene
    report = evaluate_robustness(
        net, data, ["fgsm", "spsa:steps=1,pairs=2"], mode="worst_case", **short(checks=True, check_images=4)
    )
    assert {check.id: check.status for check in report.checks}["P2"] == "not run"


@pytest.mark.parametrize(
    "change",
    [
        lambda net: PixelClassifier(net, [0.4] * 3, [0.02] * 3),
        lambda net: Rounding(net),
    ],
    ids=["normalisation", "forward"],
)
def test_state_of_the_same_weights_used_otherwise_is_not_taken_up(scene, tmp_path, change):
    net, data = scene
    evaluate_robustness(net, data, "pgd_sat", state_dir=tmp_path, **short())
    again = evaluate_robustness(change(net).eval(), data, "pgd_sat", state_dir=tmp_path, **short())
    fresh = evaluate_robustness(change(net).eval(), data, "pgd_sat", **short())
    assert np.array_equal(again.robust("pgd_sat"), fresh.robust("pgd_sat"))


def test_state_of_another_surrogate_or_somebody_elses_code_is_not_taken_up(scene, tmp_path):
    net, data = scene
    for seed in (1, 2):
        surrogate = tiny_net(seed).eval()
        kept, fresh = (
            evaluate_robustness(net, data, "transfer_pgd", surrogate=surrogate, state_dir=place, **short(eps=0.1))
            for place in (tmp_path, None)
        )
        assert np.array_equal(kept.robust("transfer_pgd"), fresh.robust("transfer_pgd"))

    def shifting(by):
        def attack(images, labels):
            pixels = images.requires_grad_(True)
            loss = nn.functional.cross_entropy(net(pixels), labels)
            return (images + by * torch.autograd.grad(loss, pixels)[0].sign()).clamp(0, 1).detach()

        return attack

    calls = [
        evaluate_robustness(net, data, {"mine": shifting(by)}, state_dir=tmp_path, **short(eps=0.2)) for by in (0, 0.2)
    ]
    assert not np.array_equal(calls[0].robust("mine"), calls[1].robust("mine"))


def test_damaged_state_is_measured_again(scene, tmp_path, caplog):
    net, data = scene
    whole = evaluate_robustness(net, data, "pgd_sat", state_dir=tmp_path, **short())
    (path,) = tmp_path.glob("*.npz")
    for content in (b"", path.read_bytes()[:50], b"nonsense"):
        path.write_bytes(content)
        again = evaluate_robustness(net, data, "pgd_sat", state_dir=tmp_path, **short())
        assert np.array_equal(again.robust("pgd_sat"), whole.robust("pgd_sat"))
    assert "is damaged" in caplog.text


def test_a_model_that_cuts_its_gradient_fails_the_checks_instead_of_stopping_them(scene):
    net, data = scene

    class Cut(TinyNet):
        def forward(self, pixel_values):
            with torch.no_grad():
                return super().forward(pixel_values)

    cut = Cut(batch_norm=True).eval()
    cut.load_state_dict(net.state_dict())
    report = evaluate_robustness(
        cut, data, ["fgsm", "pgd_sat", "cw_inf", "apgd_ce", "square"], **short(checks=True, check_images=20)
    )
    assert "A3" in [check.id for check in report.failed_checks] and report.verdict.startswith("FAILED")


def test_a_forward_that_the_user_put_on_the_object_is_what_is_measured(scene):
    _, data = scene
    net = tiny_net(0).eval()
    net.forward = lambda pixels: torch.eye(4)[torch.zeros(len(pixels), dtype=torch.long)]
    report = evaluate_robustness(net, data, "fgsm", **short())
    assert (report.predictions == 0).all()


def test_without_a_correct_image_nothing_is_said_to_have_passed(scene):
    net, data = scene
    wrong = ImageTensors(
        data.images, (torch.from_numpy(evaluate_robustness(net, data, "fgsm", **short()).predictions) + 1) % 4
    )
    report = evaluate_robustness(net, wrong, "fgsm", **short(checks=True))
    assert report.verdict.startswith("No image is classified correctly")


def test_honest_models_pass_the_check_of_large_radii_in_l2(scene):
    net, data = scene
    for eps in (0.02, 0.5):
        report = evaluate_robustness(net, data, "pgd_sat", norm="l2", eps=eps, **short(checks=True, check_images=20))
        assert {check.id: check.status for check in report.checks}["A4"] == "pass", eps


def test_models_of_one_channel_and_functions_are_measured():
    net = tiny_net(0, channels=1).eval()
    images = tiny_data(6).images[:, :1]
    data = ImageTensors(images, net(images.float() / 255).argmax(1))
    assert evaluate_robustness(net, data, "fgsm", **short()).correct.all()
    report = evaluate_robustness(lambda pixels: net(pixels), data, "fgsm", **short())
    assert report.correct.all() and report.row("fgsm").robust < 1


def test_the_users_config_is_not_written_to():
    import timm
    from transformers import TimmWrapperConfig, TimmWrapperForImageClassification

    model = TimmWrapperForImageClassification(TimmWrapperConfig(architecture="resnet8_cifar", num_labels=4)).eval()
    before = model.config.to_dict()
    evaluate_robustness(model, tiny_data(4, size=32), "fgsm", **short())
    assert model.config.to_dict() == before
    grey = timm.create_model("resnet18", num_classes=4, in_chans=1).eval()
    data = ImageTensors(tiny_data(2, size=32).images[:, :1], torch.tensor([0, 1]))
    assert evaluate_robustness(grey, data, "fgsm", **short()).num_classes == 4


@pytest.mark.parametrize(
    ("model", "options", "message"),
    [
        (lambda: tiny_net(0).double(), {}, "float64 weights"),
        (lambda: "outputs/nowhere", {}, "is no directory here, nor a hub id that can be read"),
        (lambda: tiny_net(0), {"device": "nonsense"}, "device='nonsense' is unknown"),
        (lambda: tiny_net(0), {"attacks": {"pgd": PGD(eps=0.1)}, "mode": "best"}, "columns, worst_case"),
    ],
)
def test_models_and_devices_that_cannot_be_used_are_named(scene, model, options, message):
    with pytest.raises(ValueError, match=message):
        evaluate_robustness(model(), scene[1], **{"attacks": "fgsm", **short(), **options})
