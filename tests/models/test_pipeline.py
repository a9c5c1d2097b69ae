"""A saved network gives the same answers in transformers' pipeline, which scales and normalises pictures by its config."""

import numpy as np
import pytest
import torch
from PIL import Image
from transformers import (
    AutoImageProcessor,
    ResNetConfig,
    ResNetForImageClassification,
    ViTImageProcessor,
    pipeline,
)

from bmtard_hooks import BMTARDConfig, BMTARDTrainer, ImageTensors, PGDCollator, PixelClassifier, create_model

NAMES = ["ant", "bee", "cat"]
BUILT = {
    "usual size": ("resnet8_cifar", 32, {}),
    "own normalisation": ("resnet8_cifar", 32, {"mean": [0.4, 0.5, 0.6], "std": [0.2, 0.3, 0.25]}),
    "smaller than usual": ("mobilenetv3_small_050", 64, {"image_size": 64}),
    "built for its size": ("vit_tiny_patch16_224", 32, {"image_size": 32, "patch_size": 4, "depth": 1}),
}


def picture(size):
    return Image.fromarray(np.random.default_rng(0).integers(0, 256, (size, size, 3), dtype=np.uint8))


def answers(directory, shown):
    classify = pipeline("image-classification", model=str(directory), device="cpu")
    return {found["label"]: found["score"] for found in classify(shown, top_k=3)}


def expected(model, shown):
    pixels = torch.tensor(np.asarray(shown)).permute(2, 0, 1)[None] / 255
    with torch.no_grad():
        return model.eval()(pixels).softmax(dim=1)[0].tolist()


def test_image_size_survives_loading_and_saving_again(tmp_path):
    create_model("vit_tiny_patch16_224", 3, image_size=32, patch_size=4, depth=1).backbone.save_pretrained(
        tmp_path / "a"
    )
    create_model(str(tmp_path / "a")).backbone.save_pretrained(tmp_path / "b")
    assert answers(tmp_path / "a", picture(48)) == answers(tmp_path / "b", picture(48))
    told = create_model(str(tmp_path / "a"), image_size=32)
    assert told.backbone.config.pretrained_cfg["input_size"] == [3, 32, 32]


def test_image_size_of_a_stream_is_recorded_too(tmp_path):
    class Stream(torch.utils.data.IterableDataset):
        def __iter__(self):
            yield from ({"pixel_values": torch.rand(3, 48, 40), "labels": i % 3} for i in range(12))

    config = BMTARDConfig(
        output_dir=str(tmp_path), method="natural", max_steps=1, use_cpu=True, per_device_train_batch_size=6,
        report_to=[], disable_tqdm=True, fold_batch_norm=False,
    )  # fmt: skip
    trainer = BMTARDTrainer(create_model("mobilenetv3_small_050", 3), config, PGDCollator(), Stream())
    trainer.train()
    assert trainer.model.config.pretrained_cfg["input_size"] == [3, 48, 40]


@pytest.mark.parametrize("case", BUILT)
def test_pipeline_answers_as_the_network_does(tmp_path, case):
    name, size, options = BUILT[case]
    model = create_model(name, 3, **options)
    model.backbone.save_pretrained(tmp_path)
    found = answers(tmp_path, picture(size))
    assert [found[f"LABEL_{index}"] for index in range(3)] == pytest.approx(expected(model, picture(size)), abs=1e-5)


def hub_network():
    config = ResNetConfig(
        embedding_size=16, hidden_sizes=[16, 16], depths=[1, 1], layer_type="basic", id2label=dict(enumerate(NAMES))
    )
    return ResNetForImageClassification(config)


def trained_and_saved(student, directory, **options):
    images = torch.randint(0, 256, (6, 3, 24, 40), dtype=torch.uint8)
    config = BMTARDConfig(
        output_dir=str(directory), method="natural", max_steps=1, use_cpu=True, per_device_train_batch_size=6,
        report_to=[], disable_tqdm=True, save_steps=1,
    )  # fmt: skip
    data = ImageTensors(images, torch.arange(6) % 3, NAMES)
    trainer = BMTARDTrainer(student, config, PGDCollator(), data, **options)
    trainer.train()
    trainer.save_model()
    return images, trainer.student.eval()


@pytest.mark.parametrize("mean, std", [([0.4, 0.5, 0.6], [0.2, 0.3, 0.25]), (None, None)])
def test_network_without_a_processor_is_saved_with_one_that_shows_it_what_it_was_trained_on(tmp_path, mean, std):
    images, student = trained_and_saved(PixelClassifier(hub_network(), mean, std), tmp_path)
    with torch.no_grad():
        wanted = student(images)
    for directory in (tmp_path, tmp_path / "checkpoint-1"):
        pictures = [Image.fromarray(image.permute(1, 2, 0).numpy()) for image in images]
        classify = pipeline("image-classification", model=str(directory), device="cpu", function_to_apply="none")
        given = [{found["label"]: found["score"] for found in row} for row in classify(pictures, top_k=3)]
        torch.testing.assert_close(torch.tensor([[row[name] for name in NAMES] for row in given]), wanted,
                                   rtol=0, atol=1e-5)  # fmt: skip
        with torch.no_grad():
            torch.testing.assert_close(create_model(str(directory)).eval()(images), wanted)


def test_processor_that_was_passed_is_the_one_that_is_saved(tmp_path):
    given = ViTImageProcessor(size={"height": 24, "width": 40}, image_mean=[0.1] * 3, image_std=[0.3] * 3)
    trained_and_saved(hub_network(), tmp_path, processing_class=given)
    assert list(AutoImageProcessor.from_pretrained(tmp_path).image_mean) == [0.1] * 3


def test_processor_is_described_for_rgb_images_of_a_known_size_only():
    classifier = PixelClassifier(hub_network(), [0.5] * 3, [0.5] * 3)
    assert classifier.processor_settings() is None
    classifier.record_image_size(1, 24, 40)
    assert classifier.processor_settings() is None
    timm_network = create_model("resnet8_cifar", 3, image_size=32)
    assert timm_network.image_shape == (3, 32, 32) and timm_network.processor_settings() is None


def test_trained_student_is_shown_pictures_of_the_size_and_under_the_names_it_was_trained_with(tmp_path):
    images = torch.randint(0, 256, (6, 3, 48, 48), dtype=torch.uint8)
    config = BMTARDConfig(
        output_dir=str(tmp_path), method="natural", max_steps=1, use_cpu=True, per_device_train_batch_size=6,
        report_to=[], disable_tqdm=True, fold_batch_norm=False,
    )  # fmt: skip
    student = create_model("mobilenetv3_small_050", 3)  # which nobody told the size
    trainer = BMTARDTrainer(student, config, PGDCollator(), ImageTensors(images, torch.arange(6) % 3, NAMES))
    trainer.train()
    trainer.save_model()
    assert list(trainer.model.config.pretrained_cfg["input_size"]) == [3, 48, 48]
    found = answers(tmp_path, picture(48))
    assert [found[name] for name in NAMES] == pytest.approx(expected(student, picture(48)), abs=1e-5)
    assert create_model("mobilenetv3_small_050", 3).backbone.config.pretrained_cfg["input_size"][1] != 48
