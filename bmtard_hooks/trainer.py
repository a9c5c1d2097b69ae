"""The Trainer: images are crafted on current weights, teachers answer, callbacks balance, the parts are added up."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn
from transformers.trainer_utils import TrainOutput

from bmtard_hooks.assembly import choose_student, choose_teachers, with_method_callbacks
from bmtard_hooks.callbacks.model_card import ModelCardCallback, write_model_card
from bmtard_hooks.callbacks.progress import show_balance_in_progress
from bmtard_hooks.checks import check_before_training, check_parts, refuse_sharding, refuse_unsupported
from bmtard_hooks.collator import PGDCollator
from bmtard_hooks.config import BMTARDConfig
from bmtard_hooks.distributed import average_over_ranks, broadcast_buffers
from bmtard_hooks.evaluation.in_training import EvaluatesRobustness
from bmtard_hooks.evaluation.metrics import with_robust_metrics
from bmtard_hooks.methods import LossOutput, method_class
from bmtard_hooks.observation import FiniteGuard, StepMetrics
from bmtard_hooks.optimization import PaperOptimization
from bmtard_hooks.randomness import untouched_randomness
from bmtard_hooks.resume import KeepsDistillationState
from bmtard_hooks.state import DistillationState
from bmtard_hooks.window import AccumulationWindow, Batch


class BMTARDTrainer(EvaluatesRobustness, KeepsDistillationState, PaperOptimization):
    """A ``transformers.Trainer`` that distils robustness from one or more frozen teachers.

    Args:
        model: the student: a ``PixelClassifier``, a transformers image classifier, a timm network, any module from
            pixels to logits, or a name for ``create_model``.
        args: options; the paper's by default.
        data_collator: a ``PGDCollator``, whose settings win over those of ``args`` and of the method; or any collator
            that gives ``pixel_values`` in [0, 1] and ``labels``; made from ``args`` if None.
        clean_teacher: a module, a timm name with pretrained weights, a directory or a hub id.
        robust_teacher: the same.
        teachers: further teachers by name, for methods with more than these two.
        compute_metrics: as in ``Trainer``; sees the clean logits, robust metrics are added.
        callbacks: as in ``Trainer``; an ``EntropyBalance`` or ``LossBalance`` here replaces the method's own.
        **kwargs: everything else that ``Trainer`` takes.

    Attributes:
        student: the student in pixel space; ``model`` is the network inside, which is what gets saved.
        teachers: the frozen teachers by name.
        distillation: temperatures and weights, now.

    Raises:
        ValueError: for models, data or options that do not fit together, before anything is written.
        TypeError: if ``args`` is not a ``BMTARDConfig``.
    """

    _tag_names = ["bmtard", "adversarial-robustness", "knowledge-distillation"]
    model: Any
    _own_directory = False  # becomes true with the first training, which may then be repeated
    loss_is_scaled_for_ga = False  # losses are means over the micro-batch, whatever the student's forward accepts

    def __init__(
        self,
        model: str | nn.Module | None = None,
        args: BMTARDConfig | None = None,
        data_collator: Callable[[Any], Batch] | None = None,
        train_dataset: Any = None,
        eval_dataset: Any = None,
        *,
        clean_teacher: str | nn.Module | None = None,
        robust_teacher: str | nn.Module | None = None,
        teachers: Mapping[str, str | nn.Module] | None = None,
        compute_metrics: Callable[..., dict[str, Any]] | None = None,
        callbacks: list[Any] | None = None,
        **kwargs: Any,
    ) -> None:
        args = BMTARDConfig(output_dir="tmp_trainer") if args is None else args
        refuse_unsupported(model, args, kwargs)
        self.method = method_class(args.method)(args)
        student, collator = choose_student(model, args, data_collator, train_dataset, kwargs.get("processing_class"))
        roles = choose_teachers(
            self.method, student, {"clean": clean_teacher, "robust": robust_teacher, **(teachers or {})}
        )
        check_parts(student, roles, collator, train_dataset, eval_dataset)
        super().__init__(
            student.backbone,
            args,
            collator,
            train_dataset,
            eval_dataset,
            compute_metrics=with_robust_metrics(compute_metrics, args.w_robust_clean_weight),
            callbacks=with_method_callbacks(self.method.callbacks(), callbacks),
            **kwargs,
        )
        refuse_sharding(self)
        self.model_accepts_loss_kwargs = False
        self.student = student.to(args.device)
        self.teachers = {name: teacher.to(args.device) for name, teacher in roles.items()}
        # a foreign collator comes with transforms of its own, so nothing is augmented on top unless asked for
        quiet = PGDCollator(augment=args.augment or "none").resolved(args)
        self.crafter = collator if isinstance(collator, PGDCollator) else quiet
        if args.channels_last:
            for module in (self.model, *self.teachers.values()):
                module.to(memory_format=torch.channels_last)
        self._attacked = _compiled(self.model, args)
        self._asked = {name: _compiled(teacher, args) for name, teacher in self.teachers.items()}
        self._start_anew()
        show_balance_in_progress(self.callback_handler)
        self.add_callback(ModelCardCallback(self.model_card_facts))

    # The step of the paper.

    def training_step(self, model: nn.Module, inputs: Batch, num_items_in_batch: Any = None) -> Tensor:
        """Craft a micro-batch on the current weights, then compare, balance, add up and differentiate."""
        window = self._window
        model.train()  # before the attack, which may be asked to run in training mode
        if window.position == 0 and len(window) > 1 and self._listeners():
            self._preview(model)
        inputs = window.batches[window.position] if window.observed else self._craft(inputs, window.position)
        loss = super().training_step(model, inputs, num_items_in_batch)
        window.position += 1
        if window.is_over:
            self.distillation.advance()
        return loss

    def compute_loss(
        self, model: nn.Module, inputs: Batch, return_outputs: bool = False, num_items_in_batch: Any = None
    ) -> Any:
        """Add up the method's loss parts with the current weights."""
        student = partial(self.student.logits, model)
        output = self.method.loss_parts(student, self._teachers(), inputs, self.distillation)
        if not self._window.observed and not self._window.is_over:  # over: called by hand, not by a step
            self._observe([output])
        weights = self.distillation.weights
        loss = torch.stack([weights[part].to(value.dtype) * value for part, value in output.parts.items()]).sum()
        return (loss, output.parts) if return_outputs else loss

    def _observe(self, outputs: list[LossOutput]) -> None:
        """Average what the step shows over micro-batches and ranks, let callbacks act on it, and record it."""
        shown = {("loss", part): [output.parts[part].detach() for output in outputs] for part in outputs[0].parts}
        shown |= {("entropy", name): [output.entropies[name] for output in outputs] for name in outputs[0].entropies}
        means = average_over_ranks({f"{kind}_{name}": torch.stack(v).mean() for (kind, name), v in shown.items()})
        self._finite.watch(self.state.global_step, means)
        losses = {name: means[f"loss_{name}"] for kind, name in shown if kind == "loss"}
        entropies = {name: means[f"entropy_{name}"] for kind, name in shown if kind == "entropy"}
        temperatures = dict(self.distillation.temperatures)  # used in this step, before they move
        self.fire("on_losses", losses=losses, entropies=entropies, distillation=self.distillation)
        self._metrics.record(losses, entropies, temperatures, self.distillation, self.student.num_classes)

    def _preview(self, model: nn.Module) -> None:
        """Look at a whole accumulation window before its first backward, so that it is balanced like one large batch.

        Weights act in the step in which they move, but a window's losses are known only at its end. So the student's
        forwards run once more without gradient, with the random numbers and BatchNorm statistics that they will find;
        the teachers' answers are kept.
        """
        window = self._window
        window.batches = [self._craft(inputs, position) for position, inputs in enumerate(window.batches)]
        buffers = [buffer.clone() for buffer in self.model.buffers()]
        student = partial(self.student.logits, self.model)
        teachers = self._teachers(remember=True)
        with torch.no_grad(), untouched_randomness(self.args.device):
            outputs = [self.method.loss_parts(student, teachers, batch, self.distillation) for batch in window.batches]
            for buffer, saved in zip(self.model.buffers(), buffers, strict=True):
                buffer.copy_(saved)
        self._observe(outputs)
        window.observed = True

    def _craft(self, inputs: Batch, position: int) -> Batch:
        batch = self._prepare_inputs(inputs)
        if self.args.channels_last and batch["pixel_values"].ndim == 4:
            batch["pixel_values"] = batch["pixel_values"].contiguous(memory_format=torch.channels_last)
        broadcast_buffers(self.model)
        student = partial(self.student.logits, self._attacked)
        return self.crafter.craft(
            self.model,
            batch,
            key=(self.state.global_step, position, self.args.process_index),
            forward=student,
            objective=partial(self.method.attack_objective, student, self._teachers()),
            gradient_scale=self.attack_gradient_scale,
            adversarial=self.method.attack is not None,
        )

    def _teachers(self, remember: bool = False) -> dict[str, Callable[[Tensor], Tensor]]:
        return {name: partial(self._ask, name, remember) for name in self._asked}

    def _ask(self, name: str, remember: bool, pixels: Tensor) -> Tensor:
        def ask(pixels: Tensor) -> Tensor:
            with torch.no_grad(), self.accelerator.autocast():
                logits = self._asked[name](pixels)
            return logits.clone() if self.args.torch_compile else logits  # CUDA graphs reuse their output buffers

        answer = self._window.answer(name, pixels, ask)
        return self._window.remember(name, pixels, answer) if remember else answer

    def fire(self, event: str, **kwargs: Any) -> None:
        """Call an event that only some callbacks have, the way Trainer calls its own."""
        handler = self.callback_handler
        for react in self._listeners(event):
            control = react(
                self.args,
                self.state,
                self.control,
                model=handler.model,
                optimizer=handler.optimizer,
                lr_scheduler=handler.lr_scheduler,
                **kwargs,
            )
            self.control = control if control is not None else self.control

    def _listeners(self, event: str = "on_losses") -> list[Callable[..., Any]]:
        found = [getattr(callback, event, None) for callback in self.callback_handler.callbacks]
        return [react for react in found if callable(react)]

    def get_batch_samples(self, *args: Any, **kwargs: Any) -> tuple[list[Batch], Any]:
        """Remember the micro-batches of the optimizer step that begins."""
        batches, count = super().get_batch_samples(*args, **kwargs)
        self._window = AccumulationWindow(batches)
        return batches, count

    def _start_anew(self) -> None:
        device = self.args.device
        self.distillation = DistillationState.create(self.method.temperatures(), self.method.weights, device)
        self._metrics, self._finite, self._window = StepMetrics(), FiniteGuard(), AccumulationWindow()

    def _inner_training_loop(self, *args: Any, **kwargs: Any) -> Any:
        self._start_anew()  # here, because a retry with a smaller batch (auto_find_batch_size) starts over too
        return super()._inner_training_loop(*args, **kwargs)

    def train(self, resume_from_checkpoint: str | bool | None = None, *args: Any, **kwargs: Any) -> TrainOutput:
        """Train, after every check that does not need a step. See ``Trainer.train``.

        Raises:
            FileExistsError: if ``output_dir`` holds another run.
            ValueError: for data, labels or teachers that do not fit.
            FloatingPointError: if a loss stops being finite; checkpoints written before stay as they are.
        """
        if isinstance(resume_from_checkpoint, str) and resume_from_checkpoint.lower() in ("true", "false"):
            resume_from_checkpoint = resume_from_checkpoint.lower() == "true"  # as a command line gives it
        check_before_training(self, resume_from_checkpoint)
        self._own_directory = True
        output = super().train(resume_from_checkpoint, *args, **kwargs)
        self._finite.check()
        return output

    def log(self, logs: dict[str, float], *args: Any, **kwargs: Any) -> None:
        """Add the balance's numbers to a training log. See ``Trainer.log``."""
        if "loss" in logs:
            logs |= self._metrics.collect()
        super().log(logs, *args, **kwargs)

    def create_model_card(self, *args: Any, **kwargs: Any) -> None:
        """Write the model card into ``output_dir``; works for any student, without network."""
        if self.is_world_process_zero():
            write_model_card(str(self.args.output_dir), **self.model_card_facts())

    def model_card_facts(self) -> dict[str, Any]:
        """Collect what the model card says."""
        return {
            "args": self.args,
            "student": self.student,
            "teachers": self.teachers,
            "attack": self.crafter.settings,
            "state": self.state,
        }


def _compiled(module: nn.Module, args: BMTARDConfig) -> Any:
    if not args.torch_compile:
        return module
    return torch.compile(module, backend=args.torch_compile_backend or "inductor", mode=args.torch_compile_mode)
