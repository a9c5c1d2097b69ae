"""Everything that can be known to be wrong before the first step."""

from __future__ import annotations

import logging
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from torch import nn

from bmtard_hooks.checkpoint_folders import checkpoints
from bmtard_hooks.class_names import names_of_data, names_of_model, require_same_order
from bmtard_hooks.config import BMTARDConfig
from bmtard_hooks.data import is_map_style
from bmtard_hooks.data_checks import check_batch, check_datasets
from bmtard_hooks.decoding import as_pixels
from bmtard_hooks.distributed import is_sharded
from bmtard_hooks.evaluation_checks import check_evaluations
from bmtard_hooks.image_tensors import decodes_pictures
from bmtard_hooks.methods import Method, method_class
from bmtard_hooks.model_checks import check_networks
from bmtard_hooks.models.pixels import PixelClassifier
from bmtard_hooks.models.processors import size_after
from bmtard_hooks.option_checks import NO_DEEPSPEED
from bmtard_hooks.randomness import untouched_randomness
from bmtard_hooks.sharding import check_sharding

if TYPE_CHECKING:
    from bmtard_hooks.trainer import BMTARDTrainer

logger = logging.getLogger(__name__)

CUDA_GRAPHS = ("reduce-overhead", "max-autotune")
"""Modes of torch.compile that replay what they recorded in memory of its own."""


def refuse_unsupported(model: Any, args: Any, kwargs: Mapping[str, Any]) -> None:
    """Refuse what would train something else than asked for.

    Raises:
        TypeError: if ``args`` is not a ``BMTARDConfig``, or the model no model.
        ValueError: for a missing model, or for DeepSpeed and other options that the step does not support.
    """
    if not isinstance(args, BMTARDConfig):
        raise TypeError(
            f"args is a {type(args).__name__}: pass a BMTARDConfig, which takes every TrainingArguments option"
        )
    if kwargs.get("model_init") is not None or model is None:
        raise ValueError(
            "pass the student as model=…; model_init is not supported, because teachers are checked with it"
        )
    if isinstance(model, type):
        raise TypeError(f"model is the class {model.__name__}: pass an instance, {model.__name__}(…)")
    if not isinstance(model, (str, nn.Module)) or model == "":
        raise TypeError(
            f"model is {model!r:.60}, a {type(model).__name__}: pass a torch.nn.Module from pixels to logits, or the name of an "
            "architecture, a directory or a hub id as a string"
        )
    _refuse_options(args, kwargs)


def _refuse_options(args: BMTARDConfig, kwargs: Mapping[str, Any]) -> None:
    if kwargs.get("compute_loss_func") is not None:
        raise ValueError("compute_loss_func would replace the method's losses: register a Method instead")
    if args.deepspeed:
        raise ValueError(NO_DEEPSPEED)
    if args.label_smoothing_factor:
        raise ValueError(
            f"label_smoothing_factor={args.label_smoothing_factor} has no meaning for teacher losses: leave it at 0"
        )
    if args.enable_jit_checkpoint:
        raise ValueError(
            "enable_jit_checkpoint saves in the middle of a step, from which no run resumes exactly: leave it off"
        )
    if kwargs.get("preprocess_logits_for_metrics") is not None or args.batch_eval_metrics:
        raise ValueError(
            "preprocess_logits_for_metrics and batch_eval_metrics are not supported: use compute_metrics alone"
        )
    if not args.eval_do_concat_batches:
        raise ValueError(
            "eval_do_concat_batches=False is not supported: accuracies are those of all images, leave it on"
        )
    if getattr(args, "ddp_static_graph", None) and args.gradient_accumulation_steps > 1:
        raise ValueError(
            "ddp_static_graph with gradient_accumulation_steps > 1 crashes inside torch: switch one of them off"
        )
    if args.sync_batch_norm and args.world_size > 1 and args.device.type == "cpu":
        raise ValueError(
            "sync_batch_norm=True needs GPUs: torch's SyncBatchNorm refuses CPU tensors in several processes. Leave it off, and "
            "each process takes the statistics of its own images"
        )
    _refuse_cuda_graphs(args)
    if args.n_gpu > 1:
        logger.warning("nn.DataParallel attacks on one GPU only: start with accelerate launch or torchrun instead")


