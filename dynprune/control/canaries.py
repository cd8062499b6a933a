"""Which batches carry canary rows, and which rows those are: at random, by the seed."""

from __future__ import annotations

import random

import torch
from torch import Tensor


class Canaries:
    """A choice that is the same for the same seed and tickets.

    Args:
        seed: of the choice.
        interval: one batch in each run of so many.
        rows: of such a batch.
    """

    def __init__(self, seed: int, interval: int, rows: int) -> None:
        self.seed = seed
        self.interval = interval
        self.rows = rows
        self._window = (-1, 0)  # the run that was looked at last, and its batch

    def has(self, ticket: int) -> bool:
        """Whether the batch with this ticket carries canary rows."""
        window, position = divmod(ticket, self.interval)
        if self._window[0] != window:
            chosen = random.Random(hash((self.seed, window))).randrange(self.interval)
            self._window = (window, chosen)
        return self._window == (window, position)

    def choose(self, ticket: int, rows: int) -> Tensor:
        """Which of its ``rows`` those are ``[n]``, increasing."""
        count = min(rows, self.rows)
        chosen = random.Random(hash((self.seed, ticket, rows))).sample(range(rows), count)
        return torch.tensor(sorted(chosen))
