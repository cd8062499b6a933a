"""What one forward saw: usage sums, sums at read points, operations."""

from __future__ import annotations

from collections.abc import Container
from typing import Any

import torch
from torch import Tensor

from dynprune.ops.reference import USAGE_ROWS


class Record:
    """Filled by the entries of a plan during one forward, by one thread; slices of a batch add up.

    Args:
        usage: whether to sum the usage of the units that are computed.
        reads: whether to sum the values at the read points as well (dense plans only).
        usage_reads: read points of which the usage is wanted, not only the sums.
        products: whether to sum the products of any two units there too.
        watched: whose usage to sum, by the names of ``usage``; None: all.
        input_threshold: up to which linear layers may leave out inputs of few rows.
    """

    __slots__ = (
        "dense_operations", "expected", "input_threshold", "operations", "products", "read_usage", "reads",
        "usage", "usage_reads", "want_products", "want_reads", "want_usage", "watched",
    )  # fmt: skip

    def __init__(
        self,
        *,
        usage: bool,
        reads: bool = False,
        usage_reads: Container[int] = (),
        products: bool = False,
        watched: Container[str] | None = None,
        input_threshold: float = 0.0,
    ) -> None:
        self.want_usage = usage
        self.want_reads = reads
        self.usage_reads = usage_reads
        self.want_products = products
        self.watched = watched
        self.input_threshold = input_threshold
        # [4, active] float64 by group, or by layer where a group has several
        self.usage: dict[str, Tensor] = {}
        self.read_usage: dict[int, Tensor] = {}  # read point -> [4, units] float64
        self.reads: dict[int, tuple[Tensor, int]] = {}  # read point -> (sum [units], positions)
        self.products: dict[int, Tensor] = {}  # read point -> sum of products [units, units]
        self.expected: dict[str, int] = {}  # group -> activations of each unit that its usage should count
        self.operations = 0
        self.dense_operations = 0

    def watches(self, group: str | None) -> bool:
        """Whether the usage of this group is wanted."""
        return self.want_usage and group is not None and (self.watched is None or group in self.watched)

    def usage_of(self, group: str | None, bias: Tensor) -> Tensor | None:
        """The buffer for a kernel to add to, if the usage of this group is wanted: of the units of a layer's
        ``bias`` ``[..., active]``."""
        if group is None or not self.watches(group):
            return None
        if group not in self.usage:
            self.usage[group] = bias.new_zeros((USAGE_ROWS, bias.shape[-1]), dtype=torch.float64)
        return self.usage[group]

    def expect(self, group: str | None, positions: int) -> None:
        """A layer of ``group`` computed so many activations of each unit."""
        if self.want_reads and self.want_usage and group is not None:
            self.expected[group] = self.expected.get(group, 0) + positions

    @property
    def measured(self) -> dict[str, Any]:
        """All tensors, in plain structures."""
        return {name: getattr(self, name) for name in ("usage", "read_usage", "reads", "products")}

    def adopt(self, measured: dict[str, Any]) -> None:
        """Take such structures in place of those that are there."""
        for name, values in measured.items():
            setattr(self, name, values)

    def forget(self) -> None:
        """Drop what was measured and keep the operations."""
        for measured in (self.usage, self.read_usage, self.reads, self.products, self.expected):
            measured.clear()

    @property
    def bad(self) -> bool:
        """Whether NaN or infinity was left out of some usage."""
        counts = ((usage[3], self.expected.get(group, 0)) for group, usage in self.usage.items())
        return any(bool((count < expected).any()) for count, expected in counts)

    def add_usage(self, group: str, usage: Tensor) -> None:
        """Add usage ``[4, active]`` that a kernel summed on its own."""
        self.usage[group] = self.usage[group] + usage if group in self.usage else usage

    def add_read(self, index: int, sums: Tensor, positions: int) -> None:
        """Add sums ``[units]`` (float64) over ``positions`` values each at a read point."""
        if index in self.reads:
            before, count = self.reads[index]
            sums, positions = sums + before, positions + count
        self.reads[index] = (sums, positions)

    def add_read_usage(self, index: int, usage: Tensor) -> None:
        """Add usage ``[4, units]`` of what a read point sees."""
        self.read_usage[index] = self.read_usage[index] + usage if index in self.read_usage else usage

    def add_products(self, index: int, products: Tensor) -> None:
        """Add sums of products ``[units, units]`` (float64) at a read point."""
        self.products[index] = self.products[index] + products if index in self.products else products
