"""Networks that transformers saves under the names of earlier releases: every weight comes back, or it is said which does not."""

import itertools
import shutil

import pytest
import torch
from conftest import tiny_data, tiny_net
from safetensors.torch import load_file
from transformers import (
    DeiTConfig,
    DeiTForImageClassification,
    SwinConfig,
    SwinForImageClassification,
    ViTConfig,
    ViTForImageClassification,
)

from bmtard_hooks import create_model
from bmtard_hooks.checkpoint_weights import read_translated
from bmtard_hooks.state import TENSORS_NAME

IMAGES = {"image_size": 8, "patch_size": 4, "num_labels": 4}
LAYERS = {"hidden_size": 16, "num_hidden_layers": 2, "num_attention_heads": 2, "intermediate_size": 32}
WINDOWS = {"image_size": 8, "patch_size": 2, "num_labels": 4, "embed_dim": 8, "depths": [1, 1], "num_heads": [1, 2]}
NETWORKS = {
    "vit": lambda **o: ViTForImageClassification(ViTConfig(**{**IMAGES, **LAYERS, "hidden_dropout_prob": 0.1, **o})),
    "deit": lambda **o: DeiTForImageClassification(DeiTConfig(**{**IMAGES, **LAYERS, **o})),
    "swin": lambda **o: SwinForImageClassification(SwinConfig(**{**WINDOWS, "window_size": 2, **o})),
}
COURSE = {"num_train_epochs": 3, "eval_strategy": "epoch", "save_strategy": "epoch", "learning_rate": 0.05}
BEST = {"metric_for_best_model": "turn", "greater_is_better": False, "load_best_model_at_end": True}


def network(name, **options):
    with torch.random.fork_rng():
        torch.manual_seed(0)
        return NETWORKS[name](**options)


def assert_same(first, second):
    assert first.keys() == second.keys()
    for name, value in first.items():
        assert torch.equal(value, second[name]), name


@pytest.mark.parametrize("name", NETWORKS)
def test_student_that_is_saved_under_older_names_resumes_bit_for_bit(make_trainer, tmp_path, name):
    def trainer():
        return make_trainer(network(name), num_train_epochs=2, save_strategy="steps", save_steps=3, learning_rate=0.05)

    straight = trainer()
    straight.train()
    shutil.rmtree(tmp_path / "run" / "checkpoint-6")
    resumed = trainer()
    resumed.train(resume_from_checkpoint=str(tmp_path / "run" / "checkpoint-3"))
    assert resumed.state.global_step == 8
    assert_same(straight.model.state_dict(), resumed.model.state_dict())


def first_is_best(make_trainer, **options):
    """Train with a metric that counts evaluations, so that the best model is not the last; return it and the best loss."""
    turns = itertools.count()
    trainer = make_trainer(
        network(options.pop("name")), compute_metrics=lambda _: {"turn": next(turns)}, **COURSE, **BEST, **options
    )
    trainer.train()
    losses = [entry["eval_loss"] for entry in trainer.state.log_history if "eval_loss" in entry]
    assert trainer.state.best_global_step == 4 < trainer.state.global_step and losses[0] != losses[-1]
    return trainer, losses[0]


@pytest.mark.parametrize("name", NETWORKS)
def test_best_model_at_the_end_is_the_best_checkpoint_with_every_weight(make_trainer, name):
    trainer, loss = first_is_best(make_trainer, name=name)
    best = create_model(trainer.state.best_model_checkpoint).backbone.state_dict()
    assert_same(best, trainer.model.state_dict())
    assert trainer.evaluate()["eval_loss"] == loss


def test_loading_the_best_model_takes_no_random_numbers(make_trainer):
    trainer, _ = first_is_best(make_trainer, name="vit")
    before = torch.get_rng_state()
    trainer._load_best_model()
    assert torch.equal(torch.get_rng_state(), before)


def test_averaged_weights_of_the_best_checkpoint_are_the_model_at_the_end(make_trainer):
    averaging = {"weight_averaging": "ema", "averaging_decay": 0.9, "averaging_start": 0.0}
    trainer, loss = first_is_best(make_trainer, name="vit", **averaging)
    stored = load_file(f"{trainer.state.best_model_checkpoint}/{TENSORS_NAME}")
    averages = {name.split("parameter.")[1]: value for name, value in stored.items() if "parameter." in name}
    assert_same(averages, dict(trainer.model.named_parameters()))
    assert trainer.evaluate()["eval_loss"] == loss


@pytest.mark.parametrize(
    "other, message",
    [
        ({"num_hidden_layers": 3}, r"does not hold the weights of this ViTForImageClassification: 16 are missing \("),
        (
            {"num_hidden_layers": 1},
            r"0 are missing \(none\), 16 are unknown to it \(.*…\)\. Pass the student with which",
        ),
        ({"intermediate_size": 64}, "does not hold the weights of this ViTForImageClassification"),
    ],
)
def test_transformer_of_other_options_is_refused_on_resume(make_trainer, tmp_path, other, message):
    make_trainer(network("vit"), save_strategy="steps", save_steps=2).train()
    with pytest.raises(ValueError, match=message):
        make_trainer(network("vit", **other)).train(resume_from_checkpoint=str(tmp_path / "run" / "checkpoint-2"))


