"""What is passed to the Trainer beside models and data, and evaluations that would fail after hours."""

import pytest
import torch
import transformers
from conftest import sharp_net, tiny_data, tiny_net
from refusing import Row, refused, table

from bmtard_hooks import BMTARDTrainer
from bmtard_hooks.checks import refuse_unsupported


def passing(**arguments):
    """Make a Trainer with some arguments of ``Trainer``."""

    def do(scene):
        config = scene.config(method="sat")
        BMTARDTrainer(tiny_net(0), **{"args": config, "train_dataset": tiny_data(), **arguments}).train()

    return do


def searching(scene):
    """Ask a Trainer for a search of hyperparameters."""
    scene.trainer(method="sat").hyperparameter_search(n_trials=2)


@table(
    Row(
        "args of a dict", passing(args={"eps": 1}), "args is a dict", "BMTARDConfig", "pass a BMTARDConfig", TypeError
    ),
    Row(
        "callbacks of text",
        passing(callbacks=["x"]),
        "callbacks has 'x'",
        "TrainerCallback",
        "pass objects",
        TypeError,
    ),
    Row(
        "callbacks of a class", passing(callbacks=[int]), "<class 'int'>", "TrainerCallback", "pass objects", TypeError
    ),
    Row("compute_metrics", passing(compute_metrics=5), "compute_metrics is 5", "EvalPrediction", "or None", TypeError),
    Row(
        "a search",
        searching,
        "hyperparameter_search is not supported",
        "one BMTARDTrainer per trial",
        "study.optimize",
    ),
    Row("model_init", passing(model_init=tiny_net), "model_init", "model=…", "pass the student"),
    Row("a loss", passing(compute_loss_func=len), "compute_loss_func", "would replace", "register a Method"),
    Row(
        *("logits", passing(preprocess_logits_for_metrics=len), "preprocess_logits_for_metrics", "not supported"),
        "use compute_metrics alone",
    ),
)
def test_argument_of_the_trainer_is_refused(row, request):
    refused(row, request)


def option(name, received, allowed, fix, error=ValueError, data=None, callbacks=(), **options):
    """A row whose options meet models and data."""

    def do(scene):
        scene.trainer(method="sat", eval_dataset=data, callbacks=list(callbacks), **options).train()

    return Row(name, do, received, allowed, fix, error)


BEST, NAMES = "metric_for_best_model", "loss, clean_accuracy, robust_accuracy, w_robust"
EARLY = [transformers.EarlyStoppingCallback(3)]
SETS = {"a": tiny_data(4), "b": tiny_data(4, seed=1)}


@table(
    option("metric", f"{BEST}='robust'", NAMES, "Did you mean", eval_strategy="epoch", **{BEST: "robust"}),
    option(
        "metric with eval_",
        f"{BEST}='eval_accuracy'",
        NAMES,
        "Did you mean clean_accuracy",
        eval_strategy="epoch",
        **{BEST: "eval_accuracy"},
    ),
    option(
        *("metric without attack", f"{BEST}='w_robust'", "loss, clean_accuracy", "needs eval_attack=True"),
        eval_strategy="epoch",
        eval_attack=False,
        **{BEST: "w_robust"},
    ),
    option(
        "metric of a set",
        f"{BEST}='w_robust'",
        "a_w_robust",
        "b_w_robust",
        data=SETS,
        eval_strategy="epoch",
        **{BEST: "w_robust"},
    ),
    option("early stopping without metric", f"{BEST}=None", "eval_strategy='epoch'", f"pass {BEST}", callbacks=EARLY),
    option("label smoothing", "label_smoothing_factor=0.1", "no meaning", "leave it at 0", label_smoothing_factor=0.1),
    option(
        "checkpoints within a step",
        "enable_jit_checkpoint",
        "no run resumes exactly",
        "leave it off",
        enable_jit_checkpoint=True,
    ),
    option(
        "metrics by batch", "batch_eval_metrics", "not supported", "use compute_metrics alone", batch_eval_metrics=True
    ),
)
def test_options_that_do_not_fit_the_run_are_refused(row, request):
    refused(row, request)


def with_graphs(mode="reduce-overhead", **options):
    """Make a Trainer that compiles its networks, as a GPU would have it."""

    def do(scene):
        config = scene.config(**options)
        config.torch_compile, config.torch_compile_mode = True, mode
        scene.fixture("monkeypatch").setattr(type(config), "device", torch.device("cuda"))
        refuse_unsupported(tiny_net(0), config, {})

    return do


@table(
    Row(
        "graphs and accumulation",
        with_graphs(method="sat", gradient_accumulation_steps=2),
        "torch_compile_mode='reduce-overhead' does not go with gradient_accumulation_steps=2",
        "CUDA graphs",
        "Leave the mode out",
    ),
    Row(
        "graphs and a forward before the attack",
        with_graphs("max-autotune", method="ciard"),
        "torch_compile_mode='max-autotune' does not go with method 'ciard'",
        "forwards the student before the attack",
        "'max-autotune-no-cudagraphs'",
    ),
)
def test_cuda_graphs_that_would_overwrite_what_is_needed_are_refused(row, request):
    refused(row, request)


@pytest.mark.parametrize("mode", [None, "max-autotune-no-cudagraphs"])
def test_other_modes_and_methods_may_be_compiled(mode, make_config, monkeypatch):
    for given, options in (
        (mode, {"method": "ciard", "gradient_accumulation_steps": 2}),
        ("reduce-overhead", {"method": "bmtard"}),
    ):
        config = make_config(**options)
        config.torch_compile, config.torch_compile_mode = True, given
        with monkeypatch.context() as patch:
            patch.setattr(type(config), "device", torch.device("cuda"))
            refuse_unsupported(tiny_net(0), config, {})


def resume(how):
    """Resume where nothing was saved."""

    def do(scene):
        given = str(scene.path / how) if isinstance(how, str) else how
        scene.trainer(method="sat").train(resume_from_checkpoint=given)

    return do


@table(
    Row(
        "newest of none",
        resume(True),
        "resume_from_checkpoint=True",
        "no whole checkpoint",
        "leave",
        FileNotFoundError,
    ),
    Row(
        "no such folder",
        resume("none"),
        "none' does not exist",
        "a checkpoint-N folder",
        "True for",
        FileNotFoundError,
    ),
    Row("an empty folder", resume("cwd"), "cwd cannot be resumed", "trainer_state.json", "start anew"),
)
def test_resuming_from_nothing_is_refused(row, request):
    refused(row, request)


def test_names_that_only_a_users_own_metrics_know_are_left_to_them(make_config):
    config = make_config(method="sat", eval_strategy="epoch", metric_for_best_model="mine")
    parts = {
        "train_dataset": tiny_data(),
        "eval_dataset": tiny_data(4),
        "compute_metrics": lambda prediction: {"mine": 1.0},
    }
    trainer = BMTARDTrainer(tiny_net(0), config, **parts)
    trainer.train()
    assert trainer.state.best_metric == 1.0


@pytest.mark.parametrize("name", ["w_robust", "eval_robust_accuracy", "loss"])
def test_names_of_metrics_are_accepted_with_and_without_their_prefix(name, make_trainer):
    trainer = make_trainer(robust_teacher=sharp_net(1), eval_strategy="epoch", metric_for_best_model=name)
    trainer.train()
    assert trainer.state.best_metric is not None
