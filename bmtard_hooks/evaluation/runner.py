"""Runs attacks over a data set: shared among processes, in full batches, no image twice, and going on after a kill."""

from __future__ import annotations

import logging
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any, Protocol

import numpy as np
import torch
from accelerate.utils import broadcast_object_list, gather_object
from torch import Tensor

from bmtard_hooks._version import __version__
from bmtard_hooks.attacks.base import Attack
from bmtard_hooks.attacks.guard import attack_mode
from bmtard_hooks.distributed import processes
from bmtard_hooks.evaluation.attacking import BatchOutcome, attack_batch, judge
from bmtard_hooks.evaluation.outcome_store import (
    UNKNOWN,
    OutcomeStore,
    Records,
    fingerprint_model,
    fingerprint_tensors,
)
from bmtard_hooks.evaluation.report import AttackOutcome
from bmtard_hooks.image_tensors import ImageTensors
from bmtard_hooks.models.pixels import PixelClassifier

logger = logging.getLogger(__name__)


class Listener(Protocol):
    """Hears how far a run is; see ``EvaluationProgress``."""

    def attack_started(self, name: str, images: int, passes: int) -> None:
        """Hear that this process will attack ``images`` images, each at most ``passes`` passes long."""

    def passed(self, passes: int) -> None:
        """Hear of image passes."""

    def batch_done(self, images: int, broken: int) -> None:
        """Hear that a batch is finished."""


