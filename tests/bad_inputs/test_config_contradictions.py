"""Names that do not exist, and options of which one makes another pointless."""

from refusing import Row, refused, table


def option(received, allowed, fix, error=ValueError, /, **options):
    """A row of options; their names and values make its name."""
    name = ", ".join(f"{key}={value!r}" for key, value in options.items())
    return Row(name, lambda scene: scene.config(use_cpu=True, **options), received, allowed, fix, error)


BEST = "metric_for_best_model="


@table(
    option("unknown method 'bmtadr'", "methods are absld", "did you mean bmtard", method="bmtadr"),
    option("unknown method ''", "methods are absld", "bmtard", method=""),
    option("norm='max'", "linf, l2", "choose one of", norm="max"),
    option("start='somewhere'", "normal, uniform, zero", "choose one of", start="somewhere"),
    option("entropy_rule='sum'", "difference, ratio", "choose one of", entropy_rule="sum"),
    option("augment='mixup'", "crop_flip, crop, flip, none", "pass one of", augment="mixup"),
    option("weight_averaging='emma'", "none, ema, swa", "pass one of", weight_averaging="emma"),
    option("iad_variant=3", "1, 2", "pass one of", iad_variant=3),
    option("lr_scheduler_type='consine'", "linear, cosine", "pass cosine", lr_scheduler_type="consine"),
    option("optim='sdg'", "one of adamw_torch", "pass sgd", optim="sdg"),
    option("eval_strategy='epochs'", "no, steps, epoch", "pass epoch", eval_strategy="epochs"),
    option("save_strategy='epochs'", "no, steps, epoch", "pass epoch", save_strategy="epochs"),
    option("logging_strategy='never'", "no, steps, epoch", "pass one of", logging_strategy="never"),
    option("report_to='tensorbord'", "one of none, all", "pass tensorboard", report_to="tensorbord"),
    option("hub_strategy='evry_save'", "one of end", "pass every_save", hub_strategy="evry_save"),
    option("ddp_backend='nclc'", "nccl", "pass nccl", ddp_backend="nclc"),
    option("torch_compile_backend='inductr'", "one of no, eager", "pass inductor", torch_compile_backend="inductr"),
    option("train_sampling_strategy='radnom'", "random, sequential", "pass random", train_sampling_strategy="radnom"),
    option("accelerator_config={'even': 1}", "even_batches", "pass names", accelerator_config={"even": 1}),
)
def test_unknown_name_is_refused(row, request):
    refused(row, request)


@table(
    option(
        "lr_milestones=[3]", "lr_scheduler_type='cosine'", "drop one", lr_milestones=[3], lr_scheduler_type="cosine"
    ),
    option("nesterov=True", "a positive momentum", "pass False", nesterov=True, momentum=0.0),
    option("fp16=True", "bf16=True", "or no precision", fp16=True),
    option("bf16_full_eval", "quantise the attacked images", "leave them off", bf16_full_eval=True),
    option("entropy_balance=True", "no two teachers", "method 'sat'", method="sat", entropy_balance=True),
    option("loss_balance=True", "1 loss part", "method 'sat'", method="sat", loss_balance=True),
    option("clean_weight=1.0", "robust as loss parts", "method 'sat'", method="sat", clean_weight=1.0),
    option("igdm_balanced=True", "nothing to do", "pass igdm_weight", igdm_balanced=True),
    option(
        *("entropy_rule='ratio'", "compares two teachers", "pass entropy_rule='difference'"),
        method="bmtard_union",
        entropy_rule="ratio",
    ),
    option("norm='l2'", "in linf with eps", "leave norm out", method="bmtard_union", norm="l2"),
    option("iad_clean_alpha=0.25", "sum to at most 1", "pass two weights", iad_variant=2, iad_alpha=0.9),
    option("min_class_weight=3.0", "max_class_weight=2.5", "pass a number up to", min_class_weight=3.0),
    option("deepspeed='x.json'", "DDP", "or FSDP2", deepspeed="x.json"),
    option("fsdp='full_shard'", "over several accelerators", "leave FSDP out", fsdp="full_shard"),
    option("neftune_noise_alpha=5", "embeddings of words", "leave it out", neftune_noise_alpha=5),
    option("use_liger_kernel=True", "language models", "leave it out", use_liger_kernel=True),
    option("remove_unused_columns=True", "drops the images", "leave it out", remove_unused_columns=True),
    option("prediction_loss_only=True", "no accuracy", "leave it out", prediction_loss_only=True),
    option("'group_by_length'", "'random' or 'sequential'", "pass", train_sampling_strategy="group_by_length"),
    option(
        "eval_strategy='no'", "evaluations to choose by", "pass eval_strategy='epoch'", load_best_model_at_end=True
    ),
    option("eval_strategy='no'", "evaluations to choose by", "pass eval_strategy='epoch'", save_strategy="best"),
    option(f"{BEST}None", "'w_robust'", f"pass {BEST}", save_strategy="best", eval_strategy="epoch"),
    option(f"{BEST}''", "'w_robust'", "or leave it out", metric_for_best_model=""),
    option(
        *("eval_strategy='steps' and save_strategy='epoch'", "every evaluated checkpoint", "pass the same for both"),
        load_best_model_at_end=True,
        eval_strategy="steps",
        save_strategy="epoch",
    ),
    option(
        *("eval_steps=1 and save_steps=4", "may have no checkpoint", "save_strategy='best'"),
        load_best_model_at_end=True,
        eval_strategy="steps",
        save_strategy="steps",
        eval_steps=1,
        save_steps=4,
    ),
    option(
        *("eval_strategy='epoch' and save_strategy='no'", "every evaluated checkpoint", "pass the same for both"),
        load_best_model_at_end=True,
        eval_strategy="epoch",
        save_strategy="no",
    ),
)
def test_options_that_contradict_each_other_are_refused(row, request):
    refused(row, request)


def in_place_of_a_directory(scene, below=""):
    (scene.path / "afile").write_text("precious")
    try:
        scene.config(output_dir=str(scene.path / "afile" / below))
    finally:
        assert (scene.path / "afile").read_text() == "precious"
        (scene.path / "afile").unlink()


@table(
    Row("a file", in_place_of_a_directory, "afile", "expected a directory", "pass another", NotADirectoryError),
    Row(
        *("below a file", lambda scene: in_place_of_a_directory(scene, "run"), "afile/run", "expected a directory"),
        *("pass another", NotADirectoryError),
    ),
)
def test_output_dir_that_cannot_be_one_is_refused(row, request):
    refused(row, request)
