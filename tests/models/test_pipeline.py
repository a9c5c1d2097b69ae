"""A saved network gives the same answers in transformers' pipeline, which scales and normalises pictures by its config."""

import numpy as np
import pytest
import torch
from PIL import Image
from transformers import pipeline

from bmtard_hooks import BMTARDConfig, BMTARDTrainer, ImageTensors, PGDCollator, create_model

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
