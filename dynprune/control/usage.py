"""Running usage statistics, in float64."""

from __future__ import annotations

import dataclasses

import torch
from torch import Tensor

from dynprune.ops.reference import USAGE_ROWS


@dataclasses.dataclass(frozen=True)
class UsageStats:
    """Statistics of each unit's activation after its activation function; each ``[units]``, float64.

    Of a group of several layers, such as a residual sum, they are those of the values that its read
    points see: behind the sums and what follows them.

    They come from rows whose every layer was dense. ``count`` is the number of activations behind
    them (rows times pixels), older ones counting less; a unit never seen has zeros.
    """

    mean_abs: Tensor
    mean: Tensor
    var: Tensor
    count: Tensor

    @classmethod
    def from_sums(cls, sums: Tensor) -> UsageStats:
        """From usage sums ``[4, units]``: of |a|, a, a^2, and the count."""
        magnitude, total, square, count = sums
        n = count.clamp(min=1e-300)
        mean = total / n
        var = (square / n - mean.square()).clamp(min=0.0)
        return cls(magnitude / n, mean, var, count.clone())


class RunningUsage:
    """Decayed usage sums of one group.

    Args:
        units: of the group.
        window: rows after which an observation counts half.
    """

    def __init__(self, units: int, window: int) -> None:
        self.window = window
        self.sums = torch.zeros(USAGE_ROWS, units, dtype=torch.float64)
        self.rows = 0.0

    def add(self, usage: Tensor, rows: int) -> None:
        """Add the sums ``[4, units]`` of ``rows`` rows."""
        keep = 0.5 ** (rows / self.window)
        self.sums = usage.add(self.sums, alpha=keep)
        self.rows = self.rows * keep + rows

    def stats(self) -> UsageStats:
        """The statistics of what was added."""
        return UsageStats.from_sums(self.sums)


class RunningMean:
    """Decayed mean of the values at one read point ``[units]``."""

    def __init__(self, units: int, window: int) -> None:
        self.window = window
        self.total = torch.zeros(units, dtype=torch.float64)
        self.count = torch.zeros(units, dtype=torch.float64)

    def add(self, sums: Tensor, positions: int, rows: int) -> None:
        """Add sums ``[units]`` over ``positions`` values each, from ``rows`` rows; NaN is left out."""
        keep = 0.5 ** (rows / self.window)
        good = sums.isfinite()
        self.total = self.total * keep + torch.where(good, sums, 0.0)
        self.count = self.count * keep + good * float(positions)

    def mean(self) -> Tensor:
        """The mean ``[units]``; 0 where nothing was seen."""
        return self.total / self.count.clamp(min=1e-300)
