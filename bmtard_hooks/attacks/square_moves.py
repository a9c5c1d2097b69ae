"""The moves of the square attack: how a search starts, and how one square of an image changes, for each norm."""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from dataclasses import dataclass
from functools import lru_cache

import torch
from torch import Tensor

TINY = 1e-12


@dataclass(frozen=True)
class Moves(ABC):
    """Moves on images of one shape, flattened to ``(B, C, H * W)``, made from numbers in [0, 1).

    Args:
        eps: radius in pixel scale.
        channels: C.
        height: H.
        width: W.
    """

    eps: float
    channels: int
    height: int
    width: int

    @property
    @abstractmethod
    def start_numbers(self) -> tuple[int, ...]:
        """Shape of the numbers that one image's start takes."""

    @property
    @abstractmethod
    def try_numbers(self) -> int:
        """How many numbers one try of one image takes."""

    @abstractmethod
    def side(self, share: float) -> int:
        """Turn the share of the pixels that change into a square's side."""

    @abstractmethod
    def start(self, images: Tensor, numbers: Tensor) -> Tensor:
        """Make the first candidate from ``images`` and ``(B, *start_numbers)``."""

    @abstractmethod
    def change(self, images: Tensor, best: Tensor, side: int, numbers: Tensor) -> Tensor:
        """Make the next candidate from the best one so far; ``numbers`` is ``(B, try_numbers)``."""

    def _rounded_side(self, share: float) -> int:
        return round(math.sqrt(share * self.height * self.width))

    def _window(self, side: int, rows: Tensor, columns: Tensor) -> Tensor:
        """Find the pixels of each image's square, ``(B, C, side * side)`` positions.

        The last row and column stay out of reach of squares smaller than the image, as in the reference.
        """
        steps = torch.arange(side, device=rows.device)
        top, left = (rows * (self.height - side)).long(), (columns * (self.width - side)).long()
        pixels = (top[:, None] + steps)[:, :, None] * self.width + (left[:, None] + steps)[:, None, :]
        return pixels.flatten(1)[:, None].expand(-1, self.channels, -1)


class LinfMoves(Moves):
    """Start with vertical stripes of +-eps; a try sets one square to +-eps, one sign per channel."""

    @property
    def start_numbers(self) -> tuple[int, ...]:
        """See ``Moves``."""
        return (self.channels, 1, self.width)

    @property
    def try_numbers(self) -> int:
        """See ``Moves``: row, column and a sign per channel."""
        return 2 + self.channels

    def side(self, share: float) -> int:
        """See ``Moves``."""
        return min(max(self._rounded_side(share), 1), self.height, self.width)

    def start(self, images: Tensor, numbers: Tensor) -> Tensor:
        """See ``Moves``."""
        stripes = _sign(numbers).expand(-1, -1, self.height, -1).flatten(2)
        return (images + self.eps * stripes).clamp(0, 1)

    def change(self, images: Tensor, best: Tensor, side: int, numbers: Tensor) -> Tensor:
        """See ``Moves``."""
        window = self._window(side, numbers[:, 0], numbers[:, 1])
        centre = images.gather(2, window)
        # 2 * eps reaches the other face of the ball from any point of it; the ball's own bounds then cut it to eps
        pushed = best.gather(2, window) + 2 * self.eps * _sign(numbers[:, 2:, None])
        square = torch.minimum(torch.maximum(pushed, centre - self.eps), centre + self.eps)
        return best.scatter(2, window, square.clamp(0, 1))


