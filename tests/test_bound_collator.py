"""The collator without the Trainer of this library."""

import pytest
import torch
from conftest import tiny_data, tiny_net
from transformers import Trainer, TrainingArguments

from bmtard_hooks import PGDCollator, create_model


@pytest.mark.parametrize("training", [True, False])
def test_bound_collator_always_crafts(training):
    model, rows = tiny_net(0).train(training), [tiny_data()[i] for i in range(4)]
    clean = PGDCollator()(rows)["pixel_values"]
    pair = PGDCollator(augment="none").bind(model, output="pair")(rows)
    torch.testing.assert_close(pair["pixel_values"], clean)
    replaced = PGDCollator(augment="none").bind(model)(rows)
    torch.testing.assert_close(replaced["pixel_values"], pair["adv_pixel_values"])
    assert set(replaced) == {"pixel_values", "labels"} and not torch.equal(replaced["pixel_values"], clean)
    assert model.training is training


@pytest.mark.parametrize("start, training", [("fork", True), ("fork", False), ("spawn", True)])
def test_bound_collator_refuses_to_attack_with_a_workers_stale_weights(start, training):
    loader = torch.utils.data.DataLoader(
        tiny_data(), batch_size=4, num_workers=1, collate_fn=PGDCollator().bind(tiny_net(0).train(training)),
        multiprocessing_context=start,
    )  # fmt: skip
    with pytest.raises(RuntimeError, match="every attack would be stale"):
        next(iter(loader))


class Classifier(torch.nn.Module):
    """A plain Hugging Face style model that notes what it is fed."""

    def __init__(self):
        super().__init__()
        self.net, self.seen = tiny_net(0), []

    def forward(self, pixel_values, labels=None):
        self.seen.append((self.training, pixel_values.clone()))
        logits = self.net(pixel_values)
        return {"loss": torch.nn.functional.cross_entropy(logits, labels), "logits": logits}


def test_plain_trainer_trains_on_adversarial_images_in_every_epoch(tmp_path):
    model, data = Classifier().eval(), tiny_data(8)  # from_pretrained gives models in eval mode

    collator = PGDCollator(augment="none", steps=2).bind(model.net)
    arguments = TrainingArguments(
        output_dir=str(tmp_path), use_cpu=True, num_train_epochs=2, per_device_train_batch_size=4, report_to="none",
        remove_unused_columns=False, disable_tqdm=True, eval_strategy="epoch", save_strategy="no",
    )  # fmt: skip
    Trainer(model, arguments, data_collator=collator, train_dataset=data, eval_dataset=data).train()
    clean = data.images.float() / 255
    distances = [torch.cdist(x.flatten(1), clean.flatten(1), p=torch.inf).amin(1).min() for _, x in model.seen]
    assert [training for training, _ in model.seen] == [True, True, False] * 2
    assert all(distance > 0.01 for distance in distances)


def test_bound_collators_of_several_processes_draw_numbers_of_their_own(monkeypatch):
    rows = [tiny_data()[index] for index in range(4)]

    def crafted(rank, processes=3):
        monkeypatch.setattr("torch.distributed.is_initialized", lambda: processes > 1)
        monkeypatch.setattr("torch.distributed.get_world_size", lambda: processes)
        monkeypatch.setattr("torch.distributed.get_rank", lambda: rank)
        return PGDCollator(eps=0.1, steps=1).bind(tiny_net(0))(rows)["pixel_values"]

    alone, first, second, third = crafted(0, 1), crafted(0), crafted(1), crafted(2)
    assert torch.equal(alone, first)
    assert not torch.equal(first, second) and not torch.equal(second, third)


@pytest.mark.parametrize("mean", [None, [0.5] * 3])
def test_pixel_classifier_trains_in_a_plain_trainer(tmp_path, mean):
    classifier, data = create_model("resnet8_cifar", 4, mean=mean, std=mean), tiny_data(8)
    before = {name: value.clone() for name, value in classifier.state_dict().items()}
    arguments = TrainingArguments(
        output_dir=str(tmp_path / "run"), use_cpu=True, max_steps=2, per_device_train_batch_size=4, report_to="none",
        remove_unused_columns=False, disable_tqdm=True, eval_strategy="epoch", learning_rate=0.1,
    )  # fmt: skip
    collator = PGDCollator(augment="none", steps=2).bind(classifier)
    trainer = Trainer(classifier, arguments, data_collator=collator, train_dataset=data, eval_dataset=data)
    trainer.train()
    assert any(not torch.equal(before[name], value) for name, value in classifier.state_dict().items())
    assert trainer.evaluate()["eval_loss"] > 0
    classifier.backbone.save_pretrained(tmp_path / "saved")
    images = torch.rand(2, 3, 8, 8)
    with torch.no_grad():
        torch.testing.assert_close(create_model(str(tmp_path / "saved")).eval()(images), classifier.eval()(images))


def test_pixel_classifier_answers_keywords_with_loss_and_logits():
    classifier, pixels, labels = create_model("resnet8_cifar", 4).eval(), torch.rand(2, 3, 8, 8), torch.tensor([1, 3])
    logits = classifier(pixels)
    answer = classifier(pixel_values=pixels, labels=labels)
    torch.testing.assert_close(answer["logits"], logits)
    torch.testing.assert_close(answer["loss"], torch.nn.functional.cross_entropy(logits, labels))
    assert set(classifier(pixel_values=pixels)) == {"logits"}
    for words in ({}, {"labels": labels}, {"pixels": pixels, "labels": labels}):
        with pytest.raises(TypeError, match=r"takes classifier\(pixels\), or pixel_values="):
            classifier(**words)
