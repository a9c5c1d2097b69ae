import datasets
import pytest
import torch

from bmtard_hooks import create_model


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
