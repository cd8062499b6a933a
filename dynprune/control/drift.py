"""Noticing that the traffic changed, from the usage of the active units that every row gives for free."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping

import torch
from torch import Tensor

_BLOCK_ROWS = 64  # rows averaged before a comparison
_LEAST_ROWS = 16  # of a batch that can stand out on its own
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
        self._band: _Band | None = None
        self._usual = 2 * _USUAL
        self._level = 1.0

    def carry(self, before: Mapping[str, Tensor], after: Mapping[str, Tensor]) -> None:
        """A plan serves that differs in a few units: what is known of the others stays.

        Args:
            before: group -> bool ``[units]``, the active units so far.
            after: the same, from now on.
        """
        self._sums, self._rows = None, 0
        if self._band is None:
            return
        places, offset = [], 0
        for name in sorted(after):
            place = torch.where(before[name], before[name].cumsum(0) - 1 + offset, -1)
            places.append(place[after[name]])
            offset += int(before[name].sum())
        if offset != len(self._band.mean):  # some group's usage is not seen
            self.reset()
            return
        place = torch.cat(places)
        known = place >= 0
        mean, var = (
            torch.where(known, value[place.clamp(min=0)], float("nan"))
            for value in (self._band.mean, self._band.var)
        )
        self._band = _Band(mean, var)

    def stands_out(self, usage: Mapping[str, Tensor], rows: int) -> bool:
        """Whether one batch alone is as far out as makes an alarm; changes nothing."""
        band = self._band
        if not self.warm or band is None or not usage or rows < _LEAST_ROWS:
            return False
        mean, spread = _moments(torch.cat([usage[name] for name in sorted(usage)], dim=1))
        if len(mean) != len(band.mean):  # of the plan before
            return False
        return band.deviation(mean, spread, rows) > self.threshold * max(self._usual, _USUAL)

    def add(self, usage: Mapping[str, Tensor], rows: int) -> bool:
        """Add the usage ``[4, active]`` of every group over ``rows`` rows; True: the traffic changed."""
        if not usage or rows == 0:
            return False
        sums = torch.cat([usage[name] for name in sorted(usage)], dim=1)
        if self._sums is not None and self._sums.shape != sums.shape:
            self.reset()
        self._sums = sums if self._sums is None else self._sums + sums
        self._rows += rows
        if self._rows < _BLOCK_ROWS:
            return False
        mean, spread = _moments(self._sums)
        block_rows, self._sums, self._rows = self._rows, None, 0
        return self._compare(mean, spread, block_rows)

    def _compare(self, mean: Tensor, spread: Tensor, rows: int) -> bool:
        self._blocks += 1
        band = self._band
        if band is not None and len(band.mean) != len(mean):  # a publication was cut off
            self.reset()
            return False
        if band is None:
            self._band = _Band(mean, torch.zeros_like(mean))
            return False
        share = 1 / min(self._blocks, _MEMORY)
        if self._blocks > _WARM_BLOCKS:
            deviation = band.deviation(mean, spread, rows)
            ratio = deviation / max(self._usual, _USUAL)
            self._level = (self._level + ratio) / 2
            if self._level > self.threshold:
                return True
            self._usual += share * (min(deviation, self.threshold * self._usual) - self._usual)
        self._band = band.moved(mean, spread, rows, share)
        return False


@dataclasses.dataclass(frozen=True)
class _Band:
    """Running mean of each unit's mean |a| and of its squared deviation; NaN of a unit that is new."""

    mean: Tensor
    var: Tensor

    def deviation(self, mean: Tensor, spread: Tensor, rows: int) -> float:
        """How far out a block is, in the mean over the units that are known."""
        square = (mean - self.mean).square() * rows
        width = self.var + _FLOOR * spread + 1e-30
        return float((square / width).clamp(max=_LARGEST).nanmean())

    def moved(self, mean: Tensor, spread: Tensor, rows: int, share: float) -> _Band:
        """The band after one more block."""
        square = (mean - self.mean).square() * rows
        new = self.mean.isnan()
        # A new unit starts with a wide band, which narrows.
        return _Band(
            torch.where(new, mean, self.mean + share * (mean - self.mean)),
            torch.where(new, 4 * spread, self.var + share * (square - self.var)),
        )


def _moments(sums: Tensor) -> tuple[Tensor, Tensor]:
    """Mean |a| and variance of each unit, from usage sums ``[4, active]``."""
    magnitude, _, square, count = sums
    count = count.clamp(min=1.0)
    mean = magnitude / count
    return mean, (square / count - mean.square()).clamp(min=0.0)
