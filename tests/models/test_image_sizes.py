"""What image sizes networks take, and how those that refuse one say so."""

import copy

import pytest
import torch

from bmtard_hooks import create_model
from bmtard_hooks.models.create import as_classifier, as_student
from bmtard_hooks.models.teachers import try_classifier

IMAGES = torch.rand(2, 3, 32, 32, generator=torch.Generator().manual_seed(0))


def logits(model):
    with torch.no_grad():
        return model.eval()(IMAGES)


@pytest.mark.parametrize(
    "name, arguments, message",
    [
        ("vit_tiny_patch16_224", {"depht": 1}, "has no argument 'depht': did you mean depth.*It takes .*patch_size"),
        ("resnet10t", {"img_size": 32}, "has no argument 'img_size': did you mean image_size"),
        ("resnet8_cifar", {"widths": [4, 8, 16]}, "sets widths itself: leave it out"),
        ("resnet10t", {"image_size": 0}, r"image_size=0 is not a size: pass the side in pixels, or \(height, width\)"),
        ("resnet10t", {"image_size": (8, 8, 3)}, r"image_size=\(8, 8, 3\) is not a size"),
        ("vit_tiny_patch16_224", {"image_size": 8}, "cannot take 8x8 images .*image_size=16, or .* pass patch_size=4"),
        (
            "ghostnetv2_100",
            {"image_size": (64, 32), "in_chans": 1},
            "cannot take 64x32 images .* the next above .* is 96",
        ),
    ],
)
def test_architecture_arguments_that_do_not_fit_are_explained(name, arguments, message):
    with pytest.raises(ValueError, match=f"^{name} {message}|^{message}"):
        create_model(name, 4, **arguments)


def test_oblong_images_reach_networks_that_must_know_their_size(tmp_path):
    model, images = (
        create_model("vit_tiny_patch16_224", 3, image_size=(32, 64), depth=1).eval(),
        torch.rand(2, 3, 32, 64),
    )
    model.backbone.save_pretrained(tmp_path)
    with torch.no_grad():
        torch.testing.assert_close(create_model(str(tmp_path), image_size=(32, 64)).eval()(images), model(images))
    with pytest.raises(ValueError, match=r"cannot take 64x32 images: Input height \(64\) doesn't match model \(32\)"):
        create_model(str(tmp_path), image_size=(64, 32))


@pytest.mark.parametrize(
    "name, message",
    [
        (
            "vit_tiny_patch16_224",
            r"works is 224: resize all images to 224x224, or .* create_model\('vit.*image_size=32\)$",
        ),
        ("ghostnetv2_100", "works is 48: resize all images to 48x48$"),
        ("efficientformer_l1", "works is 224: resize all images to 224x224$"),  # no argument makes it for 32x32
    ],
)
def test_model_that_cannot_take_the_training_images_says_what_it_needs(name, message):
    model = create_model(name, 4)
    with pytest.raises(ValueError, match=rf"the student cannot take images of shape \(3, 32, 32\): .*{message}"):
        try_classifier("student", model, IMAGES)
    assert model.training


def test_size_is_not_blamed_for_another_fault():
    with pytest.raises(ValueError) as raised:
        try_classifier("clean teacher", create_model("resnet8_cifar", 4), IMAGES[:, :1])
    assert "expected input" in str(raised.value) and "resize" not in str(raised.value)


def test_bare_network_built_for_small_images_is_saved_with_its_size(tmp_path):
    import timm

    student = as_student(timm.create_model("test_vit", num_classes=3, img_size=32))
    assert student.backbone.config.model_args == {"img_size": 32}
    student.backbone.save_pretrained(tmp_path)
    torch.testing.assert_close(logits(create_model(str(tmp_path))), logits(student))


def test_weights_with_several_names_are_saved_and_saved_again(tmp_path):
    model = create_model("coat_lite_tiny", 3, image_size=32, serial_depths=[2, 1, 1, 1])
    names = [name for name, _ in model.named_parameters(remove_duplicate=False)]
    assert len(names) > len(list(model.parameters()))
    model.backbone.save_pretrained(tmp_path / "once")
    again = create_model(str(tmp_path / "once"))
    again.backbone.save_pretrained(tmp_path / "twice")
    assert torch.equal(logits(create_model(str(tmp_path / "twice"))), logits(model))


def test_attention_biases_of_old_weights_are_not_remembered():
    # timm's LeViT keeps them in eval mode, where an attack or an evaluation leaves them behind for the next one
    model = create_model("levit_128s", 3, image_size=32, depth=[1, 1, 1]).eval()
    logits(model)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if name.endswith("attention_biases"):
                parameter.normal_()
    fresh = copy.deepcopy(model)
    with torch.no_grad():
        assert torch.equal(model(IMAGES), fresh.train().eval()(IMAGES))


def test_distilled_network_answers_with_the_mean_of_its_heads_in_train_mode():
    import timm

    network = timm.create_model("deit_tiny_distilled_patch16_224", num_classes=3, img_size=32, depth=1)
    network.set_distilled_training(True)
    student = as_classifier(network).train()
    torch.testing.assert_close(student(IMAGES), logits(student))


def test_first_convolution_that_does_not_see_the_image_does_not_tell_its_channels():
    import timm

    with torch.device("meta"):
        network = timm.create_model("csatv2")  # its first convolution has 64 inputs
    assert as_classifier(network).mean.flatten().tolist() == pytest.approx([0.485, 0.456, 0.406])
