import itertools

import datasets
import pytest
import torch
from conftest import TinyNet
from safetensors.torch import load_file

from bmtard_hooks import create_model


class Tied(TinyNet):
    """A student with a submodule under two names, a weight under two names, and a view of a weight."""

    def __init__(self):
        super().__init__()
        self.again = self.head
        self.first = torch.nn.Linear(6, 6, bias=False)
        self.second = torch.nn.Linear(6, 6, bias=False)
        self.second.weight = self.first.weight
        self.register_buffer("row", self.head.weight.detach()[0])

    def forward(self, pixel_values):
        features = torch.relu(self.conv(pixel_values)).flatten(2).transpose(1, 2)
        features = torch.relu(self.second(torch.relu(self.first(features))))
        return self.again(features.transpose(1, 2).flatten(1))


def tied():
    with torch.random.fork_rng():
        torch.manual_seed(0)
        return Tied()


def test_student_by_name_and_timm_network_are_saved_for_from_pretrained(make_trainer, tmp_path):
    import timm
    from transformers import AutoModelForImageClassification

    network = timm.create_model("resnet8_cifar", num_classes=4)
    trainer = make_trainer(network)
    trainer.train()
    trainer.save_model(tmp_path / "saved")
    images = torch.rand(3, 3, 8, 8)
    with torch.no_grad():
        expected = trainer.student.eval()(images)
        plain = AutoModelForImageClassification.from_pretrained(tmp_path / "saved").eval()(images).logits
        ours = create_model(str(tmp_path / "saved")).eval()(images)
    torch.testing.assert_close(plain, expected)
    torch.testing.assert_close(ours, expected)


def test_normalisation_travels_with_the_saved_student(make_trainer, tmp_path):
    student = create_model("resnet8_cifar", 4, mean=[0.4, 0.5, 0.6], std=[0.2, 0.3, 0.4])
    trainer = make_trainer(student)
    trainer.train()
    trainer.save_model(tmp_path / "saved")
    images = torch.rand(3, 3, 8, 8)
    with torch.no_grad():
        torch.testing.assert_close(create_model(str(tmp_path / "saved")).eval()(images), student.eval()(images))


def test_model_card_says_what_was_done(make_trainer, tmp_path):
    trainer = make_trainer(create_model("resnet8_cifar", 4), eval_strategy="epoch")
    trainer.train()
    card = (tmp_path / "run" / "README.md").read_text()
    for words in (
        "resnet8_cifar trained with bmtard",
        "clean teacher | TinyNet",
        "PGD-2, linf, eps 0.031373",
        "W-Robust |",
    ):
        assert words in card


def test_card_reports_the_checkpoint_that_was_kept_and_spares_other_readmes(make_trainer, tmp_path):
    trainer = make_trainer(
        num_train_epochs=4,
        eval_strategy="epoch",
        save_strategy="epoch",
        metric_for_best_model="w_robust",
        load_best_model_at_end=True,
        learning_rate=1.0,
    )
    trainer.train()
    best = max(entry["eval_w_robust"] for entry in trainer.state.log_history if "eval_w_robust" in entry)
    card = tmp_path / "run" / "README.md"
    assert f"| W-Robust | {best:.2%} |" in card.read_text()
    assert f"Measured at step {trainer.state.best_global_step} " in card.read_text()
    card.write_text("# My project\n")
    trainer.create_model_card()
    assert card.read_text() == "# My project\n"


def test_card_of_the_last_weights_where_the_best_have_no_checkpoint(make_trainer, tmp_path):
    trainer = make_trainer(
        num_train_epochs=2, eval_strategy="epoch", save_strategy="epoch", load_best_model_at_end=True
    )
    trainer.train()
    trainer.state.best_model_checkpoint = None  # as if transformers had kept none
    trainer.state.best_global_step = 1
    trainer.create_model_card()
    last = [entry for entry in trainer.state.log_history if "eval_w_robust" in entry][-1]
    assert f"Measured at step {last['step']} " in (tmp_path / "run" / "README.md").read_text()


def test_weights_without_config_say_how_to_use_them(make_trainer, tmp_path):
    trainer = make_trainer()
    trainer.train()
    trainer.save_model()
    card = (tmp_path / "run" / "README.md").read_text()
    assert (
        "load `model.safetensors` into it" in card and "library_name: pytorch" in card and "create_model" not in card
    )
    with pytest.raises(ValueError, match="weights without a config.json"):
        create_model(str(tmp_path / "run"))


def test_name_of_a_student_for_data_without_classes_is_refused_with_the_fix(make_trainer):
    rows = datasets.Dataset.from_dict({"pixel_values": [[[[0] * 8] * 8] * 3] * 4, "labels": [0, 1, 2, 3]})
    with pytest.raises(ValueError, match=r"does not say how many classes 'resnet8_cifar' .* num_classes"):
        make_trainer("resnet8_cifar", rows)


def test_student_with_tied_weights_is_saved_under_all_names_and_resumes_bit_for_bit(make_trainer, tmp_path):
    straight = make_trainer(tied(), save_strategy="steps", save_steps=1)
    straight.train()
    states = [load_file(tmp_path / "run" / f"checkpoint-{step}" / "model.safetensors") for step in (2, 4)]
    assert all(state.keys() == straight.model.state_dict().keys() for state in states)
    resumed = make_trainer(tied())
    resumed.train(resume_from_checkpoint=str(tmp_path / "run" / "checkpoint-2"))
    assert resumed.state.global_step == 4 and resumed.model.again is resumed.model.head
    for name, value in straight.model.state_dict().items():
        assert torch.equal(value, resumed.model.state_dict()[name]) and torch.equal(value, states[1][name]), name
    assert not torch.equal(states[0]["first.weight"], states[1]["first.weight"])


def test_student_with_tied_weights_ends_with_its_best_model(make_trainer):
    turns = itertools.count()
    trainer = make_trainer(
        tied(),
        compute_metrics=lambda _: {"turn": next(turns)},
        metric_for_best_model="turn",
        greater_is_better=False,
        load_best_model_at_end=True,
        num_train_epochs=2,
        eval_strategy="epoch",
        save_strategy="epoch",
    )
    trainer.train()
    assert trainer.state.best_global_step == 4 < trainer.state.global_step
    best = load_file(f"{trainer.state.best_model_checkpoint}/model.safetensors")
    assert all(torch.equal(value, best[name]) for name, value in trainer.model.state_dict().items())
