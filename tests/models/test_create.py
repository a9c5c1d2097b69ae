import pickle

import pytest
import torch
from conftest import tiny_net
from safetensors.torch import load_file, save_file
from transformers import AutoModelForImageClassification, ViTConfig, ViTForImageClassification, ViTImageProcessor

from bmtard_hooks import create_model, load_teacher
from bmtard_hooks.models.checkpoints import read_state_dict
from bmtard_hooks.models.create import as_classifier, as_student
from bmtard_hooks.models.pixels import PixelClassifier, logits_of
from bmtard_hooks.models.precision import full_precision
from bmtard_hooks.models.teachers import as_teacher

IMAGES = torch.rand(2, 3, 32, 32, generator=torch.Generator().manual_seed(0))


def logits(model):
    with torch.no_grad():
        return model.eval()(IMAGES)


@pytest.fixture(scope="module")
def trained():
    return create_model("resnet8_cifar", 10)


@pytest.mark.parametrize("name", ["resnet8_cifar", "mobilenetv3_small_050", "vit_tiny_patch16_224", "convnext_atto"])
def test_any_timm_name_classifies_small_images(name):
    model = create_model(name, 7, image_size=32)
    assert logits(model).shape == (2, 7) and model.num_classes == 7


@pytest.mark.parametrize("name, size", [("eva02_tiny_patch14_224", 28), ("swin_tiny_patch4_window7_224", 32)])
def test_networks_with_computed_buffers_survive_saving(name, size, tmp_path):
    model, images = create_model(name, 3, image_size=size), IMAGES[..., :size, :size]
    model.backbone.save_pretrained(tmp_path)
    with torch.no_grad():
        torch.testing.assert_close(create_model(str(tmp_path)).eval()(images), model.eval()(images))


def test_weights_are_timms_own_not_the_wrappers():
    # transformers' wrapper draws every layer anew from N(0, 0.02)
    model = create_model("resnet8_cifar", 10)
    assert model.backbone.timm_model.conv1.weight.std() > 0.05


def test_normalisation_happens_inside():
    model = PixelClassifier(tiny_net(0), mean=[0.5, 0.4, 0.3], std=[0.1, 0.2, 0.3])
    small = IMAGES[:, :, :8, :8]
    mean, std = torch.tensor([0.5, 0.4, 0.3]).view(3, 1, 1), torch.tensor([0.1, 0.2, 0.3]).view(3, 1, 1)
    torch.testing.assert_close(model(small), tiny_net(0)((small - mean) / std))
    assert all(key.startswith("backbone.") for key in model.state_dict())


@pytest.mark.parametrize("mean, std", [([0.5], None), ([0.5] * 3, [0.5]), ([0.5] * 3, [0.5, 0.0, 0.5])])
def test_half_a_normalisation_is_refused(mean, std):
    with pytest.raises(ValueError, match="pass both or neither|every std positive"):
        PixelClassifier(tiny_net(0), mean, std)


def vit():
    config = ViTConfig(hidden_size=16, num_hidden_layers=1, num_attention_heads=2, intermediate_size=16, image_size=32,
                       patch_size=8, num_labels=5)  # fmt: skip
    return ViTForImageClassification(config).eval()


def test_transformers_classifier_uses_its_processors_normalisation(tmp_path):
    model, processor = vit(), ViTImageProcessor(image_mean=[0.5, 0.5, 0.5], image_std=[0.25, 0.25, 0.25])
    model.save_pretrained(tmp_path)
    processor.save_pretrained(tmp_path)
    with torch.no_grad():
        expected = model((IMAGES - 0.5) / 0.25).logits
    torch.testing.assert_close(logits(create_model(str(tmp_path))), expected)
    torch.testing.assert_close(logits(as_classifier(model, processor)), expected)


def test_saved_directory_keeps_its_normalisation(tmp_path):
    model = create_model("convnext_atto", 5, image_size=32)
    model.backbone.save_pretrained(tmp_path)
    torch.testing.assert_close(logits(create_model(str(tmp_path))), logits(model))
    with pytest.raises(ValueError, match="has 5 classes, but num_classes=6 was asked for"):
        create_model(str(tmp_path), 6)


