"""Entries of a plan: what a call site runs for one choice of active units.

An entry is called with the tensor and the forward's record (or None), and is never changed.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from dynprune.lowering.ir import Layout
from dynprune.ops import reference
from dynprune.ops.reference import wide
from dynprune.plan.record import Record


def read(
    record: Record | None,
    index: int | None,
    x: Tensor,
    layout: Layout | None,
    positions: int | None = None,
) -> None:
    """Note the sums of a full-width tensor over everything but its units, at a read point.

    ``positions`` is how many values of each unit count where padding, of zeros, does not.
    """
    if record is None or not record.want_reads or index is None or layout is None:
        return
    if layout.spatial > 1:
        units = x.shape[1] // layout.spatial
        x, dim = x.view(x.shape[0], layout.spatial, units), 2
    else:
        dim = layout.dim
    others = [d for d in range(x.dim()) if d != dim]
    x = wide(x)  # sums of thousands of values in bfloat16 would have three digits
    sums = x.sum(others).double() if others else x.double()
    values = x.numel() // max(1, x.shape[dim]) if positions is None else positions
    record.add_read(index, sums, values)
    if index in record.usage_reads:
        record.add_read_usage(index, usage_sums(x, dim, sums, values))
    if record.want_products:
        flat = x.movedim(dim, -1).reshape(-1, x.shape[dim])
        record.add_products(index, (flat.T @ flat).double())


def usage_sums(x: Tensor, dim: int, sums: Tensor, positions: int) -> Tensor:
    """Usage ``[4, units]`` of ``positions`` values of each unit, whose ``sums`` (float64) are known.

    As ``reference.usage_sums``, in passes of float32: squares are summed about the mean, which keeps the
    variance of a unit whose mean is far larger. A unit that is not finite everywhere is left out.
    """
    others = [d for d in range(x.dim()) if d != dim]
    if not others or x.numel() == 0:
        return reference.usage_sums(x, dim)
    values = x.numel() // x.shape[dim]
    mean = (sums / values).to(x.dtype)
    view = [1] * x.dim()
    view[dim] = len(mean)
    about = (x - mean.view(view)).square().sum(others).double()
    mean = mean.double()
    square = about + 2 * mean * sums - values * mean.square()
    usage = torch.stack([x.abs().sum(others).double(), sums, square, torch.full_like(sums, positions)])
    return torch.where(usage.isfinite().all(0), usage, 0.0)


@dataclasses.dataclass(frozen=True, slots=True)
class LinearEntry:
    """A linear layer on its active rows and columns."""

    op: Callable[..., Tensor]
    weight: Tensor
    bias: Tensor  # [active]
    input_major: Tensor | None  # the weight once more, for few rows
    activation: str
    slope: float
    group: str | None  # whose usage the epilogue sums
    read: int | None  # read point to measure, where that takes a pass of its own
    read_layout: Layout | None
    dense_operations: int  # per row
    macs: int  # per row

    def __call__(self, x: Tensor, record: Record | None) -> Tensor:
        """Run on ``x``."""
        # What is not a default: each argument takes a third of a microsecond to hand over.
        options: dict[str, Any] = {"activation": self.activation}
        if self.activation == "leaky_relu":
            options["slope"] = self.slope
        if self.input_major is not None:
            options["input_major"] = self.input_major
        if record is not None:
            if record.want_reads:
                read(record, self.read, x, self.read_layout)
            if record.want_usage:
                options["usage"] = record.usage_of(self.group, self.bias)
            if record.input_threshold > 0:
                options["input_threshold"] = record.input_threshold
            rows = x.shape[:-1].numel()
            record.expect(self.group, rows)
            record.operations += rows * self.macs
            record.dense_operations += rows * self.dense_operations
        return self.op(x, self.weight, self.bias, **options)


@dataclasses.dataclass(frozen=True, slots=True)
class Conv2dEntry:
    """A convolution on its active output and input channels."""

    op: Callable[..., Tensor]
    weight: Tensor
    bias: Tensor  # [active], or the border table [low, high, low, high, active]
    stride: list[int]
    padding: list[int]
    dilation: list[int]
    activation: str
    slope: float
    group: str | None
    read: int | None
    read_layout: Layout | None
    dense_operations: int  # per output pixel
    macs: int  # per output pixel
    groups: int = 1
    indices: Tensor | None = None  # of a master weight in several groups
    input_indices: Tensor | None = None  # channels that a depthwise convolution takes from a full-width input
    sequence: bool = False

    def __call__(self, x: Tensor, record: Record | None) -> Tensor:
        """Run on ``x``."""
        usage = None
        if record is not None:
            read(record, self.read, x, self.read_layout)
            usage = record.usage_of(self.group, self.bias)
        y = self.op(
            x.unsqueeze(2) if self.sequence else x,
            self.weight,
            self.bias,
            self.stride,
            self.padding,
            self.dilation,
            self.groups,
            indices=self.indices,
            input_indices=self.input_indices,
            activation=self.activation,
            slope=self.slope,
            usage=usage,
        )
        if record is not None:
            pixels = y.shape[0] * y.shape[2] * y.shape[3]
            record.expect(self.group, pixels)
            record.operations += pixels * self.macs
            record.dense_operations += pixels * self.dense_operations
        return y.squeeze(2) if self.sequence else y


@dataclasses.dataclass(frozen=True, slots=True)
class Starts:
    """How given initial states enter an LSTM layer some of whose units are pruned.

    A pruned unit's initial state is what it is given, not its constant. So the first step multiplies all
    units' states with the dense weights' rows of the active gates, read in place: plans hold no copy of them.
    """

    op: Callable[..., Tensor]
    kept: Tensor  # active units of all directions, int64
    weight: list[Tensor]  # of each direction [4 * hidden, hidden], the model's own
    gates: list[Tensor]  # of each direction, the rows of its active units [4 * active], int64

    def __call__(self, hidden: Tensor, cell: Tensor) -> tuple[Tensor, Tensor]:
        """What full-width states ``[batch, hidden * directions]`` add to the gates of the first step
        ``[batch, 4 * active of all directions]``, and the active units' cells.
        """
        by_direction = zip(hidden.chunk(len(self.weight), 1), self.weight, self.gates, strict=True)
        parts = [self.op(h.contiguous(), w, None, indices=rows) for h, w, rows in by_direction]
        first = torch.cat(parts, 1)
        # The gates of a half are float32 on a GPU.
        return first.float() if first.is_cuda else first, cell.index_select(1, self.kept)

    @property
    def macs(self) -> int:
        """Per row, beyond those of a step from the active units' states."""
        return sum(
            len(rows) * (w.shape[1] - len(rows) // 4) for w, rows in zip(self.weight, self.gates, strict=True)
        )


@dataclasses.dataclass(frozen=True, slots=True)
class LSTMEntry:
    """One layer of an LSTM on the active units of its directions."""

    op: Callable[..., tuple[Tensor, Tensor, Tensor]]
    weight: list[Tensor]  # of each direction
    bias: list[Tensor]  # of each direction [2, 4, active]
    batch_first: bool
    groups: tuple[str, ...]  # of each direction; empty: no usage is wanted
    read: int | None
    read_layout: Layout | None
    recurrent: tuple[int, ...]  # read points of the steps to measure, as ``read``
    dense_operations: int  # per step of a row
    macs: int  # per step of a row
    starts: Starts | None = None  # where units are pruned

    def __call__(
        self,
        x: Tensor,
        record: Record | None,
        lengths: Tensor | None = None,
        hidden: Tensor | None = None,
        cell: Tensor | None = None,
    ) -> tuple[Tensor, ...]:
        """The outputs, then the last hidden state of each direction, then the last cell states."""
        sizes = [bias.shape[2] for bias in self.bias]
        usage = None
        if record is not None and any(map(record.watches, self.groups)):
            usage = x.new_zeros((reference.USAGE_ROWS, sum(sizes)), dtype=torch.float64)
        given = hidden is not None and cell is not None
        first = None
        if self.starts is not None and hidden is not None and cell is not None:
            first, cell = self.starts(hidden, cell)
            hidden = None
        options: dict[str, Any] = {} if first is None else {"first": first}
        y, h, c = self.op(
            x, self.weight, self.bias, lengths, hidden, cell,
            batch_first=self.batch_first, usage=usage, **options,
        )  # fmt: skip
        if record is not None:
            steps = x.shape[0] * x.shape[1] if lengths is None else int(lengths.sum())
            read(record, self.read, x, self.read_layout, steps)
            for index, part in zip(self.recurrent, torch.split(y, sizes, 2), strict=False):
                read(record, index, part, Layout((), 2), steps)
            if usage is not None:
                for group, part in zip(self.groups, torch.split(usage, sizes, 1), strict=True):
                    if record.watches(group):
                        record.add_usage(group, part)
                        record.expect(group, steps)
            record.operations += steps * self.macs
            if given and self.starts is not None:
                record.operations += h.shape[0] * self.starts.macs
            record.dense_operations += steps * self.dense_operations
        return y, *torch.split(h, sizes, 1), *torch.split(c, sizes, 1)


@dataclasses.dataclass(frozen=True, slots=True)
class NormEntry:
    """A batch norm that stands alone, on the active units."""

    mean: Tensor
    var: Tensor
    weight: Tensor | None
    bias: Tensor | None
    eps: float

    def __call__(self, x: Tensor, record: Record | None) -> Tensor:
        """Run on ``x``."""
        if x.shape[1] == 0:
            return x
        return F.batch_norm(x, self.mean, self.var, self.weight, self.bias, False, 0.0, self.eps)


@dataclasses.dataclass(frozen=True, slots=True)
class UsageEntry:
    """Takes a group's usage from what passes through on dense rows: behind an unfused activation."""

    group: str
    layout: Layout

    def __call__(self, x: Tensor, record: Record | None) -> Tensor:
        """Note the usage of ``x`` and return it."""
        if record is not None and record.want_reads:
            full, dim = wide(x), self.layout.dim
            others = [d for d in range(x.dim()) if d != dim]
            sums, positions = full.sum(others).double(), x.numel() // max(1, x.shape[dim])
            record.add_usage(self.group, usage_sums(full, dim, sums, positions))
            record.expect(self.group, positions)
        return x


@dataclasses.dataclass(frozen=True, slots=True)
class ExpandEntry:
    """A compact tensor to full width, stand-ins at the pruned units, in PyTorch's order."""

    index: Tensor  # [active]
    constants: Tensor  # [units]
    mixing: Tensor | None  # [units, active], added to the constants as mixing @ x
    layout: Layout
    read: int | None

    def __call__(self, x: Tensor, record: Record | None) -> Tensor:
        """Run on ``x``."""
        read(record, self.read, x, self.layout)
        return expand(x, self.index, self.constants, self.layout, self.mixing)


def expand(
    x: Tensor, index: Tensor, constants: Tensor, layout: Layout, mixing: Tensor | None = None
) -> Tensor:
    """Scatter the active units ``index`` among ``constants`` ``[units]``; flattened pixels go fastest.

    ``mixing`` ``[units, active]`` says how much of each active unit is added to the constants.
    """
    units, active = constants.shape[0], index.shape[0]
    dim = layout.dim
    if layout.spatial > 1:
        x = x.view(x.shape[0], layout.spatial, active).transpose(1, 2)
        dim = 1
    if active < units:
        shape = [1] * x.dim()
        shape[dim] = units
        full_shape = list(x.shape)
        full_shape[dim] = units
        full = constants.to(x.dtype).view(shape).expand(full_shape)
        if mixing is not None:
            full = full + (x.movedim(dim, -1) @ mixing.to(x.dtype).T).movedim(-1, dim)
        image = x.dim() == 4
        memory = torch.channels_last if image else torch.contiguous_format
        x = full.contiguous(memory_format=memory).index_copy(dim, index, x)
    return x.flatten(1) if layout.spatial > 1 else x


def tensors_of(part: Any) -> list[Tensor]:
    """The tensors that an entry, or a part of one, holds."""
    if isinstance(part, Tensor):
        return [part]
    if isinstance(part, (list, tuple)):
        return [t for each in part for t in tensors_of(each)]
    if not dataclasses.is_dataclass(part):
        return []
    return [t for field in dataclasses.fields(part) for t in tensors_of(getattr(part, field.name))]


Entry = LinearEntry | Conv2dEntry | LSTMEntry | NormEntry | UsageEntry | ExpandEntry
