"""Rows of images that were gathered at once."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from torch import Tensor


class ImageRows(Sequence[dict[str, Tensor]]):
    """Rows that were gathered at once: a sequence of dictionaries for any collator, two tensors for one that knows.

    Args:
        images: ``(B, C, H, W)``.
        labels: ``(B,)``.
    """

    def __init__(self, images: Tensor, labels: Tensor) -> None:
        self.images = images
        self.labels = labels
        self._rows: list[dict[str, Tensor]] | None = None

    @property
    def untouched(self) -> bool:
        """Whether nobody has seen a single row, and so could have changed it."""
        return self._rows is None

    def _each(self) -> list[dict[str, Tensor]]:
        if self._rows is None:  # kept, because collators may change the rows that they get
            pairs = zip(self.images, self.labels, strict=True)
            self._rows = [{"pixel_values": image, "labels": label} for image, label in pairs]
        return self._rows

    def __len__(self) -> int:
        return len(self.images)

    def __getitem__(self, index: Any) -> Any:
        return self._each()[index]
