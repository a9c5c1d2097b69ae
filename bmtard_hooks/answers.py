"""A memory for a network's answers within one step."""

from __future__ import annotations

from torch import Tensor


class Answers:
    """Finds an answer again by the very tensor of images that was asked about.

    The images are kept too, or a new tensor could get the identity of one that is gone; and their version, because whoever
    holds them may change them in place.
    """

    def __init__(self) -> None:
        self._kept: dict[int, tuple[Tensor, int, Tensor]] = {}

    def keep(self, pixels: Tensor, answer: Tensor) -> None:
        """Remember an answer, in place of an earlier one on these images."""
        self._kept[id(pixels)] = (pixels, pixels._version, answer)

    def find(self, pixels: Tensor) -> Tensor | None:
        """Return the answer on these images as they are now; None if there is none."""
        _, version, answer = self._kept.get(id(pixels), (pixels, None, None))
        return answer if version == pixels._version else None

    def take(self, pixels: Tensor) -> Tensor | None:
        """Return what ``find`` does, and let go of it."""
        answer = self.find(pixels)
        self._kept.pop(id(pixels), None)
        return answer
