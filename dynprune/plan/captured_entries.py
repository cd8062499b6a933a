"""Entries on buffers of full capacity, and the functions that stand around an op there."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from dynprune.lowering.ir import Layout
from dynprune.ops import reference
from dynprune.ops.devices import upload
from dynprune.plan.entries import Entry
from dynprune.plan.plan import Plan
from dynprune.plan.record import Record
from dynprune.plan.slots import Slots

Load = Callable[[Any, Plan], None]  # writes an entry of a plan into the buffers


class CapturedEntry:
    """An entry on buffers of full capacity.

    Args:
        run: the entry, on the buffers.
        load: writes another choice into them.
        slots: of an input of several groups, which no one count describes; what is not there counts as zero.
    """

    def __init__(self, run: Any, load: Load, slots: Slots | None = None, like: Tensor | None = None) -> None:
        self.run = run
        self.load = load
        self.slots = slots
        self.there: Tensor | None = None
        if slots is not None and like is not None:
            self.there = like.new_zeros(slots.width, dtype=torch.bool)
        self.positions = 0  # activations of a unit in the forward that ran last

    def __call__(self, x: Tensor, record: Record | None, *more: Tensor | None) -> Any:
        """Run on ``x``."""
        if self.slots is not None and self.there is not None:
            x = only(x, self.there, self.slots.layout)
        before = 0 if record is None else record.dense_operations
        y = self.run(x, record, *more)
        own = getattr(self.run, "dense_operations", 0)
        if record is not None and own:
            self.positions = (record.dense_operations - before) // own
        return y

    def reload(self, entry: Entry, plan: Plan) -> None:
        """Write ``entry`` of ``plan`` into the buffers."""
        if self.slots is not None and self.there is not None:
            self.there.copy_(upload(self.slots.occupied(plan.active), self.there.device))
        self.load(entry, plan)


def only(x: Tensor, there: Tensor, layout: Layout) -> Tensor:
    """``x`` where an active unit is ``there`` ``[width]``, and zero elsewhere."""
    if layout.spatial > 1:
        return torch.where(there, x.view(x.shape[0], layout.spatial, -1), 0.0).flatten(1)
    view = [1] * x.dim()
    view[layout.dim] = len(there)
    return torch.where(there.view(view), x, 0.0)


@dataclasses.dataclass(frozen=True, slots=True)
class CapturedExpand:
    """A compact tensor of full capacity to full width, stand-ins at the pruned units, in PyTorch's order."""

    place: Tensor  # int64 [units]: where each lies, if it is active
    active: Tensor  # bool [units]
    constants: Tensor  # [units]
    mixing: Tensor | None  # [units, width]
    there: Tensor  # bool [width]
    layout: Layout

    def __call__(self, x: Tensor, record: Record | None) -> Tensor:
        """Run on ``x``."""
        dim, spatial = self.layout.dim, self.layout.spatial
        if spatial > 1:
            x, dim = x.view(x.shape[0], spatial, -1).transpose(1, 2), 1
        view = [1] * x.dim()
        view[dim] = -1
        full = self.constants.to(x.dtype).view(view)
        if self.mixing is not None:
            known = torch.where(self.there.view(view), x, 0.0)
            full = full + (known.movedim(dim, -1) @ self.mixing.to(x.dtype).T).movedim(-1, dim)
        y = torch.where(self.active.view(view), x.index_select(dim, self.place), full)
        if y.dim() == 4:
            y = y.contiguous(memory_format=torch.channels_last)
        return y.flatten(1) if spatial > 1 else y


def by_pixel(
    convolve: Callable[..., Tensor], spatial: int, x: Tensor, weight: Tensor, bias: Tensor, **options: Any
) -> Tensor:
    """A linear layer on a flattened image ``[batch, spatial * width]``, as a convolution over all pixels."""
    units, width = weight.shape[0], weight.shape[1] // spatial
    image = x.view(x.shape[0], 1, spatial, width).permute(0, 3, 1, 2)
    taps = weight.view(units, 1, spatial, width).permute(0, 3, 1, 2)
    options.pop("input_threshold", None)  # leaves out inputs of few rows where that saves their weights
    return convolve(image, taps, bias, [1, 1], [0, 0], [1, 1], 1, **options).flatten(1)


def pick_units(
    op: Callable[..., Tensor],
    chosen: Tensor,
    *args: Any,
    usage: Tensor | None = None,
    indices: Tensor | None = None,
    **options: Any,
) -> Tensor:
    """A convolution in groups, of whose units ``chosen`` go on."""
    y = reference.pick_channels(op(*args, **options), chosen)
    if usage is not None:
        usage += reference.usage_sums(y, 1)
    return y


def picked_rows(x: Tensor, weight: Tensor, bias: None, *, indices: Tensor) -> Tensor:
    """``x`` times the rows ``indices`` of a weight, in any order."""
    return x @ weight.index_select(0, indices).T
