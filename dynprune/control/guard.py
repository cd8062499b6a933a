"""A limit on how often pruning changes the answer.

Rows whose pruned answer is not clear enough are answered by all units. How clear is enough is learned from
rows that run both ways: each says by how much all units would move a pruned answer's margin, which tells far
more than the few rows whose answer changes.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

from dynprune.control.answers import Compared

LEAST_ROWS = 1024  # compared before any pruned answer is given, but rows of which so many would change at
_LEAST_CHANGES = 2.0  # the rate that is aimed at: one in a thousand is not to be seen in a thousand rows
_KEPT = 2  # times as many compared rows, the latest
_KEPT_MARGINS = 4096  # of pruned answers, the latest
_CAUTION = 0.55  # share of the limit that is aimed at
_MANY_DEFERRED = 0.12  # share of rows: less pruning costs less
_FEW_DEFERRED = 0.03  # more pruning pays
_WINDOW = 2048  # rows after which a comparison counts half in the estimate
_TROUBLE = 3.0  # standard errors above the limit
_Z = 1.96  # 95% interval


@dataclasses.dataclass(frozen=True)
class Verdict:
    """What a guard asks for: everything back at once, or another choice of active units."""

    trouble: bool = False
    decide: bool = False


class Guard:
    """Keeps the share of rows whose answer pruning changes within ``limit``.

    ``threshold`` is the least margin of a pruned answer that is given; the rows below are answered by all
    units. It is infinite until enough rows were compared under the present plan. Where many rows fall below
    it, ``scale``, which multiplies the pruning thresholds, goes down; where few do, it goes up, to 1 at most.

    This bounds how often answers change, not how often they become wrong.

    Args:
        limit: largest share of rows whose answer may change.
    """

    def __init__(self, limit: float) -> None:
        self.limit = limit
        self._aim = _CAUTION * limit
        self._least_rows = max(LEAST_ROWS, math.ceil(_LEAST_CHANGES / self._aim))
        self.scale = 1.0
        self.deferred = 1.0  # share of the latest rows that are below the threshold
        self._estimate = [0.0, 0.0]  # rows changed, rows compared
        self.restart()

    def restart(self) -> None:
        """Another plan serves: what was compared says nothing about it."""
        self.threshold = math.inf
        self._margins = torch.empty(0, dtype=torch.float64)
        nothing = torch.empty(0, dtype=torch.float64)
        self._compared = Compared(nothing, nothing, nothing.bool())
        self._since = 0  # rows compared since the scale was last changed

    @property
    def verifying(self) -> bool:
        """Whether too little is known of the present plan to give any of its answers."""
        return len(self._compared.margin) < self._least_rows

    def defers(self, margins: Tensor) -> Tensor:
        """Which rows all units have to answer, from their pruned answers' margins: bool ``[rows]``."""
        return margins < self.threshold

    def add(self, margins: Tensor, compared: Compared | None) -> Verdict:
        """Take in one batch: the margins of its pruned answers, and the rows that ran both ways.

        The compared rows must have been chosen regardless of their answers.
        """
        self._margins = torch.cat([self._margins, margins.double()])[-_KEPT_MARGINS:]
        if compared is None or len(compared.margin) == 0:
            return Verdict()
        given = compared.changed & ~self.defers(compared.margin)
        rows = len(given)
        keep = 0.5 ** (rows / _WINDOW)
        changed = self._estimate[0] * keep + float(given.sum())
        self._estimate = [changed, self._estimate[1] * keep + rows]
        # Several rows of one batch, or more over time than chance explains.
        expected = self.limit * rows
        broken = int(given.sum()) > max(1.0, expected + _TROUBLE * math.sqrt(expected))
        if broken or self.interval()[0] > self.limit:
            self.scale /= 2
            self._estimate = [0.0, 0.0]
            self.restart()
            return Verdict(trouble=True)
        pairs = zip(dataclasses.astuple(self._compared), dataclasses.astuple(compared), strict=True)
        kept = _KEPT * self._least_rows
        self._compared = Compared(*(torch.cat(pair)[-kept:] for pair in pairs))
        self._since += rows
        return Verdict() if self.verifying else self._adjust()

    def _adjust(self) -> Verdict:
        self.threshold = self._least_margin()
        self.deferred = float(self.defers(self._margins).double().mean())
        if self._since < self._least_rows:
            return Verdict()
        self._since = 0
        if self.deferred > _MANY_DEFERRED:
            self.scale *= 0.7
        elif self.deferred < _FEW_DEFERRED and self.scale < 1:
            self.scale = min(1.0, self.scale * 1.2)
        else:
            return Verdict()
        return Verdict(decide=True)

    def _least_margin(self) -> float:
        """The least margin at which so few of the answers given change as is aimed at, by two estimates.

        One takes margins and losses as independent: an answer of margin m changes as often as a loss is
        above m among the rows compared. It uses all of them, but where small margins lose more than large
        ones it says too little. The other counts the rows compared that did change.
        """
        losses = self._compared.loss.sort().values
        margins = self._margins.sort(descending=True).values
        above = len(losses) - torch.searchsorted(losses, margins, right=True)
        changing = (above + 1) / (len(losses) + 1)  # as if one more had the largest loss
        within = int((changing.cumsum(0) / len(margins) <= self._aim).sum())
        if within == 0:
            return math.inf
        smoothed = 0.0 if within == len(margins) else float(margins[within - 1])
        changed = self._compared.margin[self._compared.changed].sort(descending=True).values
        allowed = int(self._aim * len(losses))
        counted = 0.0 if len(changed) <= allowed else math.nextafter(float(changed[allowed]), math.inf)
        return max(smoothed, counted)

    def state(self) -> dict[str, Any]:
        """All of it, as plain tensors and numbers."""
        values = {name: value for name, value in vars(self).items() if name not in ("limit", "_compared")}
        return {**values, "_compared": dataclasses.asdict(self._compared)}

    def load(self, state: Mapping[str, Any]) -> None:
        """Adopt what :meth:`state` gave."""
        vars(self).update({**state, "_compared": Compared(**state["_compared"])})

    def interval(self) -> tuple[float, float]:
        """The 95% interval (Wilson) of the share of changed answers among those given."""
        changed, n = self._estimate
        if n == 0:
            return 0.0, 1.0
        p, z2 = changed / n, _Z * _Z
        centre = (p + z2 / (2 * n)) / (1 + z2 / n)
        half = _Z / (1 + z2 / n) * math.sqrt(p * (1 - p) / n + z2 / (4 * n * n))
        return max(0.0, centre - half), min(1.0, centre + half)

    def summary(self) -> dict[str, float]:
        """The running estimate as plain data."""
        low, high = self.interval()
        changed, rows = self._estimate
        return {
            "estimate": changed / rows if rows else 0.0,
            "low": low,
            "high": high,
            "rows": rows,
            "deferred": self.deferred,
            "threshold_scale": self.scale,
        }