def test_recorded_normalisation_is_used_unless_another_is_passed(tmp_path):
    model = PixelClassifier(vit(), mean=[0.4, 0.5, 0.6], std=[0.2, 0.3, 0.25])
    model.backbone.save_pretrained(tmp_path)

    def load():
        return AutoModelForImageClassification.from_pretrained(tmp_path)

    torch.testing.assert_close(logits(PixelClassifier(load())), logits(model))
    assert create_model(str(tmp_path)).remembered and PixelClassifier(load()).remembered
    assert not model.remembered and not create_model("resnet8_cifar", 5).remembered
    bare = PixelClassifier(load(), mean=[0, 0, 0], std=[1, 1, 1])
    torch.testing.assert_close(logits(bare), vit_logits(model.backbone, IMAGES))
    other = PixelClassifier(load(), mean=[0.5] * 3, std=[0.5] * 3)
    torch.testing.assert_close(logits(other), vit_logits(model.backbone, (IMAGES - 0.5) / 0.5))


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float64])
def test_saved_weights_are_loaded_as_float32_whatever_the_files_have(tmp_path, dtype):
    for name, model in (("vit", vit()), ("timm", create_model("resnet8_cifar", 5).backbone)):
        model.to(dtype).save_pretrained(tmp_path / name)
        loaded = create_model(str(tmp_path / name))
        torch.testing.assert_close(logits(loaded), logits(PixelClassifier(model.float())))
        for classifier in (loaded, load_teacher(str(tmp_path / name))):
            assert {weight.dtype for weight in classifier.parameters()} == {torch.float32}


def vit_logits(model, images):
    with torch.no_grad():
        return model.eval()(images).logits


class Wrapped(dict):
    pass


@pytest.mark.parametrize("kind", ["safetensors", "pt", "nested", "module", "lightning"])
def test_teacher_checkpoints_of_every_layout_give_the_same_logits(kind, trained, tmp_path):
    state = trained.backbone.timm_model.state_dict()
    path = tmp_path / ("teacher.safetensors" if kind == "safetensors" else "teacher.pt")
    if kind == "safetensors":
        save_file(state, path)
    else:
        content = {
            "pt": state,
            "nested": {"epoch": 3, "state_dict": state},
            "module": {"net": {f"module.{key}": value for key, value in state.items()}},
            "lightning": {"state_dict": {f"model._orig_mod.{key}": value for key, value in state.items()}},
        }[kind]
        torch.save(content, path)
    teacher = load_teacher("resnet8_cifar", path, num_classes=10)
    torch.testing.assert_close(logits(teacher), logits(trained))
    assert teacher.frozen and not any(parameter.requires_grad for parameter in teacher.parameters())
    assert not teacher.train().training


class Canary:
    fired = False

    def __reduce__(self):
        return (setattr, (Canary, "fired", True))


def test_checkpoint_with_code_in_it_is_refused_and_not_run(tmp_path):
    path = tmp_path / "evil.pt"
    torch.save({"state_dict": {"weight": torch.zeros(1)}, "extra": Canary()}, path)
    with pytest.raises(ValueError, match="was refused: it holds more than tensors, and reading it would run code"):
        load_teacher("resnet8_cifar", path, num_classes=10)
    (tmp_path / "plain.pth").write_bytes(pickle.dumps(Canary(), protocol=2))
    with pytest.raises(ValueError, match=r"plain\.pth was refused|is not a whole"):
        load_teacher("resnet8_cifar", tmp_path / "plain.pth", num_classes=10)
    assert not Canary.fired


@pytest.mark.parametrize("suffix", [".pt", ".safetensors"])
def test_truncated_checkpoint_is_refused(suffix, trained, tmp_path):
    path = tmp_path / f"teacher{suffix}"
    state = trained.backbone.timm_model.state_dict()
    save_file(state, path) if suffix == ".safetensors" else torch.save(state, path)
    path.write_bytes(path.read_bytes()[:5000])
    with pytest.raises(ValueError, match="is not a whole"):
        load_teacher("resnet8_cifar", path, num_classes=10)


def test_checkpoint_of_another_architecture_lists_keys_and_shapes(trained, tmp_path):
    path = tmp_path / "teacher.safetensors"
    save_file(trained.backbone.timm_model.state_dict(), path)
    with pytest.raises(
        ValueError, match=r"(?s)does not fit CifarResNet.*missing from the file: layer1\.1.*in the model: none"
    ):
        load_teacher("resnet20_cifar", path, num_classes=10)
    with pytest.raises(ValueError, match=r"(?s)other shapes: .*: file \(10,.*\), model \(100"):
        load_teacher("resnet8_cifar", path, num_classes=100)


def test_file_without_tensors_is_refused(tmp_path):
    torch.save({"epoch": 1, "args": {"lr": 0.1}}, tmp_path / "odd.pt")
    with pytest.raises(ValueError, match="holds no state dict"):
        read_state_dict(tmp_path / "odd.pt")
    with pytest.raises(FileNotFoundError, match=r"missing\.pt does not exist"):
        read_state_dict(tmp_path / "missing.pt")


def test_teacher_without_weights_is_refused():
    with pytest.raises(ValueError, match="would have random weights: pass checkpoint=FILE"):
        load_teacher("resnet8_cifar", num_classes=10)