def _refuse_cuda_graphs(args: BMTARDConfig) -> None:
    """Refuse CUDA graphs where something must outlive the next call of a network, whose outputs and gradients go into the same memory."""
    if args.device.type != "cuda" or not args.torch_compile or args.torch_compile_mode not in CUDA_GRAPHS:
        return
    if args.gradient_accumulation_steps > 1:
        reason = f"gradient_accumulation_steps={args.gradient_accumulation_steps}"
    elif method_class(args.method).before_attack is not Method.before_attack:
        reason = f"method {args.method!r}, which forwards the student before the attack"
    else:
        return
    raise ValueError(
        f"torch_compile_mode={args.torch_compile_mode!r} does not go with {reason}: CUDA graphs would overwrite it. Leave the "
        "mode out, or pass 'max-autotune-no-cudagraphs'"
    )


def check_parts(
    student: PixelClassifier, teachers: Mapping[str, PixelClassifier], collator: Any, *datasets: Any
) -> None:
    """Compare class counts and the order of the classes, and the columns and labels of the data sets.

    Args:
        student: the student.
        teachers: the frozen teachers.
        collator: the collator that will be used.
        *datasets: training set, evaluation set (or a dictionary of them), or None.

    Raises:
        ValueError: if class counts differ, classes with the same name have different numbers, a column is missing or a label
            is outside the classes.
    """
    classes = student.num_classes
    for name, teacher in teachers.items():
        if classes is not None and teacher.num_classes is not None and teacher.num_classes != classes:
            raise ValueError(
                f"the {name} teacher has {teacher.num_classes} classes, the student has {classes}: both must have the same. "
                "Make the student with num_classes of the teacher, or pass a teacher of these classes"
            )
    train, evaluation = [*datasets, None, None][:2]
    _check_class_order(student, teachers, getattr(collator, "label_column", None), train, evaluation)
    check_datasets(train, evaluation, collator, classes)


def _check_class_order(
    student: PixelClassifier, teachers: Mapping[str, PixelClassifier], column: str | None, train: Any, evaluation: Any
) -> None:
    names = names_of_data(train, column)
    evaluations = evaluation if isinstance(evaluation, dict) else {"": evaluation}
    for key, rows in evaluations.items():
        role = f"eval_dataset[{key!r}]" if isinstance(evaluation, dict) else "eval_dataset"
        require_same_order(role, names_of_data(rows, column), "train_dataset", names)
    known = {"student": student, **{f"{name} teacher": teacher for name, teacher in teachers.items()}}
    reference = "train_dataset" if names else "student"
    for role, network in known.items():
        require_same_order(role, names_of_model(network), reference, names or names_of_model(student))


def check_before_training(trainer: BMTARDTrainer, resume: str | bool | None) -> None:
    """Check the output directory and try the models on two training images.

    Raises:
        FileExistsError: if the directory holds another run and nobody said what to do with it.
        ValueError: for data or teachers that do not fit.
    """
    if not trainer._own_directory:
        check_output_dir(trainer.args, resume)
    check_sharding(trainer)  # again, because callbacks may have come and weights may be sharded since
    _check_foreign_attack(trainer)
    _compare_radii(trainer)
    _check_reach(trainer)
    trainer.serialised_state()
    rows: Any = trainer.train_dataset
    if rows is None:
        raise ValueError("train_dataset is None, expected a data set: pass train_dataset= to the Trainer")
    if not is_map_style(rows):  # looking would use the stream up: see check_first_batch
        with untouched_randomness(trainer.args.device):
            check_evaluations(trainer)
        return
    if trainer.args.dataloader_num_workers == 0 and decodes_pictures(rows):
        logger.info(
            "train_dataset decodes its pictures anew in every epoch, and the training waits for it: "
            "bmtard_hooks.as_image_tensors(train_dataset) decodes them once; or set dataloader_num_workers"
        )
    with untouched_randomness(trainer.args.device):
        check_first_batch(trainer, trainer.data_collator([rows[0], rows[min(1, len(rows) - 1)]]))
        check_evaluations(trainer)


