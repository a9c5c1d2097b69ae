"""What an image processor does to colours is what the network sees in pixel space, or the processor is refused."""

import logging

import numpy as np
import pytest
import torch
from PIL import Image
from transformers import (
    BitImageProcessor,
    EfficientNetImageProcessor,
    MobileViTImageProcessor,
    ResNetConfig,
    ResNetForImageClassification,
    ViTImageProcessor,
)

from bmtard_hooks import BMTARDConfig, BMTARDTrainer, ImageTensors, PixelClassifier, create_model
from bmtard_hooks.models.processors import normalisation_of

SIDE = {"size": {"height": 32, "width": 32}}
PROCESSORS = {
    "usual": ViTImageProcessor(**SIDE),
    "no normalisation": ViTImageProcessor(do_normalize=False, **SIDE),
    "levels": ViTImageProcessor(do_rescale=False, image_mean=[127.5, 120, 110], image_std=[60, 61, 62], **SIDE),
    "another factor": ViTImageProcessor(rescale_factor=1 / 127.5, **SIDE),
    "divided twice": EfficientNetImageProcessor(image_std=[0.2, 0.3, 0.4], **SIDE),
    "offset": EfficientNetImageProcessor(rescale_offset=True, rescale_factor=1 / 127.5, include_top=False, **SIDE),
    "cropped": BitImageProcessor(size={"shortest_edge": 32}, crop_size={"height": 32, "width": 32}),
}


def network():
    config = ResNetConfig(embedding_size=8, hidden_sizes=[8, 8], depths=[1, 1], layer_type="basic", num_labels=3)
    return ResNetForImageClassification(config)


def picture():
    return Image.fromarray(np.random.default_rng(0).integers(0, 256, (32, 32, 3), dtype=np.uint8))


@pytest.mark.parametrize("kind", PROCESSORS)
def test_saved_network_with_a_processor_sees_what_the_processor_gives(tmp_path, kind):
    network().save_pretrained(tmp_path)
    PROCESSORS[kind].save_pretrained(tmp_path)
    classifier = create_model(str(tmp_path))
    pixels = torch.tensor(np.asarray(picture())).permute(2, 0, 1)[None] / 255
    expected = PROCESSORS[kind](images=[picture()], return_tensors="pt")["pixel_values"]
    assert torch.allclose(classifier.normalise(pixels), expected.float(), atol=1e-4)


def test_usual_numbers_are_taken_over_to_the_bit():
    usual = PROCESSORS["cropped"]
    assert normalisation_of(usual) == (list(usual.image_mean), list(usual.image_std))


def test_processor_that_exchanges_channels_is_refused(tmp_path):
    network().save_pretrained(tmp_path)
    MobileViTImageProcessor(size={"shortest_edge": 32}, crop_size={"height": 32, "width": 32}).save_pretrained(
        tmp_path
    )
    with pytest.raises(ValueError, match="MobileViTImageProcessor does more to colours .* It may exchange channels"):
        create_model(str(tmp_path))


def test_processor_that_cannot_be_tried_is_taken_at_its_word(caplog):
    class Strange:
        image_mean, image_std = [0.1, 0.2, 0.3], [0.5, 0.5, 0.5]

    with caplog.at_level(logging.DEBUG):
        assert normalisation_of(Strange()) == ([0.1, 0.2, 0.3], [0.5, 0.5, 0.5])
    assert "could not be tried" in caplog.text


@pytest.mark.parametrize("side, told", [(32, False), (64, True)])
def test_processor_of_another_size_than_the_training_images_is_told(tmp_path, caplog, side, told):
    config = BMTARDConfig(
        output_dir=str(tmp_path), method="natural", use_cpu=True, report_to=[], max_steps=1, disable_tqdm=True
    )
    data = ImageTensors(torch.zeros(4, 3, 32, 32, dtype=torch.uint8), torch.arange(4) % 3)
    processor = ViTImageProcessor(size={"height": side, "width": side})
    with caplog.at_level(logging.WARNING):
        BMTARDTrainer(network(), config, train_dataset=data, processing_class=processor).train()
    assert ("brings such pictures to 64x64" in caplog.text) == told


@pytest.mark.parametrize("mean, refused", [(0.5, False), (0.4, True), (None, True)])
def test_classifier_and_processing_class_that_contradict_each_other_are_refused(tmp_path, mean, refused):
    numbers = (None, None) if mean is None else ([mean] * 3, [0.5] * 3)
    student = PixelClassifier(network(), *numbers)
    config = BMTARDConfig(output_dir=str(tmp_path), method="natural", use_cpu=True, report_to=[])
    data = ImageTensors(torch.zeros(4, 3, 32, 32, dtype=torch.uint8), torch.arange(4) % 3)

    def build():
        return BMTARDTrainer(student, config, train_dataset=data, processing_class=PROCESSORS["usual"])

    if refused:
        with pytest.raises(ValueError, match="the classifier normalises with mean .* processing_class with"):
            build()
    else:
        assert build().student is student
