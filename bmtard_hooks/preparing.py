"""From a loader's batch to pixels on the training device."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, cast

import torch
from torch import Tensor
from torch.utils.data import DataLoader
from transformers import Trainer

from bmtard_hooks.checks import check_first_batch
from bmtard_hooks.config import BMTARDConfig
from bmtard_hooks.data import is_map_style, traced
from bmtard_hooks.decoding import as_pixels

if TYPE_CHECKING:
    from bmtard_hooks.trainer import BMTARDTrainer


class PreparesBatches(Trainer):
    """Lets images travel as bytes and turns them into pixels where they are used."""

    args: BMTARDConfig
    train_dataset: Any
    _looked_at_stream = False

    def create_accelerator_and_postprocess(self) -> None:
        """Let the loader not wait for the GPU when it sends the next batch from pinned memory. See ``Trainer``.

        A copy that waits would first wait for the whole step before it. Kernels read a batch after its copy in any case,
        because both are in one stream.
        """
        super().create_accelerator_and_postprocess()
        if self.args.dataloader_pin_memory:
            self.accelerator.dataloader_config.non_blocking = True

    def get_train_dataloader(self) -> DataLoader:
        """Load the training set so that a row that cannot be read is named. See ``Trainer``."""
        given, self._looked_at_stream = self.train_dataset, False
        if given is not None and not self.args.remove_unused_columns:  # which asks what kind of data set it is
            self.train_dataset = traced(given)
        try:
            return super().get_train_dataloader()
        finally:
            self.train_dataset = given

    def get_batch_samples(self, *args: Any, **kwargs: Any) -> tuple[list[Any], Any]:
        """Read a step's batches; the first of a stream, which cannot be looked at before, is checked here. See ``Trainer``."""
        batches, count = super().get_batch_samples(*args, **kwargs)
        if batches and not self._looked_at_stream and not is_map_style(self.train_dataset):
            check_first_batch(cast("BMTARDTrainer", self), batches[0])
            self._looked_at_stream = True
        return batches, count

    def _prepare_inputs(self, inputs: dict[str, Tensor | Any]) -> dict[str, Tensor | Any]:
        """Move a batch to the training device and make pixels of its bytes there. See ``Trainer``.

        Formula: ``pixel_values = byte / 255``, float32 ``(B, C, H, W)``, in channels_last layout if the run has that.
        Floats stay the tensors that they are.
        """
        batch = super()._prepare_inputs(inputs)
        pixels = batch.get("pixel_values")
        if isinstance(pixels, Tensor) and pixels.dtype == torch.uint8:
            pixels = as_pixels(pixels)
            if self.args.channels_last and pixels.ndim == 4:
                pixels = pixels.contiguous(memory_format=torch.channels_last)
            batch["pixel_values"] = pixels
        return batch