def check_first_batch(trainer: BMTARDTrainer, batch: Any) -> None:
    """Check the range of a batch's images and its labels, and try the networks on two of them.

    For a stream this is its first batch, before the step that takes it; weights, buffers, modes and random numbers stay as
    they are.

    Args:
        trainer: about to train.
        batch: what the collator gave: ``pixel_values`` ``(B, C, H, W)`` in [0, 1] or bytes, ``labels`` ``(B,)``.

    Raises:
        ValueError: for missing entries, images outside [0, 1], labels outside the classes, or networks that do not fit.
    """
    with untouched_randomness(trainer.args.device):
        check_batch(batch, trainer.student.num_classes)
        if not is_sharded(trainer.model):  # a stream's student is by now, and then every forward waits for all ranks
            check_networks(trainer, as_pixels(batch["pixel_values"][:2].to(trainer.args.device)))
        _compare_sizes(trainer, *batch["pixel_values"].shape[-2:])


def _compare_sizes(trainer: BMTARDTrainer, height: int, width: int) -> None:
    if getattr(getattr(trainer.model, "config", None), "model_type", None) == "timm_wrapper":
        return  # transformers reads its size from its own config
    scaled = size_after(trainer.processing_class, height, width)
    if scaled is not None and scaled != (height, width):
        logger.warning(
            "the training images have %dx%d pixels, and processing_class, which is saved with the student, brings such pictures to "
            "%dx%d: transformers' pipeline would show the student other sizes than it learned from. Give the processor the size of "
            "the training images",
            *(height, width, *scaled),
        )


def _check_foreign_attack(trainer: BMTARDTrainer) -> None:
    attack, method = trainer.crafter.attack, trainer.method
    if attack is None:
        return
    if not callable(attack):
        raise TypeError(
            f"attack={attack!r:.60} of PGDCollator is a {type(attack).__name__}: pass a torchattacks object or a function "
            "(images, labels) -> images, or leave it out for PGD"
        )
    if method.counts_correct_steps or len(method.adversarial_views) > 1:
        needs = "several attacks" if len(method.adversarial_views) > 1 else "every step of PGD"
        raise ValueError(
            f"attack={getattr(attack, '__name__', type(attack).__name__)} of PGDCollator does not go with method "
            f"{method.name!r}, which needs {needs}: leave attack= out, or choose another method"
        )


def _compare_radii(trainer: BMTARDTrainer) -> None:
    training, evaluation = trainer.crafter.settings, trainer.args.evaluation_attack()
    if training is None or trainer.method.attack is None or trainer.args.eval_attack_eps is not None:
        return
    if (training.eps, training.norm) != (evaluation.eps, evaluation.norm):
        logger.warning(
            "the collator attacks with %s eps=%.6f, evaluate() with %s eps=%.6f: pass the same eps and norm to "
            "BMTARDConfig, or set eval_attack_eps",
            *(training.norm, training.eps, evaluation.norm, evaluation.eps),
        )


def _check_reach(trainer: BMTARDTrainer) -> None:
    args = trainer.args
    crafts = trainer.method.attack is not None and trainer.crafter.attack is None
    attacks = {"step_size": trainer.crafter.settings if crafts else None}
    attacks["eval_attack_step_size"] = args.evaluation_attack() if args.eval_attack else None
    for option, settings in attacks.items():
        if settings is not None and settings.falls_short:
            logger.warning(
                "%d steps of %s=%.4g together do not reach the radius eps=%.4g: a weak attack. Set %s to "
                "more, for example to %.4g",
                *(settings.steps, option, settings.step_size, settings.eps),
                *(option, settings.ample_step),
            )


def check_output_dir(args: BMTARDConfig, resume: str | bool | None) -> None:
    """Refuse to write over another run.

    Raises:
        FileExistsError: if there are checkpoints or a model and neither resuming nor overwriting was asked for.
    """
    directory = Path(str(args.output_dir))
    if resume or args.overwrite_output_dir or not directory.is_dir():
        return
    found = next(iter([*checkpoints(directory), *directory.glob("model*.safetensors")]), None)
    if found is not None:
        raise FileExistsError(
            f"output_dir {directory} holds another run ({found.name}): pass resume_from_checkpoint=True to go on "
            "with it, another output_dir, or overwrite_output_dir=True"
        )
