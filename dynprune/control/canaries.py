"""Which batches carry canary rows, and which rows those are: at random, by the seed."""

from __future__ import annotations

import random

import torch
from torch import Tensor

# Without an interval: one in so many batches of so many rows. Smaller batches keep that share of their rows.
_INTERVAL, _BATCH_ROWS = 16, 64


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
    """

    def __init__(self, seed: int, interval: int | None, rows: int, rate: int = 1) -> None:
        self.seed = seed
        self.interval = interval
        self.rows = rows
        self.rate = rate
        self._draws = Draws(seed)

    def interval_of(self, rows: int) -> int:
        """One in so many batches of ``rows`` rows carries canary rows."""
        interval = self.interval
        if interval is None:
            interval = _INTERVAL
            if rows < _BATCH_ROWS:
                # A batch of no more rows than a canary has is one as a whole.
                interval = -(-interval * _BATCH_ROWS * min(rows, self.rows) // (rows * self.rows))
        return -(-interval // self.rate)

    def has(self, ticket: int, rows: int) -> bool:
        """Whether the batch with this ticket, of ``rows`` rows, carries canary rows."""
        return self._draws.has(ticket, self.interval_of(rows))

    def choose(self, ticket: int, rows: int) -> Tensor:
        """Which of its ``rows`` those are ``[n]``, increasing."""
        count = min(rows, self.rows)
        chosen = random.Random(hash((self.seed, ticket, rows))).sample(range(rows), count)
        return torch.tensor(sorted(chosen))
