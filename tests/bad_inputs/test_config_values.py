"""Options that are of another kind, outside their range, or contradict each other."""

import math

import pytest
import torch
from refusing import Row, refused, table

from bmtard_hooks import BMTARDConfig

NAN, INF = math.nan, math.inf


def option(received, allowed, fix, error=ValueError, /, **options):
    """A row of options; their names and values make its name."""
    name = ", ".join(f"{key}={value!r}" for key, value in options.items())
    return Row(name, lambda scene: scene.config(use_cpu=True, **options), received, allowed, fix, error)


NUMBER, WHOLE, TRUTH = "pass a finite number", "pass a whole number", "pass True or False"


@table(
    option("eps='8/255'", NUMBER, "0.0313", eps="8/255"),
    option("eps=True", NUMBER, "0.0313", eps=True),
    option("eps=[8]", NUMBER, "0.0313", eps=[8]),
    option("eps=None", NUMBER, "0.0313", eps=None),
    option("eps=nan", NUMBER, "0.0313", eps=NAN),
    option("eps=inf", NUMBER, "0.0313", eps=INF),
    option("step_size=nan", NUMBER, "or None", step_size=NAN),
    option("eval_attack_eps=nan", NUMBER, "or None", eval_attack_eps=NAN),
    option("steps=2.5", WHOLE, "10 (the default)", steps=2.5),
    option("steps=nan", WHOLE, "10 (the default)", steps=NAN),
    option("steps=inf", WHOLE, "10 (the default)", steps=INF),
    option("steps='10'", WHOLE, "10 (the default)", steps="10"),
    option("eval_attack_steps=nan", WHOLE, "20 (the default)", eval_attack_steps=NAN),
    option("crop_padding=1.5", WHOLE, "4 (the default)", crop_padding=1.5),
    option("crop_padding=None", WHOLE, "4 (the default)", crop_padding=None),
    option("awp_begin=1.5", WHOLE, "0 (the default)", awp_begin=1.5),
    option("seed=1.5", WHOLE, "42 (the default)", seed=1.5),
    option("per_device_train_batch_size=2.5", WHOLE, "128 (the default)", per_device_train_batch_size=2.5),
    option("gradient_accumulation_steps=1.5", WHOLE, "1 (the default)", gradient_accumulation_steps=1.5),
    option("max_steps=2.5", WHOLE, "-1 (the default)", max_steps=2.5),
    option("num_train_epochs='3'", NUMBER, "300.0 (the default)", num_train_epochs="3"),
    option("num_train_epochs=nan", NUMBER, "300.0 (the default)", num_train_epochs=NAN),
    option("num_train_epochs=inf", NUMBER, "300.0 (the default)", num_train_epochs=INF),
    option("learning_rate='0.1'", NUMBER, "0.1 (the default)", learning_rate="0.1"),
    option("learning_rate=None", NUMBER, "0.1 (the default)", learning_rate=None),
    option("learning_rate=nan", NUMBER, "0.1 (the default)", learning_rate=NAN),
    option("learning_rate=inf", NUMBER, "0.1 (the default)", learning_rate=INF),
    option("weight_decay=nan", NUMBER, "0.0002 (the default)", weight_decay=NAN),
    option("max_grad_norm=nan", NUMBER, "0.0 (the default)", max_grad_norm=NAN),
    option("warmup_steps=nan", NUMBER, "0 (the default)", warmup_steps=NAN),
    option("logging_steps=nan", NUMBER, "50 (the default)", logging_steps=NAN),
    option("adam_beta1=nan", NUMBER, "0.9 (the default)", adam_beta1=NAN),
    option("clean_temperature='1'", NUMBER, "1.0 (the default)", clean_temperature="1"),
    option("clean_temperature=inf", NUMBER, "1.0 (the default)", clean_temperature=INF),
    option("max_temperature=inf", NUMBER, "10.0 (the default)", max_temperature=INF),
    option("temperature_rate='fast'", NUMBER, "0.001 (the default)", temperature_rate="fast"),
    option("weight_rate=nan", NUMBER, "0.025 (the default)", weight_rate=NAN),
    option("clean_weight=nan", NUMBER, "or None", clean_weight=NAN),
    option("loss_scale=inf", NUMBER, "or None", loss_scale=INF),
    option("w_robust_clean_weight=nan", NUMBER, "0.5 (the default)", w_robust_clean_weight=NAN),
    option("l2_eps=nan", NUMBER, "0.5 (the default)", l2_eps=NAN),
    option("entropy_balance='yes'", TRUTH, "or None", entropy_balance="yes"),
    option("eval_attack='no'", TRUTH, "True (the default)", eval_attack="no"),
    option("channels_last='false'", TRUTH, "True (the default)", channels_last="false"),
    option("fold_batch_norm=2", TRUTH, "True (the default)", fold_batch_norm=2),
    option("dataloader_drop_last='yes'", TRUTH, "False (the default)", dataloader_drop_last="yes"),
    option("method=None", "pass a word", "'bmtard' (the default)", method=None),
    option("method=3", "pass a word", "'bmtard' (the default)", method=3),
    option("norm=None", "pass a word", "'linf' (the default)", norm=None),
    option("lr_milestones=5", "a list of numbers", "[215, 260, 285]", lr_milestones=5),
    option("lr_milestones='5'", "a list of numbers", "[215, 260, 285]", lr_milestones="5"),
    option("lr_milestones=['a']", "a list of numbers", "[215, 260, 285]", lr_milestones=["a"]),
    option("label_names='labels'", "a list of words", "or None", label_names="labels"),
)
def test_option_of_another_kind_is_refused(row, request):
    refused(row, request)


