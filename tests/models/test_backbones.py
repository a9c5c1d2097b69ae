"""Families of timm, each by a small member: as student and as both teachers, for one step, saved and loaded again."""

import copy

import pytest
import torch
from conftest import tiny_data
from transformers import AutoModelForImageClassification

from bmtard_hooks import create_model
from bmtard_hooks.models.teachers import as_teacher

SHALLOW = {"depths": [1, 1, 1, 1]}
NARROW = {"embed_dim": 48, "depth": 2, "num_heads": 2}
WINDOWS = {**SHALLOW, "embed_dim": 24, "num_heads": [1, 2, 4, 8]}

FAMILIES = {
    "ResNet": ("resnet10t", {}),
    "ResNeXt": ("resnext50_32x4d", {"layers": [1, 1, 1, 1]}),
    "ResNetV2": ("resnetv2_18", {"layers": [1, 1, 1, 1]}),
    "RegNet": ("regnety_002", {}),
    "DenseNet": ("densenet121", {"block_config": [1, 1, 1, 1]}),
    "VGG": ("vgg11_bn", {"mlp_ratio": 0.01}),
    "DLA": ("dla46x_c", {}),
    "CSPNet": ("cs3darknet_s", {}),
    "HRNet": ("hrnet_w18_small", {}),
    "NFNet": ("test_nfnet", {}),
    "RepVGG": ("repvgg_a0", {}),
    "MobileNetV2": ("mobilenetv2_035", {}),
    "MobileNetV3": ("mobilenetv3_small_050", {}),
    "MobileNetV4": ("mobilenetv4_conv_small_035", {}),
    "EfficientNet": ("test_efficientnet", {}),
    "EfficientNetV2": ("tf_efficientnetv2_b0", {}),
    "MnasNet": ("mnasnet_small", {}),
    "LCNet": ("lcnet_035", {}),
    "GhostNet": ("ghostnet_050", {}),
    "ConvNeXt": ("convnext_atto", SHALLOW),
    "ConvNeXtV2": ("convnextv2_atto", SHALLOW),
    "ViT": ("vit_tiny_patch16_224", {"depth": 2}),
    "DeiT": ("deit_tiny_distilled_patch16_224", {"depth": 2}),
    "DeiT III": ("deit3_small_patch16_224", NARROW),
    "BEiT": ("beit_base_patch16_224", NARROW),
    "EVA-02": ("eva02_tiny_patch14_224", {"depth": 2}),
    "CaiT": ("cait_xxs24_224", {"depth": 2}),
    "XCiT": ("xcit_nano_12_p8_224", {"depth": 2}),
    "PiT": ("pit_ti_224", {"depth": [1, 1, 1]}),
    "Swin": ("swin_tiny_patch4_window7_224", WINDOWS),
    "Swin V2": ("swinv2_tiny_window8_256", WINDOWS),
    "MaxViT": ("test_maxvit", {}),
    "CoAtNet": ("test_coatnet", {}),
    "CoaT": ("coat_lite_tiny", {"serial_depths": [1, 1, 1, 1]}),
    "MLP-Mixer": ("mixer_s32_224", {}),
    "gMLP": ("gmlp_ti16_224", {}),
    "ResMLP": ("resmlp_12_224", {}),
    "PoolFormer": ("poolformer_s12", {}),
    "EdgeNeXt": ("edgenext_xx_small", {"depths": [2, 2, 2, 2]}),
    "MobileViT": ("mobilevit_xxs", {}),
    "LeViT": ("levit_128s", {"depth": [1, 1, 1]}),
    "PVT v2": ("pvt_v2_b0", SHALLOW),
    "EfficientFormerV2": ("efficientformerv2_s0", {"depths": [1, 1, 1, 1]}),
    "FastViT": ("fastvit_t8", {"layers": [1, 1, 1, 1]}),
    "TinyViT": ("tiny_vit_5m_224", SHALLOW),
    "MambaOut": ("test_mambaout", {}),
}

ALWAYS = (
    "ResNet",
    "NFNet",
    "RepVGG",
    "MobileNetV3",
    "EfficientNet",
    "ConvNeXt",
    "ViT",
    "DeiT",
    "BEiT",
    "Swin",
    "MaxViT",
    "LeViT",
)
"""One of every kind: plain and residual, with and without BatchNorm, with a second head, with layers made at first use."""


def built(family):
    name, arguments = FAMILIES[family]
    torch.manual_seed(0)
    return shaken(create_model(name, 4, image_size=32, **arguments))


def shaken(model):
    """The model with other small weights: heads and scales that start at zero would hide what is behind them."""
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.numel() < 100_000:
                parameter.add_(0.02 * torch.randn_like(parameter))
    return model


def families():
    return [pytest.param(name, marks=[] if name in ALWAYS else pytest.mark.exhaustive) for name in FAMILIES]


@pytest.mark.parametrize("family", families())
def test_family_learns_one_step_from_itself_and_survives_saving(family, make_trainer, tmp_path):
    student = built(family)
    teacher = shaken(copy.deepcopy(student))
    before = {name: value.clone() for name, value in student.named_parameters()}
    trainer = make_trainer(
        student,
        tiny_data(2, size=32),
        clean_teacher=teacher,
        robust_teacher=teacher,
        per_device_train_batch_size=2,
        max_steps=1,
        steps=1,
        max_grad_norm=1.0,  # batch statistics of two images are steep
        weight_decay=0.0,  # so that only a gradient moves a weight
    )
    trainer.train()
    after = dict(student.named_parameters())
    moved = [name for name in before if not torch.equal(before[name], after[name])]
    assert len(moved) > len(before) / 2 and all(value.isfinite().all() for value in after.values())

    trainer.save_model(tmp_path / "saved")
    images = torch.rand(2, 3, 32, 32)
    with torch.no_grad():
        logits = student.eval()(images)
        assert logits.isfinite().all()
        assert torch.equal(create_model(str(tmp_path / "saved")).eval()(images), logits)


@pytest.mark.parametrize("family", ["MobileNetV3", "ViT", "Swin"])
def test_saved_family_is_loaded_by_transformers_alone_and_as_a_teacher(family, tmp_path):
    model, images = built(family).eval(), torch.rand(2, 3, 32, 32)
    model.backbone.save_pretrained(tmp_path)
    plain = AutoModelForImageClassification.from_pretrained(tmp_path).eval()
    with torch.no_grad():
        torch.testing.assert_close(plain(model.normalise(images)).logits, model(images))
        torch.testing.assert_close(as_teacher(str(tmp_path))(images), model(images))


@pytest.mark.parametrize(
    "name, size",
    [("ghostnetv2_100", 48), ("inception_v3", 96), ("efficientformer_l1", 224), ("halonet_h1", 256)],
)
def test_family_that_cannot_take_small_images_says_what_it_needs(name, size):
    with pytest.raises(
        ValueError, match=rf"{name} cannot take 32x32 images \(.*\)\. .* {size}: resize .* image_size={size}"
    ):
        create_model(name, 4, image_size=32)
