"""Optimizer and learning rate of the paper, replaceable in all the usual ways."""

from __future__ import annotations

import logging
import math
from collections.abc import Sequence
from typing import Any

import torch
from torch import nn
from transformers import Trainer
from transformers.training_args import OptimizerNames

from bmtard_hooks.config import BMTARDConfig
from bmtard_hooks.data import is_map_style
from bmtard_hooks.distributed import is_sharded
from bmtard_hooks.methods import Method
from bmtard_hooks.schedule import epoch_schedule, multi_step_schedule

logger = logging.getLogger(__name__)


class PaperOptimization(Trainer):
    """SGD with momentum, weight decay on every parameter, a learning rate that falls at milestones."""

    args: BMTARDConfig
    model: Any
    method: Method
    optimizer: Any
    train_dataset: Any

    @staticmethod
    def get_optimizer_cls_and_kwargs(args: Any, model: Any = None) -> tuple[Any, Any]:
        """Add the momentum, which ``TrainingArguments`` has no field for, to SGD. See ``Trainer``."""
        optimizer_class, kwargs = Trainer.get_optimizer_cls_and_kwargs(args, model)
        if args.optim == OptimizerNames.SGD:
            kwargs = {"momentum": args.momentum, "nesterov": args.nesterov, **kwargs}
        return optimizer_class, kwargs

    def get_decay_parameter_names(self, model: nn.Module) -> list[str]:
        """Name the decayed parameters: all of them, unless ``weight_decay_all`` is off. See ``Trainer``."""
        if self.args.weight_decay_all:
            return [name for name, _ in model.named_parameters()]
        return super().get_decay_parameter_names(model)

    def create_scheduler(self, num_training_steps: int, optimizer: torch.optim.Optimizer | None = None) -> Any:
        """Make the multi-step schedule, or transformers' own if another one was asked for. See ``Trainer``."""
        optimizer = optimizer if optimizer is not None else self.optimizer
        if self.lr_scheduler is not None or self.args.lr_scheduler_type != "constant":
            schedule = super().create_scheduler(num_training_steps, optimizer)
            for group in optimizer.param_groups:  # where schedules note it, but for those that look at a metric
                group.setdefault("initial_lr", group["lr"])
            return schedule
        warmup_steps = self.args.get_warmup_steps(num_training_steps)
        if self.args.lr_milestones is None and self.method.lr_factor(0, 1.0) is not None:
            epochs = self._epochs(num_training_steps)
            self.lr_scheduler = epoch_schedule(
                optimizer, self.method.lr_factor, epochs, num_training_steps, warmup_steps
            )
        else:
            shares: Sequence[float] = self.method.lr_drops
            if self.args.lr_milestones is not None:
                shares = [milestone / self._epochs(num_training_steps) for milestone in self.args.lr_milestones]
            steps = [round(share * num_training_steps) for share in shares]
            self.lr_scheduler = multi_step_schedule(optimizer, steps, self.args.lr_gamma, warmup_steps)
        self._warn_about_schedule(num_training_steps)
        self._created_lr_scheduler = True
        return self.lr_scheduler

    def _warn_about_schedule(self, num_training_steps: int) -> None:
        epochs = self._epochs(num_training_steps) if self.args.lr_milestones else 0
        late = [milestone for milestone in self.args.lr_milestones or [] if milestone >= epochs]
        if late:
            logger.warning(
                "lr_milestones %s come after the last of %g epochs, so the learning rate will not fall there: leave "
                "lr_milestones out to keep the method's proportions",
                *(late, epochs),
            )
        elif self.args.lr_milestones is None and self._begins_at_zero(num_training_steps):
            logger.warning(
                "method %r has a learning rate of 0 in its last epoch, which is this run's first: train for several epochs, "
                "or choose another lr_scheduler_type",
                self.method.name,
            )

    def _begins_at_zero(self, num_training_steps: int) -> bool:
        by_epoch = self.method.lr_factor
        return by_epoch(0, 1.0) is not None and by_epoch(0, math.ceil(self._epochs(num_training_steps))) == 0

    def _epochs(self, num_training_steps: int) -> float:
        if self.args.max_steps <= 0:
            return self.args.num_train_epochs
        if not is_map_style(self.train_dataset):
            if self.args.lr_milestones is None:
                raise ValueError(
                    f"the learning rate of method {self.method.name!r} follows the epochs, and a stream has none: choose "
                    "another lr_scheduler_type, for example cosine"
                )
            raise ValueError(
                "lr_milestones are epochs, and a stream has none: leave them out, or choose lr_scheduler_type"
            )
        images = self.get_total_train_batch_size(self.args) // self.args.gradient_accumulation_steps
        whole = math.floor if self.args.dataloader_drop_last else math.ceil
        batches = whole(len(self.train_dataset) / images)
        return num_training_steps / max(1, math.ceil(batches / self.args.gradient_accumulation_steps))

    def hyperparameter_search(self, *args: Any, **kwargs: Any) -> Any:
        """Refuse, because a search needs ``model_init``, and a student is checked together with its teachers.

        Raises:
            ValueError: always; it says what to do instead.
        """
        raise ValueError(
            "hyperparameter_search is not supported, because it makes students without their teachers: make one BMTARDTrainer per "
            "trial instead, for example in the objective of optuna's study.optimize, and return trainer.evaluate()['eval_w_robust']"
        )

    def floating_point_ops(self, inputs: Any) -> int:
        """Count nothing: transformers' estimate is made for language models and is far off for convolutions."""
        return 0

    def _get_grad_norm(self, model: nn.Module, grad_norm: Any = None) -> Any:
        # Without clipping, transformers gets the number for the log by clipping to infinity, which also multiplies every
        # gradient by 1. fp16 needs that call, because it unscales the gradients, and so do sharded ones.
        if grad_norm is not None or self.accelerator.mixed_precision == "fp16" or is_sharded(self.model):
            return super()._get_grad_norm(model, grad_norm)  # type: ignore[misc]
        return torch.nn.utils.get_total_norm([p.grad for p in model.parameters() if p.grad is not None])
