"""Noticing that the traffic changed, from the usage of the active units that every row gives for free."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping

import numpy as np
import numpy.typing as npt
from torch import Tensor

# A few hundred numbers, again and again beside requests: numpy takes less than half of torch's time.
_Array = npt.NDArray[np.float64]

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
        self._sums: _Array | None = None
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
            was, now = before[name].numpy(force=True), after[name].numpy(force=True)
            places.append(np.where(was, was.cumsum() - 1 + offset, -1)[now])
            offset += int(was.sum())
        if offset != len(self._band.mean):  # some group's usage is not seen
            self.reset()
            return
        place = np.concatenate(places)
        mean, var = (
            np.where(place >= 0, value[place.clip(min=0)], np.nan)
            for value in (self._band.mean, self._band.var)
        )
        self._band = _Band(mean, var)

    def stands_out(self, usage: Mapping[str, Tensor], rows: int) -> bool:
        """Whether one batch alone is as far out as makes an alarm; changes nothing."""
        band = self._band
        if not self.warm or band is None or not usage or rows < _LEAST_ROWS:
            return False
        mean, spread = _moments(_joined(usage))
        if len(mean) != len(band.mean):  # of the plan before
            return False
        return band.deviation(mean, spread, rows) > self.threshold * max(self._usual, _USUAL)

    def add(self, usage: Mapping[str, Tensor], rows: int) -> bool:
        """Add the usage ``[4, active]`` of every group over ``rows`` rows; True: the traffic changed."""
        if not usage or rows == 0:
            return False
        sums = _joined(usage)
        if self._sums is not None and self._sums.shape != sums.shape:
            self.reset()
        self._sums = sums if self._sums is None else self._sums + sums
        self._rows += rows
        if self._rows < _BLOCK_ROWS:
            return False
        mean, spread = _moments(self._sums)
        block_rows, self._sums, self._rows = self._rows, None, 0
        return self._compare(mean, spread, block_rows)

    def _compare(self, mean: _Array, spread: _Array, rows: int) -> bool:
        self._blocks += 1
        band = self._band
        if band is not None and len(band.mean) != len(mean):  # a publication was cut off
            self.reset()
            return False
        if band is None:
            self._band = _Band(mean, np.zeros_like(mean))
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

    mean: _Array
    var: _Array

    def deviation(self, mean: _Array, spread: _Array, rows: int) -> float:
        """How far out a block is, in the mean over the units that are known."""
        square = (mean - self.mean) ** 2 * rows
        width = self.var + _FLOOR * spread + 1e-30
        out = np.minimum(square / width, _LARGEST)
        known = out == out
        return float(out[known].mean()) if known.any() else float("nan")

    def moved(self, mean: _Array, spread: _Array, rows: int, share: float) -> _Band:
        """The band after one more block."""
        away = mean - self.mean
        # A new unit starts with a wide band, which narrows.
        new = away != away
        return _Band(
            np.where(new, mean, self.mean + share * away),
            np.where(new, 4 * spread, self.var + share * (away**2 * rows - self.var)),
        )


def _joined(usage: Mapping[str, Tensor]) -> _Array:
    """Usage sums ``[4, active]`` of all groups, one behind the other."""
    return np.concatenate([usage[name].numpy() for name in sorted(usage)], axis=1)


def _moments(sums: _Array) -> tuple[_Array, _Array]:
    """Mean |a| and variance of each unit, from usage sums ``[4, active]``."""
    magnitude, _, square, count = sums
    count = np.maximum(count, 1.0)
    mean = magnitude / count
    return mean, np.maximum(square / count - mean**2, 0.0)