def test_saved_teacher_without_its_last_layer_is_refused_but_a_student_may_learn_one(trained, tmp_path):
    trained.backbone.save_pretrained(tmp_path)
    weights = load_file(tmp_path / "model.safetensors")
    kept = {name: value for name, value in weights.items() if "linear" not in name}
    assert 0 < len(weights) - len(kept) <= 2
    save_file(kept, tmp_path / "model.safetensors", metadata={"format": "pt"})
    with pytest.raises(
        ValueError, match=r"lacks 2 of its weights \(timm_model\.linear\.bias, .* would be random: fine-tune it"
    ):
        load_teacher(str(tmp_path))
    assert create_model(str(tmp_path)).num_classes == trained.num_classes


def test_teacher_can_be_a_directory_or_a_module(trained, tmp_path):
    trained.backbone.save_pretrained(tmp_path)
    torch.testing.assert_close(logits(as_teacher(str(tmp_path))), logits(trained))
    assert as_teacher(tiny_net(0)).frozen


def test_logits_are_found_in_every_kind_of_output():
    values = torch.rand(2, 3)
    holder = type("Output", (), {"logits": values})()
    for output in (values, holder, {"logits": values}, (values, "rest")):
        assert logits_of(output) is values
    with pytest.raises(TypeError, match="the model returned str"):
        logits_of("nothing")


def test_full_precision_hides_a_replaced_forward_only_inside():
    net = tiny_net(0)
    net._original_forward = net.forward  # as Accelerate does
    net.forward = lambda pixels: "replaced"
    with full_precision(net):
        assert isinstance(net(torch.rand(1, 3, 8, 8)), torch.Tensor)
    assert net(None) == "replaced"


def test_timm_network_with_unrecorded_arguments_is_trained_but_said_to_lack_a_config(caplog):
    import timm

    network = timm.create_model("vit_tiny_patch16_224", num_classes=3, img_size=32, depth=1)
    student = as_student(network)
    assert student.backbone is network and "without a config" in caplog.text


def test_pretrained_teacher_with_another_class_count_is_refused():
    with pytest.raises(
        ValueError, match="pretrained on 1000 classes; with num_classes=7 its last layer would be random"
    ):
        load_teacher("resnet18", num_classes=7, pretrained=True)
    with pytest.raises(ValueError, match="timm has no pretrained weights for 'resnet8_cifar'"):
        as_teacher("resnet8_cifar")


def test_pretrained_student_that_cannot_be_had_is_refused_in_words():
    with pytest.raises(ValueError, match="timm has no pretrained weights for 'resnet8_cifar': pass checkpoint=FILE"):
        create_model("resnet8_cifar", 10, pretrained=True)
    with pytest.raises(ValueError, match="timm's weights of 'resnet18' cannot be loaded .*unset HF_HUB_OFFLINE"):
        create_model("resnet18", 10, pretrained=True)


def test_pretrained_teacher_takes_its_own_class_count(monkeypatch):
    import timm

    made, original = [], timm.create_model
    monkeypatch.setattr(
        timm, "create_model", lambda *a, pretrained, **k: made.append((pretrained, k)) or original(*a, **k)
    )
    assert as_teacher("mobilenetv3_small_050").num_classes == 1000
    assert made[0] == (True, {"num_classes": 1000})


def test_grey_images_get_one_mean_and_std(tmp_path):
    model = create_model("convnext_atto", 3, in_chans=1, image_size=32)
    grey = IMAGES[:, :1]
    with torch.no_grad():
        expected = model.eval()(grey)
        model.backbone.save_pretrained(tmp_path)
        torch.testing.assert_close(create_model(str(tmp_path)).eval()(grey), expected)
    assert expected.shape == (2, 3) and model.mean.shape == (1, 1, 1, 1)


def test_arguments_that_cannot_be_saved_are_refused_at_once():
    with pytest.raises(ValueError, match=r"the arguments \['act_layer'\] of resnet18 cannot be written into a config"):
        create_model("resnet18", 4, act_layer=torch.nn.SiLU)


def test_network_that_its_name_does_not_describe_is_not_wrapped(caplog):
    import timm

    network = timm.create_model("resnet8_cifar", num_classes=3, global_pool="max")
    assert as_student(network).backbone is network and "computes something else" in caplog.text


def test_processor_that_does_not_normalise_is_believed(caplog):
    processor = ViTImageProcessor(image_mean=[0.5] * 3, image_std=[0.25] * 3, do_normalize=False)
    assert as_classifier(vit(), processor).mean is None
    assert as_classifier(vit()).mean is None and "came without an image processor" in caplog.text
