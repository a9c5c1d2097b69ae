"""The collator: rows become pixels, and pixels become adversarial on the model's current weights."""

from __future__ import annotations

import copy
from collections.abc import Callable, Mapping, Sequence
from typing import Any, TypeVar

import torch
from torch import Tensor, nn

from bmtard_hooks.attacks.guard import attack_mode, checked_answer
from bmtard_hooks.attacks.losses import LOSSES, MovingTarget, Objective, cross_entropy, divergence, margin
from bmtard_hooks.attacks.pgd import PGDSettings, pgd
from bmtard_hooks.config import PAPER_AUGMENT, PAPER_PADDING, BMTARDConfig
from bmtard_hooks.data import AUGMENTATIONS, augment
from bmtard_hooks.decoding import as_pixels
from bmtard_hooks.distributed import rank_key
from bmtard_hooks.functional import soften
from bmtard_hooks.models.pixels import logits_of
from bmtard_hooks.randomness import keyed_generator
from bmtard_hooks.stacking import require_labels, stack_rows

Attack = Callable[[Tensor, Tensor], Tensor]
ADVERSARIAL_VIEW: Mapping[str, Mapping[str, Any]] = {"adv_pixel_values": {}}
Self = TypeVar("Self", bound="PGDCollator")


class PGDCollator:
    """Collates ``{image, label}`` rows to pixels and crafts their adversarial counterparts.

    Two entry points. ``collator(rows)`` stacks rows and knows no model, so it may run in data workers. ``craft(model,
    batch)`` augments and attacks on the batch's device with the weights the model has now; ``BMTARDTrainer`` calls it
    at the top of every step. Elsewhere, ``bind(model)`` makes ``collator(rows)`` craft by itself.

    What is left at None comes from ``BMTARDConfig`` and its method inside ``BMTARDTrainer`` and is the paper's elsewhere.

    Args:
        eps: radius in pixel scale (paper: 8/255).
        step_size: length of a step in the same unit (paper: 2/255).
        steps: number of steps (paper: 10).
        norm: ``linf`` (paper) or ``l2``.
        start: ``normal`` (paper), ``uniform`` or ``zero``, see ``PGDSettings``.
        clip_start: clip the start to [0, 1].
        loss: ``ce`` (paper), ``kl`` (from the model's clean prediction), ``margin``, or a callable ``(logits, labels)`` to
            ``(B,)``.
        attack: use this instead of PGD: a torchattacks object or any callable ``(images, labels) -> images``.
        train_mode: attack the model in the mode it is in instead of eval mode.
        augment: ``crop_flip`` (paper), ``crop``, ``flip`` or ``none``; applied before the attack.
        crop_padding: pixels of zero padding per side (paper: 4).
        image_column: name of the image column; usual names are found.
        label_column: name of the label column; usual names are found.
        mode: PIL mode that PIL images are converted to; None keeps theirs.
        num_classes: labels are checked against it if given.
        seed: of the noise and the augmentation (0 outside ``BMTARDTrainer``).

    Raises:
        ValueError: if a setting is outside its range.
    """

    def __init__(
        self,
        eps: float | None = None,
        step_size: float | None = None,
        steps: int | None = None,
        *,
        norm: str | None = None,
        start: str | None = None,
        clip_start: bool | None = None,
        loss: str | Callable[[Tensor, Tensor], Tensor] | None = None,
        attack: Attack | None = None,
        train_mode: bool | None = None,
        augment: str | None = None,
        crop_padding: int | None = None,
        image_column: str | None = None,
        label_column: str | None = None,
        mode: str | None = "RGB",
        num_classes: int | None = None,
        seed: int | None = None,
    ) -> None:
        if isinstance(loss, str) and loss not in LOSSES:
            raise ValueError(f"loss={loss!r} is unknown: choose one of {', '.join(LOSSES)} or pass a callable")
        if augment is not None and augment not in AUGMENTATIONS:
            raise ValueError(f"augment={augment!r} is unknown: choose one of {', '.join(AUGMENTATIONS)}")
        if crop_padding is not None and crop_padding < 0:
            raise ValueError(f"crop_padding={crop_padding} is negative: pass pixels per side, 0 or more")
        self._explicit = dict(
            eps=eps, step_size=step_size, steps=steps, norm=norm, start=start, clip_start=clip_start, train_mode=train_mode
        )  # fmt: skip
        self.settings = PGDSettings().replace(**self._explicit)
        self.loss, self.attack = loss, attack
        self.augment, self.crop_padding = augment, crop_padding
        self.image_column, self.label_column = image_column, label_column
        self.mode, self.num_classes, self.seed = mode, num_classes, seed
        self._model: nn.Module | None = None
        self._bound, self._output, self._calls = False, "replace", 0
        self._keeps_bytes = False

    def resolved(self: Self, config: BMTARDConfig, num_classes: int | None = None) -> Self:
        """Copy the collator, filling what was left open from a config and its method.

        The copy leaves bytes as bytes, because ``BMTARDTrainer`` turns them into pixels on the training device.

        Args:
            config: the run's options.
            num_classes: of the student.
        """
        copied = copy.copy(self)
        copied.settings = config.train_attack().replace(**self._explicit)
        copied.augment = copied.augment or config.augment
        copied.crop_padding = config.crop_padding if self.crop_padding is None else self.crop_padding
        copied.num_classes = num_classes if self.num_classes is None else self.num_classes
        copied.seed = config.seed if self.seed is None else self.seed
        copied._model, copied._bound = None, False  # the Trainer says when to craft
        # whoever extends the call, or asks for the inputs in compute_metrics, gets what a collator promises
        own_call = type(self).__call__ is PGDCollator.__call__
        copied._keeps_bytes = own_call and "inputs" not in config.include_for_metrics
        return copied

    def __call__(self, rows: Sequence[Any]) -> dict[str, Tensor]:
        """Stack rows.

        Args:
            rows: dictionaries or ``(image, label)`` tuples; images as ``to_pixels`` takes them, all of one size.

        Returns:
            ``pixel_values`` ``(B, C, H, W)`` float32 in [0, 1] and ``labels`` ``(B,)``; with a bound model, crafted.
            Inside ``BMTARDTrainer`` images of bytes stay uint8.

        Raises:
            ValueError: for missing columns, images of several sizes or outside [0, 1], labels outside the classes.
            RuntimeError: for a bound collator in a data worker.
        """
        if self._bound and (self._model is None or torch.utils.data.get_worker_info() is not None):
            raise RuntimeError(
                "PGDCollator is bound to a model, but runs in a data worker: the worker's copy of the weights never "
                "changes, so every attack would be stale. Use num_workers=0, or BMTARDTrainer, which crafts in the step"
            )
        keep_bytes = self._keeps_bytes or self._bound
        batch = stack_rows(rows, self.image_column, self.label_column, self.mode, keep_bytes)
        require_labels(batch["labels"], self.num_classes, rows)
        if self._model is None:
            return batch
        self._calls += 1
        device = next(self._model.parameters()).device
        on_device = {name: value.to(device) for name, value in batch.items()}
        crafted = self.craft(self._model, on_device, key=("bound", self._calls, *rank_key()))
        if self._output == "replace":
            crafted["pixel_values"] = crafted.pop("adv_pixel_values")
        return {name: value.cpu() for name, value in crafted.items()}  # loaders may pin what they get

    def bind(self: Self, model: nn.Module, output: str = "replace") -> Self:
        """Craft inside every ``collator(rows)`` from now on.

        For a plain ``DataLoader`` or a plain ``transformers.Trainer``, which then trains on adversarial images. A plain
        Trainer uses one collator for everything, so its evaluation sees attacked (and augmented) images too: bind a
        collator with ``augment="none"`` and read its accuracy as robust accuracy, or use ``BMTARDTrainer``. Loaders that
        read one batch ahead make the attack one step old; ``BMTARDTrainer`` has no such delay. Random numbers depend on the seed, the
        process and how many batches this object has crafted; no checkpoint holds that count, so a resumed run draws them anew.

        Args:
            model: maps pixels in [0, 1] to logits (a tensor or an output with ``.logits``).
            output: ``replace`` puts the adversarial images under ``pixel_values``; ``pair`` adds
                ``adv_pixel_values`` beside the clean ones.

        Returns:
            The collator itself.
        """
        if output not in ("replace", "pair"):
            raise ValueError(f"output={output!r} is unknown: choose 'replace' or 'pair'")
        self._model, self._bound, self._output = model, True, output
        return self

    def craft(
        self,
        model: nn.Module,
        batch: Mapping[str, Tensor],
        *,
        key: tuple[int | str, ...] = (),
        forward: Callable[[Tensor], Tensor] | None = None,
        objective: Callable[[Mapping[str, Tensor]], Objective | MovingTarget] | None = None,
        gradient_scale: float = 1.0,
        views: Mapping[str, Mapping[str, Any]] = ADVERSARIAL_VIEW,
        count_correct: bool = False,
        before_attack: Callable[[Mapping[str, Tensor]], Mapping[str, Tensor]] | None = None,
        observe_gradient: Callable[[Tensor], None] | None = None,
    ) -> dict[str, Tensor]:
        """Augment a batch and attack it with the model's current weights, leaving no trace on the model.

        Args:
            model: the attacked model; modes, gradients and buffers are restored.
            batch: ``pixel_values`` and ``labels`` on the device to work on.
            key: makes the random numbers of this call its own, for example ``(step, micro_step, rank)``.
            forward: pixels to logits, if it is not ``model(pixels)``.
            objective: makes the attack's objective from the augmented batch, if ``loss`` is None.
            gradient_scale: see ``pgd``.
            views: name of each entry to craft to changes of the settings; empty augments only.
            count_correct: also add ``correct_steps`` ``(B,)``: how many iterates were classified correctly before their step.
            before_attack: maps the augmented batch to entries that are added to it before the attack.
            observe_gradient: see ``pgd``.

        Returns:
            A new dictionary: ``pixel_values`` augmented, ``adv_pixel_values`` added, the rest as it was.

        Raises:
            ValueError: if a foreign attack returns images of another shape, outside [0, 1] or not finite, or if a method
                needs more than a foreign attack gives.
        """
        crafted = self._augmented(batch, key)
        if before_attack is not None:
            crafted.update(before_attack(crafted))
        images, labels = crafted["pixel_values"], crafted["labels"]
        if not views:
            return crafted
        if self.attack is not None:
            if count_correct or len(views) > 1:
                raise ValueError(
                    "the method needs PGD's iterates or several attacks: leave attack= of PGDCollator out"
                )
            with attack_mode(model, foreign=True):
                crafted["adv_pixel_values"] = checked_answer(self.attack(images, labels), images)
            return crafted
        call = forward if forward is not None else lambda pixels: logits_of(model(pixels))
        seen = _CorrectSteps(labels) if count_correct else None
        with attack_mode(model, train_mode=self.settings.train_mode):
            chosen = self._objective(call, crafted, objective)
            for view, changes in views.items():
                name = ("noise",) if view == "adv_pixel_values" else ("noise", view)
                crafted[view] = pgd(
                    call,
                    images,
                    chosen,
                    self.settings.replace(**changes),
                    generator=keyed_generator(self.seed or 0, *name, *key, device=images.device),
                    gradient_scale=gradient_scale,
                    observe=seen,
                    observe_gradient=observe_gradient,
                )
        if seen is not None:
            crafted["correct_steps"] = seen.counts
        return crafted

    def _augmented(self, batch: Mapping[str, Tensor], key: tuple[int | str, ...]) -> dict[str, Tensor]:
        images, kind = as_pixels(batch["pixel_values"]), self.augment or PAPER_AUGMENT
        if kind == "none":
            return {**batch, "pixel_values": images}
        generator = keyed_generator(self.seed or 0, "augment", *key, device=images.device)
        padding = PAPER_PADDING if self.crop_padding is None else self.crop_padding
        return {**batch, "pixel_values": augment(images, kind, padding, generator)}

    def _objective(
        self,
        forward: Callable[[Tensor], Tensor],
        batch: Mapping[str, Tensor],
        default: Callable[[Mapping[str, Tensor]], Objective | MovingTarget] | None,
    ) -> Objective | MovingTarget:
        labels, loss = batch["labels"], self.loss
        if callable(loss):
            return lambda logits: loss(logits, labels)
        if loss is None and default is not None:
            return default(batch)
        if loss == "kl":
            with torch.no_grad():
                return divergence(soften(forward(batch["pixel_values"])))
        return margin(labels) if loss == "margin" else cross_entropy(labels)

    def __copy__(self: Self) -> Self:
        """Copy everything, also what workers must not carry."""
        copied = object.__new__(type(self))
        copied.__dict__.update(self.__dict__)
        return copied

    def __deepcopy__(self: Self, memo: dict[int, Any]) -> Self:
        """Copy everything but the bound model and a foreign attack, which holds one: the weights of now are to be attacked."""
        copied = copy.copy(self)
        for name, value in self.__dict__.items():
            if name not in ("_model", "attack"):
                setattr(copied, name, copy.deepcopy(value, memo))
        return copied

    def __getstate__(self) -> dict[str, Any]:
        # Spawned workers get a copy that only stacks rows: it must not drag a model or an attack along.
        loss = self.loss if isinstance(self.loss, str) else None
        return {**self.__dict__, "_model": None, "attack": None, "loss": loss}


class _CorrectSteps:
    """Counts how many of the logits it is shown are right.

    Args:
        labels: ``(B,)``.
    """

    def __init__(self, labels: Tensor) -> None:
        self.labels = labels
        self.counts = torch.zeros_like(labels)

    def __call__(self, logits: Tensor) -> None:
        self.counts = self.counts + (logits.argmax(dim=1) == self.labels)
