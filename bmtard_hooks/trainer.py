"""The Trainer: images are crafted on current weights, teachers answer, callbacks balance, the parts are added up."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

from bmtard_hooks.asking import AsksTeachers
from bmtard_hooks.assembly import by_role, choose_student, choose_teachers, with_method_callbacks
from bmtard_hooks.callbacks.additions import added_callbacks
from bmtard_hooks.callbacks.balance_watch import BalanceWatch
from bmtard_hooks.callbacks.model_card import ModelCardCallback, write_model_card
from bmtard_hooks.callbacks.progress import show_balance_in_progress
from bmtard_hooks.checks import check_parts, refuse_unsupported
from bmtard_hooks.class_names import names_of_data, record_names
from bmtard_hooks.collator import PGDCollator
from bmtard_hooks.config import BMTARDConfig
from bmtard_hooks.continuity import GoesOnCallback
from bmtard_hooks.data import is_map_style
from bmtard_hooks.distributed import average_over_ranks, broadcast_buffers, world_size
from bmtard_hooks.evaluation.in_training import EvaluatesRobustness
from bmtard_hooks.evaluation.metrics import with_robust_metrics
from bmtard_hooks.finite_guard import FiniteGuard
from bmtard_hooks.methods import Classifier, LossOutput, Method, make_method
from bmtard_hooks.models.sync_batch_norm import synchronise_batch_norm
from bmtard_hooks.observation import StepMetrics
from bmtard_hooks.optimization import PaperOptimization
from bmtard_hooks.preparing import PreparesBatches
from bmtard_hooks.running import RunsSafely
from bmtard_hooks.sharding import check_sharding, gathers_once, prepare_sharding
from bmtard_hooks.state import DistillationState
from bmtard_hooks.stopping import StopRequest
from bmtard_hooks.student_checks import refuse_student
from bmtard_hooks.window import AccumulationWindow, Batch


class BMTARDTrainer(RunsSafely, EvaluatesRobustness, PaperOptimization, PreparesBatches, AsksTeachers):
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
        self.method: Method = make_method(args)
        student, collator = choose_student(model, args, data_collator, train_dataset, kwargs.get("processing_class"))
        refuse_student(student.backbone, args)
        if args.sync_batch_norm and args.world_size > 1:
            synchronise_batch_norm(student)
        roles = choose_teachers(self.method, student, by_role(clean_teacher, robust_teacher, teachers))
        check_parts(student, roles, collator, train_dataset, eval_dataset)
        record_names(student, names_of_data(train_dataset, getattr(collator, "label_column", None)))
        super().__init__(
            student.backbone,
            args,
            collator,
            train_dataset,
            eval_dataset,
            compute_metrics=with_robust_metrics(compute_metrics, args.w_robust_clean_weight),
            callbacks=with_method_callbacks(self.method.callbacks() + added_callbacks(self.method), callbacks),
            **kwargs,
        )
        check_sharding(self)
        self.model_accepts_loss_kwargs = False
        self.student = student.to(args.device)
        self.teachers = {name: teacher.to(args.device) for name, teacher in roles.items()}
        # a foreign collator comes with transforms of its own, so nothing is augmented on top unless asked for
        quiet = PGDCollator(augment=args.augment or "none").resolved(args)
        self.crafter = collator if isinstance(collator, PGDCollator) else quiet
        if args.channels_last:
            for module in (self.model, *self.teachers.values()):
                module.to(memory_format=torch.channels_last)
        prepare_sharding(self)
        self._stop = StopRequest()
        self._start_anew()
        show_balance_in_progress(self.callback_handler)
        for callback in (BalanceWatch(self), GoesOnCallback(self), ModelCardCallback(self.model_card_facts)):
            self.add_callback(callback)  # attaches the others too

    # The step of the paper.

    def training_step(self, model: nn.Module, inputs: Batch, num_items_in_batch: Any = None) -> Tensor:
        """Craft the step's micro-batches on the current weights, then compare, balance, add up and differentiate."""
        return self.unless_left_out(self._step, model, inputs, num_items_in_batch)

    def _step(self, model: nn.Module, inputs: Batch, num_items_in_batch: Any) -> Tensor:
        window = self._window
        model.train()  # before the attack, which may be asked to run in training mode
        if window.position == 0:
            self._open(window, model)
        loss = super().training_step(model, window.batches[window.position], num_items_in_batch)
        window.require_compared(type(self))
        window.position += 1
        if window.is_over:
            self.distillation.advance()
            window.clear()
        return loss

    def compute_loss(
        self, model: nn.Module, inputs: Batch, return_outputs: bool = False, num_items_in_batch: Any = None
    ) -> Any:
        """Add up the method's loss parts with the current weights."""
        self._window.compared = True
        output = self.method.loss_parts(self._student(model), self.ask_teachers(), inputs, self.distillation)
        if not self._window.observed and not self._window.is_over:  # over: called by hand, not by a step
            self._observe([output])
        loss = self.weighted(output)
        return (loss, output.parts) if return_outputs else loss

    def weighted(self, output: LossOutput) -> Tensor:
        """Add up a method's loss parts with the current weights and the method's coefficients."""
        weights = self.distillation.weights
        return torch.stack(
            [
                weights[part].to(value.dtype) * output.coefficients.get(part, 1.0) * value
                for part, value in output.parts.items()
            ]
        ).sum()

    def _open(self, window: AccumulationWindow, model: nn.Module) -> None:
        self.distillation.epoch, self.distillation.epochs = self._epoch()
        batches = [self._prepare_inputs(inputs) for inputs in window.batches]
        self.copy_networks(batches[0]["pixel_values"], self.distillation.epoch)
        crafted = [self._craft(model, batch, position) for position, batch in enumerate(batches)]
        window.batches = [dict(b) for b in self.method.prepare(self.ask_teachers(True), crafted, self.distillation)]
        self.note_images(window.batches)
        self.fire("on_crafted", batches=window.batches)
        if len(window) > 1 and self.listeners("on_losses"):
            self._preview()

    def _observe(self, outputs: list[LossOutput]) -> None:
        """Average what the step shows over micro-batches and ranks, let callbacks act on it, and record it."""
        shown = {("loss", part): [output.parts[part].detach() for output in outputs] for part in outputs[0].parts}
        shown |= {("entropy", name): [output.entropies[name] for output in outputs] for name in outputs[0].entropies}
        shown |= {("attack", "zero_gradient"): gone} if (gone := self._window.zero_gradients) else {}
        shown |= {("class", name): [output.class_sums[name] for output in outputs] for name in outputs[0].class_sums}
        means = average_over_ranks(
            {f"{kind}_{name}": torch.stack(v).mean(0) for (kind, name), v in shown.items()}
            | self._stop.share(self.args.device)
            | self._finite.share(self.args.device)
        )
        self._stop.heard(means.pop("stop", None))
        noted, scalars = means.pop("noted", None), {name: mean for name, mean in means.items() if mean.ndim == 0}
        self._finite.watch(self.state.global_step, scalars, noted)
        losses, entropies, classes, attack = (
            {name: means[f"{kind}_{name}"] for found, name in shown if found == kind}
            for kind in ("loss", "entropy", "class", "attack")
        )
        temperatures = dict(self.distillation.temperatures)  # used in this step, before they move
        self.fire(
            "on_losses",
            losses=losses,
            entropies=entropies,
            distillation=self.distillation,
            class_sums={name: mean * len(outputs) * world_size() for name, mean in classes.items()},
        )
        self._metrics.record(losses, entropies, temperatures, self.distillation, self.student.num_classes, attack)

    def _preview(self) -> None:
        """Look at a whole accumulation window before its first backward, so that it is balanced like one large batch.

        Weights act in the step in which they move, but a window's losses are known only at its end. So the student's
        forwards run once more without gradient, with the random numbers and BatchNorm statistics that they will find;
        the teachers' answers are kept.
        """
        with torch.no_grad(), self.without_trace():
            self._observe([self.look(batch) for batch in self._window.batches])
        self._window.observed = True

    def look(self, batch: Batch) -> LossOutput:
        """Compute the loss parts of a crafted batch beside the step; inside ``without_trace``, the step will not notice."""
        return self.method.loss_parts(self._student(self.model), self.ask_teachers(True), batch, self.distillation)

    @gathers_once
    def _craft(self, model: nn.Module, batch: Batch, position: int) -> Batch:
        if self.args.channels_last and batch["pixel_values"].ndim == 4:
            batch["pixel_values"] = batch["pixel_values"].contiguous(memory_format=torch.channels_last)
        broadcast_buffers(self.model)
        method, state = self.method, self.distillation
        student = self.attacked_student(self.crafter.settings.train_mode)
        return self.crafter.craft(
            self.model,
            batch,
            key=(self.state.global_step, position, self.args.process_index),
            forward=student,
            before_attack=lambda batch: method.before_attack(self._student(model), self.ask_teachers(), batch, state),
            objective=lambda batch: method.attack_objective(student, self.ask_teachers(True), batch, state),
            gradient_scale=self.attack_gradient_scale,
            views=method.adversarial_views,
            count_correct=method.counts_correct_steps,
            observe_gradient=self.note_attack,
        )

    def _student(self, model: nn.Module) -> Classifier:
        return partial(self.student.logits, model)

    def _epoch(self) -> tuple[int, float]:
        """Return how many epochs are finished, and of how many; 0 of 1 for a stream without end."""
        epochs = self.state.num_train_epochs
        if not is_map_style(self.train_dataset) and self.args.max_steps > 0:
            return 0, 1.0
        return int((self.state.epoch or 0) + 1e-6), float(epochs)

    def get_batch_samples(self, *args: Any, **kwargs: Any) -> tuple[list[Batch], Any]:
        """Remember the micro-batches of the optimizer step that begins."""
        batches, count = super().get_batch_samples(*args, **kwargs)
        self._window = AccumulationWindow(batches)
        return batches, count

    def _start_anew(self) -> None:
        device = self.args.device
        per_class = {name: [value] * self._classes() for name, value in self.method.per_class().items()}
        self.distillation = DistillationState.create(
            self.method.temperatures(), self.method.weights, device, per_class
        )
        for callback in self.distillation_callbacks():
            callback.reset()
        for name in self.method.trained_teachers:
            self.teachers[name].train()
        self.forget_copies()
        self._metrics, self._window = StepMetrics(), AccumulationWindow()
        self._finite = FiniteGuard(self.args.max_skipped_steps)

    def _classes(self) -> int:
        if self.student.num_classes is None:
            raise ValueError(
                f"method {self.method.name!r} treats classes differently, and the student does not say how many it has: give "
                "it a num_classes attribute"
            )
        return self.student.num_classes

    def log(self, logs: dict[str, float], *args: Any, **kwargs: Any) -> None:
        """Add the balance's numbers to a training log. See ``Trainer.log``."""
        if "loss" in logs:
            logs |= self._metrics.collect() | ({"skipped_steps": self._finite.skipped} if self._finite.skipped else {})
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
            "averaging": "; ".join(callback.describe() for callback in self.weight_averages()),
        }