class L2Moves(Moves):
    """Start with a grid of bumps; a try moves the length spent in one square into a bump in another."""

    @property
    def start_numbers(self) -> tuple[int, ...]:
        """See ``Moves``: per tile of the grid a transposition and a sign per channel."""
        return (len(self._tiles()), 1 + self.channels)

    @property
    def try_numbers(self) -> int:
        """See ``Moves``: two rows and columns, a transposition and a sign per channel."""
        return 5 + self.channels

    def side(self, share: float) -> int:
        """See ``Moves``; odd and at least 3 where the image is that large."""
        side = max(self._rounded_side(share), 3)
        return min(side + 1 - side % 2, self.height, self.width)

    def start(self, images: Tensor, numbers: Tensor) -> Tensor:
        """See ``Moves``."""
        side = self._tile_side()
        delta = torch.zeros_like(images).view(-1, self.channels, self.height, self.width)
        for tile, (top, left) in enumerate(self._tiles()):
            bumps = self._bumps(side, numbers[:, tile, 0], numbers[:, tile, 1:])
            delta[:, :, top : top + side, left : left + side] = bumps.unflatten(2, (side, side))
        return self._on_sphere(images, delta.flatten(2))

    def change(self, images: Tensor, best: Tensor, side: int, numbers: Tensor) -> Tensor:
        """See ``Moves``."""
        delta = best - images
        into = self._window(side, numbers[:, 0], numbers[:, 1])
        out_of = self._window(side, numbers[:, 2], numbers[:, 3])
        unused = (self.eps**2 - delta.square().sum(dim=(1, 2), keepdim=True)).clamp_min(0)
        old = delta.gather(2, into)
        rest = delta.scatter(2, into, 0.0)  # so that the squares' overlap is counted once
        energy = _energy(old) + _energy(rest.gather(2, out_of))
        new = self._bumps(side, numbers[:, 4], numbers[:, 5:]) + old / (TINY + _energy(old).sqrt())
        new = new / (TINY + _energy(new).sqrt()) * (unused / self.channels + energy).sqrt()
        return self._on_sphere(images, rest.scatter(2, out_of, 0.0).scatter(2, into, new))

    def _on_sphere(self, images: Tensor, delta: Tensor) -> Tensor:
        length = delta.square().sum(dim=(1, 2), keepdim=True).sqrt()
        return (images + delta / (length + TINY) * self.eps).clamp(0, 1)

    def _bumps(self, side: int, transposed: Tensor, signs: Tensor) -> Tensor:
        """Make a bump per image and channel, ``(B, C, side * side)``."""
        shape = bump(side).to(signs)
        chosen = torch.where((transposed > 0.5)[:, None], shape.T.flatten(), shape.flatten())
        return _sign(signs)[:, :, None] * chosen[:, None]

    def _tile_side(self) -> int:
        return max(min(self.height, self.width) // 5, 1)

    def _tiles(self) -> list[tuple[int, int]]:
        """List the tiles' corners; tiles that would stick out of the image are left away."""
        side = self._tile_side()
        rows, columns = (
            [start for start in range(max(length - 5 * side, 0) // 2 % side, length - side + 1, side)]
            for length in (self.height, self.width)
        )
        return [(row, column) for row in rows for column in columns]


@lru_cache(maxsize=256)
def bump(side: int) -> Tensor:
    """Make the two-sided pyramid of the L2 moves: one half up, the other down, of unit length.

    Args:
        side: pixels of a side.

    Returns:
        ``(side, side)`` float32.
    """
    up, down = _pyramid(side // 2, side), _pyramid(side - side // 2, side)
    shape = torch.cat([up, -down])
    return shape / shape.square().sum().sqrt()


def _pyramid(height: int, width: int) -> Tensor:
    """Sum ``1 / k^2`` over the rings ``k`` around a pixel that lie outside it; unit length."""
    rows, columns = torch.arange(height) - height // 2, torch.arange(width) - width // 2
    ring = torch.maximum(rows.abs()[:, None], columns.abs()[None])
    weights = 1 / torch.arange(1, max(height // 2, width // 2) + 2).square()
    shape = weights.flip(0).cumsum(0).flip(0)[ring]
    return shape / shape.square().sum().sqrt()


def _sign(numbers: Tensor) -> Tensor:
    return torch.where(numbers < 0.5, -1.0, 1.0).to(numbers)


def _energy(windows: Tensor) -> Tensor:
    return windows.square().sum(dim=2, keepdim=True)
