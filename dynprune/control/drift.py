"""Noticing that the traffic changed, from the usage of the active units that every row gives for free."""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor

_BLOCK_ROWS = 64  # rows averaged before a comparison
_WARM_BLOCKS = 8  # blocks that make up the band
_MEMORY = 64  # blocks over which band and usual deviation move with slow changes
_LARGEST = 25.0  # a single unit counts for at most this much
_FLOOR = 0.1  # of the variance over rows and pixels: a band of repeated inputs has no width of its own
_USUAL = 0.25  # least usual deviation, for the same reason


class DriftDetector:
    """Compares blocks of rows with a running band of each active unit's mean |a|.

    The deviation of a block is the mean over units of ``(m - mu)^2 * rows / v``. Units move together,
    so how much it varies in steady traffic depends on the model: it is taken relative to its own
    running mean. The alarm is raised when the exponential mean (one half) of that ratio exceeds
    ``threshold``: one block far out, or two in a row.

    Args:
        threshold: of the deviation, as a multiple of the usual one.
    """

    def __init__(self, threshold: float) -> None:
        self.threshold = threshold
        self.reset()

    @property
    def warm(self) -> bool:
        """Whether the band is known and blocks are compared with it."""
        return self._blocks >= _WARM_BLOCKS

    def reset(self) -> None:
        """Forget the band: another plan serves, and the units see other inputs."""
        self._sums: Tensor | None = None
        self._rows = 0
        self._blocks = 0
        self._mean = torch.empty(0, dtype=torch.float64)
        self._var = torch.empty(0, dtype=torch.float64)
        self._usual = 2 * _USUAL
        self._level = 1.0

    def add(self, usage: Mapping[str, Tensor], rows: int) -> bool:
        """Add the usage ``[4, active]`` of every group over ``rows`` rows; True: the traffic changed."""
        if not usage or rows == 0:
            return False
        sums = torch.cat([usage[name] for name in sorted(usage)], dim=1)
        self._sums = sums if self._sums is None else self._sums + sums
        self._rows += rows
        if self._rows < _BLOCK_ROWS:
            return False
        magnitude, _, square, count = self._sums
        count = count.clamp(min=1.0)
        mean = magnitude / count
        spread = (square / count - mean.square()).clamp(min=0.0)
        block_rows, self._sums, self._rows = self._rows, None, 0
        return self._compare(mean, spread, block_rows)

    def _compare(self, mean: Tensor, spread: Tensor, rows: int) -> bool:
        self._blocks += 1
        if self._blocks == 1:
            self._mean, self._var = mean, torch.zeros_like(mean)
            return False
        share = 1 / min(self._blocks, _MEMORY)
        square = (mean - self._mean).square() * rows
        if self._blocks > _WARM_BLOCKS:
            width = self._var + _FLOOR * spread + 1e-30
            deviation = float((square / width).clamp(max=_LARGEST).mean())
            ratio = deviation / max(self._usual, _USUAL)
            self._level = (self._level + ratio) / 2
            if self._level > self.threshold:
                return True
            self._usual += share * (min(deviation, self.threshold * self._usual) - self._usual)
        self._mean = self._mean + share * (mean - self._mean)
        self._var = self._var + share * (square - self._var)
        return False
