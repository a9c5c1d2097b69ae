"""Weight averaging: what is evaluated, chosen and saved is a running average of the student that is trained."""

from __future__ import annotations

import logging
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import torch
from timm.utils import ModelEmaV3
from torch import Tensor, nn
from torch.optim.swa_utils import AveragedModel, get_swa_avg_fn
from torch.utils.data import DataLoader, RandomSampler
from transformers import TrainerState, set_seed

from bmtard_hooks.batch_statistics import BatchesOfSeveral, batch_norms, estimate_statistics
from bmtard_hooks.buffers import kept_buffers
from bmtard_hooks.callbacks.base import DistillationCallback
from bmtard_hooks.data import is_map_style
from bmtard_hooks.randomness import keyed_generator, untouched_randomness

logger = logging.getLogger(__name__)

STARTS = {"ema": 0.025, "swa": 55 / 200}
"""Kind to the share of the run before it starts."""
KIND_STATISTICS = {"ema": "live", "swa": "samples"}
ESTIMATED = ("samples", "batches")
STATISTICS = ("live", "average", *ESTIMATED)


class WeightAveraging(DistillationCallback):
    """Keeps a running average of the student's parameters beside the training, which does not notice.

    Formula: ``ema`` after every optimizer step g, ``A <- k * A + (1 - k) * W`` with ``k = 0`` before ``g0 = start * steps``, then
    ``k = min(decay, (1 + d) / (10 + d))``, ``d = g - g0``. ``swa`` after every epoch from 0-based ``start * epochs`` on,
    ``A <- A + (W - A) / (n + 1)`` with n the number of averaged epochs.

    ``evaluate``, ``RobustEvaluation`` and ``save_model`` use the average; a checkpoint's model is the one that is trained, so that
    a run can be resumed, and the average is beside it. At the end the model becomes the average.

    Args:
        kind: ``ema`` or ``swa``.
        decay: highest share of the average that a step of ``ema`` keeps, in (0, 1).
        start: share of the run before it starts (None: 0.025 for ``ema``, 0.275 for ``swa``).
        statistics: BatchNorm of the average. ``live`` takes the trained model's; ``average`` averages them like parameters;
            ``samples`` and ``batches`` estimate them anew on the augmented clean training images, every image or every batch
            counting the same (None: ``live`` for ``ema``, ``samples`` for ``swa``).
        warmup: let the decay of ``ema`` rise as in the formula; without, it is ``decay`` from g0 on.

    Raises:
        ValueError: if a setting is outside its range, for ``swa`` on a stream, or for weights in half precision.

    Reference: Gowal et al., 2020 (EMA, in its PyTorch port); Chen et al., ICLR 2021 (SWA).
    """

    def __init__(
        self,
        kind: str = "ema",
        decay: float = 0.995,
        start: float | None = None,
        statistics: str | None = None,
        warmup: bool = True,
    ) -> None:
        if kind not in STARTS:
            raise ValueError(f"weight averaging {kind!r} is unknown: choose one of {', '.join(STARTS)}")
        if not 0 < decay < 1:
            raise ValueError(f"averaging_decay={decay} must be in (0, 1), 0.995 or 0.999 for example")
        self.kind, self.decay, self.warmup = kind, decay, warmup
        self.start = STARTS[kind] if start is None else start
        self.statistics = KIND_STATISTICS[kind] if statistics is None else statistics
        if not 0 <= self.start <= 1:
            raise ValueError(f"averaging_start={start} must be a share of the run in [0, 1]")
        if self.statistics not in STATISTICS:
            raise ValueError(f"averaging_statistics={statistics!r} is unknown: choose one of {', '.join(STATISTICS)}")
        self.reset()

    def reset(self) -> None:
        """Forget the average."""
        self.updates = 0
        self._average: Any = None
        self._estimated: dict[str, Tensor] = {}
        self._estimated_at = 0
        self._shown = self._said = False

    # Updating.

    def on_train_begin(self, args: Any, state: TrainerState, control: Any, **kwargs: Any) -> None:
        """Copy the student, unless a checkpoint brought an average."""
        if self.kind == "swa" and not is_map_style(self.trainer.train_dataset):
            raise ValueError(
                "swa averages the ends of epochs, which a stream does not have: use weight_averaging='ema'"
            )
        if self._estimates() and not is_map_style(self.trainer.train_dataset):
            raise ValueError(
                f"averaging_statistics={self.statistics!r} needs a data set with a length: use 'live' or 'average'"
            )
        if self._average is None:
            self._average = self._copy()
        if self.kind == "ema":
            self._average.update_after_step = self.start * state.max_steps - 2

    def on_step_end(self, args: Any, state: TrainerState, control: Any, **kwargs: Any) -> None:
        """Average: the step for ``ema``, the epoch that the step ends for ``swa``.

        Here, not when Trainer says that the epoch is over, so that a checkpoint of the step has the epoch already.
        """
        if self.kind == "ema":
            first = self.start * state.max_steps
            self._average.update(self.trainer.model, state.global_step if state.global_step >= first else 0)
            self.updates += 1
            return
        epoch = state.epoch or 0.0
        is_over = abs(epoch - round(epoch)) < 1e-6
        if is_over and round(epoch) - 1 >= self.start * state.num_train_epochs - 1e-6:
            self._average.update_parameters(self.trainer.model)
            self.updates += 1

    def on_train_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        """Make the average the model."""
        if not self.updates:
            logger.warning("weight averaging never began, so the model has its own weights: lower averaging_start")
            return
        self.complete()
        _copy_all(self._content())
        self._shown = True  # for good
        logger.info("the model now has the averaged weights (%s)", self.kind)

    # Showing.

    def describe(self) -> str:
        """Say for a reader what the average is; empty before it has begun."""
        if not self.updates:
            return ""
        how = f"decay {self.decay:g}" if self.kind == "ema" else "equal mean of epoch ends"
        return f"{self.kind.upper()}, {how}, from {self.start:.2%} of the run, BatchNorm statistics: {self.statistics}"

    @contextmanager
    def in_model(self) -> Iterator[None]:
        """Let the model hold the average inside, and put its own weights back afterwards, also when something raises.

        Values are copied into the tensors that the model has, so whoever refers to these (DistributedDataParallel, the
        optimizer, a compiled graph) goes on to. Before the average has begun, and inside another such block, nothing changes.
        """
        if self._shown or not self.updates:
            yield
            return
        self.complete()
        if not self._said:
            logger.info("evaluating averaged weights (%s)", self.kind)
        self._shown = self._said = True
        try:
            with _holding(self._content()):
                yield
        finally:
            self._shown = False

    def complete(self) -> None:
        """Estimate BatchNorm statistics, if they are to be estimated and the average has moved since."""
        if self._estimated_at == self.updates or not self._estimates():
            return
        model = self.trainer.model
        put_back = kept_buffers(model)
        try:
            with _holding(self._parameters()), untouched_randomness(self.trainer.args.device):
                estimate_statistics(model, self.trainer.student, self._batches(), self.statistics == "samples")
                norms = {id(buffer) for norm in batch_norms(model) for buffer in norm.buffers(recurse=False)}
                self._estimated = {name: value.clone() for name, value in model.named_buffers() if id(value) in norms}
        finally:
            put_back()
        self._estimated_at = self.updates

    def _batches(self) -> Iterator[Tensor]:
        trainer, args = self.trainer, self.trainer.args
        seed = trainer.crafter.seed or 0
        set_seed(keyed_generator(seed, "averaging", self.updates).initial_seed() % 2**32)  # dropout, random transforms
        generator = keyed_generator(seed, "averaging order", self.updates)
        order = RandomSampler(trainer.train_dataset, generator=generator)  # a batch of one class would vary too little
        loader = DataLoader(
            trainer.train_dataset,
            batch_sampler=BatchesOfSeveral(order, trainer._train_batch_size),  # as auto_find_batch_size left it
            collate_fn=trainer.data_collator,
            num_workers=args.dataloader_num_workers,
            generator=generator,
        )
        for index, batch in enumerate(loader):
            key = ("averaging", self.updates, index)
            augmented = trainer.crafter.craft(trainer.model, trainer._prepare_inputs(batch), key=key, views={})
            pixels = augmented["pixel_values"]
            if args.channels_last and pixels.ndim == 4:
                pixels = pixels.contiguous(memory_format=torch.channels_last)
            yield pixels

    def _estimates(self) -> bool:
        return self.statistics in ESTIMATED and bool(batch_norms(self.trainer.model))

    def _parameters(self) -> list[tuple[Tensor, Tensor]]:
        return list(zip(self.trainer.model.parameters(), self._average.module.parameters(), strict=True))

    def _content(self) -> list[tuple[Tensor, Tensor]]:
        model, content = self.trainer.model, self._parameters()
        if self.statistics == "average":
            content += zip(saved_buffers(model).values(), saved_buffers(self._average.module).values(), strict=True)
        buffers = dict(model.named_buffers())
        return content + [(buffers[name], value) for name, value in self._estimated.items()]

    # Checkpoints.

    def state_dict(self) -> dict[str, Any]:
        """Return how often was averaged, and how."""
        return {"kind": self.kind, "statistics": self.statistics, "updates": self.updates}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Take over how often was averaged.

        Raises:
            ValueError: if the checkpoint averaged in another way.
        """
        for name in ("kind", "statistics"):
            if state[name] != getattr(self, name):
                raise ValueError(
                    f"the checkpoint's weights were averaged with {name} {state[name]!r}, this run has "
                    f"{getattr(self, name)!r}: make it the same to resume"
                )
        self.updates = int(state["updates"])

    def tensors(self) -> dict[str, Tensor]:
        """Return the average."""
        if not self.updates:
            return {}
        self.complete()
        module = self._average.module
        found = {f"parameter.{name}": value for name, value in module.named_parameters()}
        if self.statistics == "average":
            found |= {f"buffer.{name}": value for name, value in saved_buffers(module).items()}
        return found | {f"buffer.{name}": value for name, value in self._estimated.items()}

    def load_tensors(self, tensors: Mapping[str, Tensor]) -> None:
        """Go on with the average of the checkpoint.

        Raises:
            ValueError: if the checkpoint lacks a part of it.
        """
        if not self.updates:
            return
        self._average = self._copy() if self._average is None else self._average
        if self.kind == "swa":
            self._average.n_averaged.fill_(self.updates)
        module, device = self._average.module, self.trainer.args.device
        into = {f"parameter.{name}": value for name, value in module.named_parameters()}
        if self.statistics == "average":
            into |= {f"buffer.{name}": value for name, value in saved_buffers(module).items()}
        missing = sorted(into.keys() - tensors.keys())
        if missing:
            raise ValueError(f"the checkpoint lacks averaged weights ({missing[0]} …): resume from an older one")
        _copy_all([(value, tensors[name]) for name, value in into.items()])
        rest = {name: value for name, value in tensors.items() if name not in into}
        self._estimated = {name.removeprefix("buffer."): value.to(device) for name, value in rest.items()}
        self._estimated_at = self.updates if self._estimated else 0

    def _copy(self) -> Any:
        model, averages_buffers = self.trainer.model, self.statistics == "average"
        if any(parameter.dtype in (torch.float16, torch.bfloat16) for parameter in model.parameters()):
            raise ValueError("half precision is too coarse for an average of weights: load the model in float32")
        if self.kind == "swa":
            return AveragedModel(model, avg_fn=get_swa_avg_fn(), use_buffers=averages_buffers)
        # gamma 9 and power 1 make timm's warm-up the formula's
        return ModelEmaV3(
            model,
            self.decay,
            use_warmup=self.warmup,
            warmup_gamma=9,
            warmup_power=1,
            exclude_buffers=not averages_buffers,
        )


def saved_buffers(module: nn.Module) -> dict[str, Tensor]:
    """Select the buffers that belong into a checkpoint, by name."""
    saved = module.state_dict(keep_vars=True)
    return {name: value for name, value in module.named_buffers() if name in saved}


@contextmanager
def _holding(content: list[tuple[Tensor, Tensor]]) -> Iterator[None]:
    kept = [(tensor, tensor.detach().clone()) for tensor, _ in content]
    try:
        _copy_all(content)
        yield
    finally:
        _copy_all(kept)


@torch.no_grad()
def _copy_all(content: Iterable[tuple[Tensor, Tensor]]) -> None:
    for tensor, value in content:
        tensor.copy_(value)
