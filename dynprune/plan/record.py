"""What one forward saw: usage sums, means at read points, operations."""

from __future__ import annotations

import torch
from torch import Tensor

from dynprune.ops.reference import USAGE_ROWS


class Record:
    """Filled by the entries of a plan during one forward, by one thread.

    Args:
        usage: whether to sum the usage of the units that are computed.
        reads: whether to measure means at the read points as well (dense plans only).
    """

    __slots__ = ("dense_operations", "operations", "reads", "usage", "want_reads", "want_usage")

    def __init__(self, *, usage: bool, reads: bool = False) -> None:
        self.want_usage = usage
        self.want_reads = reads
        self.usage: dict[str, Tensor] = {}  # group -> [4, active] float64
        self.reads: dict[int, tuple[Tensor, int]] = {}  # read point -> (sum [units], positions)
        self.operations = 0
        self.dense_operations = 0

    def new_usage(self, group: str | None, active: int) -> Tensor | None:
        """A zeroed buffer for a kernel to add to, if the usage of this group is wanted."""
        if not self.want_usage or group is None:
            return None
        buffer = torch.zeros(USAGE_ROWS, active, dtype=torch.float64)
        self.usage[group] = buffer
        return buffer