SEED = "a whole number from 0 to 4294967295"
POSITIVE, NOT_NEGATIVE = "a number of 1 or more", "a number of 0 or more"
STEPS, SHARE = "a positive number of steps", "a share of the run below 1"


@table(
    option("eps=8", "(0, 1]", "pass 8/255", eps=8),
    option("eps=0.0", "a positive number", "8/255", eps=0.0),
    option("eval_attack_eps=-1", "a positive number", "8/255", eval_attack_eps=-1),
    option("eval_attack_eps=9", "(0, 1]", "pass 9/255", eval_attack_eps=9),
    option("eval_attack_step_size=0", "a positive number", "8/255", eval_attack_step_size=0),
    option("l2_eps=-1", "a positive number", "8/255", l2_eps=-1),
    option("steps=-1", "a number of steps", "pass 0 (random start only)", steps=-1),
    option("eval_attack_steps=-1", NOT_NEGATIVE, "pass", eval_attack_steps=-1),
    option("[0.0, 10.0]", "0 < min_temperature <= max_temperature", "the paper has [1, 10]", min_temperature=0.0),
    option("[5.0, 2.0]", "0 < min_temperature <= max_temperature", "pass", min_temperature=5.0, max_temperature=2.0),
    option("clean_temperature=0.5", "[1.0, 10.0]", "move the bounds or the start", clean_temperature=0.5),
    option("robust_temperature=11.0", "[1.0, 10.0]", "move the bounds or the start", robust_temperature=11.0),
    option("temperature_rate=0.0", "must be positive", "leave the callback out", temperature_rate=0.0),
    option("weight_rate=2.0", "(0, 1]", "leave the callback out", weight_rate=2.0),
    option("loss_balance_power=-1.0", "must be positive", "1 as in the paper", loss_balance_power=-1.0),
    option("clean_weight=-0.1", "non-negative", "pass two", clean_weight=-0.1),
    option("clean_weight=0.0", "not both 0", "pass two", clean_weight=0.0, robust_weight=0.0),
    option("loss_scale=0.0", "a positive number", "0.1", loss_scale=0.0),
    option("log_eps=-1e-05", "non-negative", "1e-5 or 0", log_eps=-1e-5),
    option("log_eps=0.5", "small", "1e-5 or 0", log_eps=0.5),
    option("trades_beta=-1.0", "0 or more", "pass", trades_beta=-1.0),
    option("ard_alpha=2.0", "[0, 1]", "pass a share", ard_alpha=2.0),
    option("momentum=1.0", "[0, 1)", "pass a number", momentum=1.0),
    option("lr_gamma=0.0", "(0, 1]", "pass a number", lr_gamma=0.0),
    option("lr_milestones=[3, 2]", "increasing", "215 260 285", lr_milestones=[3, 2]),
    option("lr_milestones=[nan]", "increasing", "215 260 285", lr_milestones=[NAN]),
    option("lr_milestones=[0]", "positive", "215 260 285", lr_milestones=[0]),
    option("crop_padding=-2", NOT_NEGATIVE, "4 as in the paper", crop_padding=-2),
    option("w_robust_clean_weight=1.2", "[0, 1]", "pass a number", w_robust_clean_weight=1.2),
    option("seed=-1", SEED, "42", seed=-1),
    option("seed=18446744073709551616", SEED, "42", seed=2**64),
    option("data_seed=-1", SEED, "42", data_seed=-1),
    option("per_device_train_batch_size=0", POSITIVE, "128", per_device_train_batch_size=0),
    option("per_device_train_batch_size=-4", POSITIVE, "128", per_device_train_batch_size=-4),
    option("per_device_train_batch_size=100", POSITIVE, "128", per_device_train_batch_size=10**21),
    option("per_device_eval_batch_size=0", POSITIVE, "256", per_device_eval_batch_size=0),
    option("gradient_accumulation_steps=0", POSITIVE, "1", gradient_accumulation_steps=0),
    option("eval_accumulation_steps=0", POSITIVE, "None", eval_accumulation_steps=0),
    option("dataloader_num_workers=-1", NOT_NEGATIVE, "0 to load in the training", dataloader_num_workers=-1),
    option("dataloader_prefetch_factor=0", POSITIVE, "None", dataloader_prefetch_factor=0, dataloader_num_workers=1),
    option("torch_empty_cache_steps=0", POSITIVE, "pass", torch_empty_cache_steps=0),
    option("learning_rate=-0.1", NOT_NEGATIVE, "0.1 as in the paper", learning_rate=-0.1),
    option("weight_decay=-1", NOT_NEGATIVE, "2e-4", weight_decay=-1),
    option("max_grad_norm=-1", NOT_NEGATIVE, "0 for no clipping", max_grad_norm=-1),
    option("warmup_steps=-3", NOT_NEGATIVE, "0 for none", warmup_steps=-3),
    option("eval_delay=-1", NOT_NEGATIVE, "pass", eval_delay=-1),
    option("num_train_epochs=-1", "a positive number of epochs", "300 as in the paper", num_train_epochs=-1),
    option("num_train_epochs=0", "a positive number of epochs", "300 as in the paper", num_train_epochs=0),
    option("max_steps=0", STEPS, "-1 to train for num_train_epochs", max_steps=0),
    option("max_steps=-5", STEPS, "-1 to train for num_train_epochs", max_steps=-5),
    option("save_total_limit=0", "a positive number", "None to keep all checkpoints", save_total_limit=0),
    option("save_total_limit=-1", "a positive number", "None to keep all checkpoints", save_total_limit=-1),
    option("logging_steps=0", STEPS, "logging_strategy='epoch'", logging_steps=0),
    option("logging_steps=-1", SHARE, "logging_strategy='epoch'", logging_steps=-1),
    option("logging_steps=1.5", SHARE, "logging_strategy='epoch'", logging_steps=1.5),
    option("eval_steps=0", STEPS, "eval_strategy='epoch'", eval_steps=0, eval_strategy="steps"),
    option("eval_steps=-3", STEPS, "eval_strategy='epoch'", eval_steps=-3, eval_strategy="steps"),
    option("save_steps=0", STEPS, "save_strategy='epoch'", save_steps=0, save_strategy="steps"),
    option("output_dir=''", "the directory of the run", "for example", output_dir=""),
)
def test_option_outside_its_range_is_refused(row, request):
    refused(row, request)


def test_fp16_settings_are_accepted_where_there_is_an_accelerator(monkeypatch, tmp_path):
    # transformers looks for the device itself, so only this library's own check is exercised here
    monkeypatch.setattr(torch.accelerator, "is_available", lambda: True)
    monkeypatch.setattr("transformers.TrainingArguments.__post_init__", lambda self: None)
    assert BMTARDConfig(output_dir=str(tmp_path), fp16=True).fp16


@pytest.mark.parametrize("name", [entry for entry in ("steps", "seed", "per_device_train_batch_size")])
def test_numpy_numbers_are_numbers(name, make_config):
    numpy = pytest.importorskip("numpy")
    assert getattr(make_config(**{name: numpy.int64(4)}), name) == 4
    assert make_config(eps=numpy.float32(0.5)).eps == 0.5
