"""A limit on how often pruning changes the answer, from rows that run both dense and pruned."""

from __future__ import annotations

import math

from torch import Tensor

_LEAST_ROWS = 32  # before the estimate is acted upon
_WINDOW = 2048  # rows after which a comparison counts half
_Z = 1.96  # 95% interval


class Guard:
    """Scales the thresholds so that the measured disagreement stays within ``limit``.

    When the estimate is above the limit the scale is halved and the comparison starts anew; when the
    upper end of its 95% interval (Wilson) is within the limit, the scale grows again by a quarter.

    This bounds how often answers change, not how often they become wrong.

    Args:
        limit: largest share of rows whose answer may change.
    """

    def __init__(self, limit: float) -> None:
        self.limit = limit
        self.scale = 1.0
        self._changed = 0.0
        self._rows = 0.0

    def add(self, changed: int, rows: int) -> bool:
        """Add ``rows`` comparisons; True: the limit is broken, and everything should come back."""
        keep = 0.5 ** (rows / _WINDOW)
        self._changed = self._changed * keep + changed
        self._rows = self._rows * keep + rows
        if self._rows < _LEAST_ROWS:
            return False
        if self._changed > self.limit * self._rows:
            self.scale /= 2
            self._changed = self._rows = 0.0
            return True
        if self.interval()[1] <= self.limit:
            self.scale = min(1.0, self.scale * 1.25)
        return False

    def interval(self) -> tuple[float, float]:
        """The 95% interval of the share of changed answers."""
        n = self._rows
        if n == 0:
            return 0.0, 1.0
        p, z2 = self._changed / n, _Z * _Z
        centre = (p + z2 / (2 * n)) / (1 + z2 / n)
        half = _Z / (1 + z2 / n) * math.sqrt(p * (1 - p) / n + z2 / (4 * n * n))
        return max(0.0, centre - half), min(1.0, centre + half)

    def summary(self) -> dict[str, float]:
        """The running estimate as plain data."""
        low, high = self.interval()
        estimate = self._changed / self._rows if self._rows else 0.0
        return {
            "estimate": estimate,
            "low": low,
            "high": high,
            "rows": self._rows,
            "threshold_scale": self.scale,
        }


def changed_answers(dense: Tensor, pruned: Tensor) -> int:
    """Rows whose answer differs: the largest value along the last dimension, or the sign of one."""
    if dense.dim() < 2 or dense.shape[-1] == 1:
        differs = (dense > 0) != (pruned > 0)
    else:
        differs = dense.argmax(-1) != pruned.argmax(-1)
    return int(differs.reshape(differs.shape[0], -1).any(1).sum())
