"""Which batches carry canary rows, which rows those are, and which batches the drift detector looks at."""

from __future__ import annotations

import math
import random

import torch
from torch import Tensor

from dynprune.control.work import rarity

# Without an interval: one in so many batches of so many rows. Smaller batches keep that share of their rows.
_INTERVAL, _BATCH_ROWS = 16, 64
# Rows by all units take several times as long as others where much is pruned: as many fewer of them, down to
# this part.
_FEWEST_BESIDE = 4
# Once the drift detector knows its band it looks at one batch in so many: usage sums cost a few
# percent of a convolution, and an alarm two batches earlier is not worth them on all the others.
_LOOK_INTERVAL = 4


class Draws:
    """One ticket out of each run of them, at random: no period of the traffic falls in step with it.

    Args:
        seed: of the choice, any numbers.
    """

    def __init__(self, *seed: int) -> None:
        self.seed = seed
        # Of each interval in use the run that was looked at last, and its ticket.
        self._chosen: dict[int, tuple[int, int]] = {}

    def has(self, ticket: int, interval: int) -> bool:
        """Whether ``ticket`` is the one of its run of ``interval`` tickets."""
        window, position = divmod(ticket, interval)
        last = self._chosen.get(interval)
        if last is None or last[0] != window:
            chosen = random.Random(hash((*self.seed, window))).randrange(interval)
            self._chosen[interval] = last = window, chosen
        return last[1] == position


class Canaries:
    """A choice that is the same for the same seed, tickets and sizes of batches.

    Args:
        seed: of the choice.
        interval: one batch in each run of so many; None: by the size of the batches, see ``Config``.
        rows: of such a batch.
        rate: so many times as often.
        work: multiply-adds of a row by all units.
        rarer: as many times as rarely, without an interval.
    """

    def __init__(
        self,
        seed: int,
        interval: int | None,
        rows: int,
        rate: int = 1,
        work: float = float("inf"),
        rarer: int = 1,
    ) -> None:
        self.seed = seed
        self.interval = interval
        self.rows = rows
        self.rate = rate
        self.work = work
        self.rarer = rarer
        self._draws = Draws(seed)
        self._intervals: dict[int, int] = {}  # of batches of so many rows

    def beside(self, share: float) -> Canaries:
        """These, beside a plan that computes ``share`` of the work.

        What a row by all units takes beyond another then stays under what it takes where half is computed.
        """
        rarer = _FEWEST_BESIDE if share <= 0 else min(_FEWEST_BESIDE, max(1, math.ceil(1 / share - 1)))
        if self.interval is not None or rarer == self.rarer:
            return self
        return Canaries(self.seed, None, self.rows, self.rate, self.work, rarer)

    def interval_of(self, rows: int) -> int:
        """One in so many batches of ``rows`` rows carries canary rows."""
        interval = self._intervals.get(rows)
        if interval is None:
            interval = self._intervals[rows] = self._interval(rows)
        return interval

    def _interval(self, rows: int) -> int:
        interval = self.interval
        if interval is None:
            interval = _INTERVAL * rarity(self.work * rows)
            if rows < _BATCH_ROWS:
                # A batch of no more rows than a canary has is one as a whole.
                share = -(-_INTERVAL * _BATCH_ROWS * min(rows, self.rows) // (rows * self.rows))
                interval = max(interval, share)
            interval *= self.rarer
        return -(-interval // self.rate)

    def has(self, ticket: int, rows: int) -> bool:
        """Whether the batch with this ticket, of ``rows`` rows, carries canary rows."""
        return self._draws.has(ticket, self.interval_of(rows))

    def choose(self, ticket: int, rows: int) -> Tensor:
        """Which of its ``rows`` those are ``[n]``, increasing."""
        count = min(rows, self.rows)
        chosen = random.Random(hash((self.seed, ticket, rows))).sample(range(rows), count)
        return torch.tensor(sorted(chosen))


class Looks:
    """Which batches the drift detector looks at, once it knows its band.

    Args:
        seed: of the choice.
        interval: one batch in each run of so many; None: by the work of the batches, see ``Config``.
        work: multiply-adds of a row by all units.
    """

    def __init__(self, seed: int, interval: int | None, work: float) -> None:
        self.interval = interval
        self.work = work
        self._draws = Draws(seed, 1)
        self._intervals: dict[int, int] = {}  # of batches of so many rows

    def interval_of(self, rows: int) -> int:
        """It looks at one in so many batches of ``rows`` rows."""
        interval = self._intervals.get(rows)
        if interval is None:
            interval = self._intervals[rows] = self.interval or _LOOK_INTERVAL * rarity(self.work * rows)
        return interval

    def has(self, ticket: int, rows: int) -> bool:
        """Whether it looks at the batch with this ticket, of ``rows`` rows."""
        interval = self.interval_of(rows)
        if interval <= _LOOK_INTERVAL:
            return ticket % interval == 0  # in step: an alarm takes two looks
        return self._draws.has(ticket, interval)