class AttackRunner:
    """Attacks images of one data set with one model; every process must make the same calls.

    Args:
        model: the classifier, on the device to use.
        data: the images.
        seed: of all random numbers.
        batch_size: images at a time; does not change results.
        forward: faster way to the model's logits for the search, see ``attack_batch``.
        state_dir: where outcomes are kept while running; None for nowhere.
        listener: hears of progress.
        device: where the model is; by default where its parameters are.
    """

    def __init__(
        self,
        model: PixelClassifier,
        data: ImageTensors,
        *,
        seed: int = 0,
        batch_size: int = 256,
        forward: Callable[[Tensor], Tensor] | None = None,
        state_dir: str | Path | None = None,
        listener: Listener | None = None,
        device: torch.device | None = None,
    ) -> None:
        self.model = model
        self.data = data
        self.seed = seed
        self.batch_size = batch_size
        self.forward = forward
        self.listener = listener
        self.labels = data.labels.numpy()
        self.processes = processes()
        self.device = next(model.parameters(), torch.empty(0)).device if device is None else device
        self._outcomes: dict[str, AttackOutcome] = {}
        # one process's answers for all: devices that round differently would share out different images
        (self.logits,) = broadcast_object_list([self._classify()])
        key = {**fingerprint_model(model, self.logits), "seed": seed, "version": __version__}
        key["images"] = fingerprint_tensors([data.images, data.labels])
        self.store = OutcomeStore(state_dir, key, self.processes.process_index)
        self.predictions = self.logits.argmax(axis=1)
        self.correct = self.predictions == self.labels

    @property
    def num_classes(self) -> int:
        """Number of logits."""
        return int(self.logits.shape[1])

    @property
    def pixel_count(self) -> int:
        """Numbers in an image, ``C * H * W``."""
        return int(self.data.images[0].numel())

    def pixels(self, indices: np.ndarray) -> Tensor:
        """Load images as ``(B, C, H, W)`` float32 in [0, 1] on the device."""
        images = self.data.pixels(torch.from_numpy(np.asarray(indices, dtype=np.int64)))
        return images.to(self.device).contiguous(memory_format=torch.channels_last)

    def labels_of(self, indices: np.ndarray) -> Tensor:
        """Load true classes ``(B,)`` on the device."""
        return torch.from_numpy(self.labels[indices]).to(self.device)

    def _classify(self) -> np.ndarray:
        logits = []
        with attack_mode(self.model):
            for start in range(0, len(self.data), self.batch_size):
                indices = np.arange(start, min(start + self.batch_size, len(self.data)))
                logits.append(judge(self.model, self.pixels(indices)).cpu().numpy())
        return np.concatenate(logits)

    def run(self, attack: Attack, name: str, indices: np.ndarray) -> AttackOutcome:
        """Attack the given images, except those that this attack has had already.

        Args:
            attack: the attack.
            name: what it is called; part of the key of its random numbers.
            indices: positions of correctly classified images.

        Returns:
            Its outcome so far, these images included; the same object on every call, the same values on every process.

        Raises:
            NonFiniteLogits: if the model answers NaN or infinity.
            InvalidExamples: if the attack returns something that is not an adversarial image.
        """
        outcome, identity = self._outcomes.get(name), attack.identity()
        if outcome is None or outcome.settings != attack.settings():
            outcome = self._outcomes[name] = self._empty(attack)
            # One process reads for all: another may be writing already, and all must agree on what is left to do.
            kept = [self.store.load(name, identity) if self.processes.is_main_process else None]
            (records,) = broadcast_object_list(kept)
            _enter(outcome, records)
        own = self.store.load(name, identity, own=True)
        todo = np.sort(np.asarray(indices, dtype=np.int64))
        todo = todo[~outcome.attacked[todo]]
        mine = todo[self.processes.process_index :: self.processes.num_processes]
        new, error = Records(), None
        try:
            self._attack(attack, name, mine, own, new, identity)
        except Exception as caught:
            error = caught
        for records, failure in gather_object([(new, error)]):
            if failure is not None:
                raise failure
            _enter(outcome, records)
        return outcome

    def _attack(
        self, attack: Attack, name: str, mine: np.ndarray, own: Records, new: Records, identity: dict[str, Any] | None
    ) -> None:
        if self.listener is not None:
            self.listener.attack_started(name, len(mine), attack.passes(self.num_classes))
        at_once = attack.images_at_once(self.batch_size)
        for start in range(0, len(mine), at_once):
            indices = mine[start : start + at_once]
            columns, totals = self._batch(attack, name, indices)
            for records in (own, new):
                records.add(columns, totals)
            self.store.save(name, identity, own)
            if self.listener is not None:
                self.listener.batch_done(len(indices), int(columns["broken"].sum()))

    def _batch(self, attack: Attack, name: str, indices: np.ndarray) -> tuple[dict[str, np.ndarray], dict[str, float]]:
        began = time.perf_counter()
        batch = attack_batch(
            attack,
            self.model,
            self.pixels(indices),
            self.labels_of(indices),
            indices.tolist(),
            self.seed,
            name,
            forward=self.forward,
            on_pass=self.listener.passed if self.listener is not None else None,
        )
        columns = _columns(indices, batch)
        seconds = time.perf_counter() - began
        return columns, {"forwards": batch.forwards, "backwards": batch.backwards, "seconds": seconds}

    def _empty(self, attack: Attack) -> AttackOutcome:
        none = np.zeros(len(self.labels), dtype=bool)
        return AttackOutcome(attack.settings(), none, none.copy(), notes=attack.notes(self.num_classes))


def _columns(indices: np.ndarray, batch: BatchOutcome) -> dict[str, np.ndarray]:
    def values(tensor: Tensor | None) -> np.ndarray:
        return np.full(len(indices), UNKNOWN) if tensor is None else tensor.cpu().numpy().astype(np.int64)

    return {
        "index": indices,
        "broken": values(batch.broken),
        "broken_on_the_way": values(batch.broken_on_the_way),
        "queries": values(batch.queries),
    }


def _enter(outcome: AttackOutcome, records: Records) -> None:
    index, broken, on_the_way, queries = records.table()
    if not len(index):
        return
    outcome.attacked[index] = True
    outcome.broken[index] = broken == 1
    count = len(outcome.attacked)
    if np.any(on_the_way != UNKNOWN):
        if outcome.broken_on_the_way is None:
            outcome.broken_on_the_way = np.zeros(count, dtype=bool)
        outcome.broken_on_the_way[index] = on_the_way == 1
    if np.any(queries != UNKNOWN):
        if outcome.queries is None:
            outcome.queries = np.zeros(count, dtype=np.int64)
        outcome.queries[index] = queries
    outcome.forwards += int(records.totals["forwards"])
    outcome.backwards += int(records.totals["backwards"])
    outcome.seconds += records.totals["seconds"]