def test_plain_module_with_more_layers_is_refused_on_resume(make_trainer, tmp_path):
    make_trainer(save_strategy="steps", save_steps=2).train()
    with pytest.raises(ValueError, match=r"this TinyNet: 4 are missing \(norm.bias, .*, 0 are unknown to it \(none\)"):
        make_trainer(tiny_net(0, batch_norm=True), tiny_data()).train(
            resume_from_checkpoint=str(tmp_path / "run" / "checkpoint-2")
        )


def test_weights_keep_their_own_types(tmp_path):
    saved, other = network("vit").double(), network("vit").double()
    for model in (saved, other):
        model.classifier.float()
        model.vit.layernorm.to(torch.bfloat16)
    with torch.no_grad():
        for value in saved.parameters():
            value.add_(torch.rand(value.shape, dtype=torch.float64).to(value.dtype))
    saved.save_pretrained(tmp_path)
    read_translated(other, str(tmp_path), ([], []))
    assert_same(saved.state_dict(), other.state_dict())
    assert {value.dtype for value in other.parameters()} == {torch.float64, torch.float32, torch.bfloat16}


def test_tied_weights_that_a_file_holds_once_are_not_missed(make_trainer):
    class Tied(type(tiny_net())):
        def __init__(self):
            super().__init__()
            self.again = self.head

    trainer = make_trainer(Tied())
    trainer._issue_warnings_after_load(torch.nn.modules.module._IncompatibleKeys(["again.weight", "again.bias"], []))
    assert trainer._unmatched == ([], [])


class Adapter(torch.nn.Module):
    """A frozen network with a trained head, which alone it saves."""

    num_classes = 4

    def __init__(self, without=("net.",)):
        super().__init__()
        self.net, self.without = tiny_net(0).requires_grad_(False), without
        with torch.random.fork_rng():
            torch.manual_seed(1)
            self.adapter = torch.nn.Linear(4, 4)

    def forward(self, pixel_values):
        return self.adapter(self.net(pixel_values))

    def state_dict(self, *args, **kwargs):
        state = super().state_dict(*args, **kwargs)
        return {name: value for name, value in state.items() if not name.startswith(tuple(self.without))}


def test_adapter_that_does_not_save_its_frozen_weights_resumes_bit_for_bit(make_trainer, tmp_path):
    straight = make_trainer(Adapter(), save_strategy="steps", save_steps=2)
    straight.train()
    checkpoint = tmp_path / "run" / "checkpoint-2"
    assert load_file(checkpoint / "model.safetensors").keys() == {"adapter.weight", "adapter.bias"}
    resumed = make_trainer(Adapter())
    resumed.train(resume_from_checkpoint=str(checkpoint))
    for left, right in zip(straight.model.parameters(), resumed.model.parameters(), strict=True):
        assert torch.equal(left, right)


def test_adapter_that_does_not_save_its_frozen_weights_ends_with_its_best(make_trainer):
    turns = itertools.count()
    trainer = make_trainer(Adapter(), compute_metrics=lambda _: {"turn": next(turns)}, **COURSE, **BEST)
    trainer.train()
    assert trainer.state.best_global_step == 4 < trainer.state.global_step
    best = load_file(f"{trainer.state.best_model_checkpoint}/model.safetensors")
    assert_same(best, trainer.model.state_dict())


def test_trained_weights_that_a_network_does_not_save_are_missed_on_resume(make_trainer, tmp_path):
    make_trainer(Adapter(("net.", "adapter.bias")), save_strategy="steps", save_steps=2).train()
    with pytest.raises(ValueError, match=r"this Adapter: 1 are missing \(adapter.bias\)"):
        make_trainer(Adapter(("net.", "adapter.bias"))).train(
            resume_from_checkpoint=str(tmp_path / "run" / "checkpoint-2")
        )


def test_transformer_that_is_saved_under_older_names_without_its_frozen_weights_comes_back(tmp_path):
    class HeadOnly(ViTForImageClassification):
        def state_dict(self, *args, **kwargs):
            state = super().state_dict(*args, **kwargs)
            return {name: value for name, value in state.items() if "layer" in name}

    options = ViTConfig(**{**IMAGES, **LAYERS})
    torch.manual_seed(3)
    saved, other = HeadOnly(options), HeadOnly(options)
    for model in (saved, other):
        for name, weight in model.named_parameters():
            weight.requires_grad_("layer" in name)
    frozen = {name: value.clone() for name, value in other.named_parameters() if "layer" not in name}
    saved.save_pretrained(tmp_path)
    read_translated(other, str(tmp_path), ([], []))
    assert_same(saved.state_dict(), other.state_dict())
    assert frozen and all(torch.equal(value, other.get_parameter(name)) for name, value in frozen.items())
