"""What a layer reads, and which of its units are computed: what every entry is built from."""

from __future__ import annotations

import dataclasses
import functools

import torch
from torch import Tensor

from dynprune import ops
from dynprune.ops import reference
from dynprune.ops.reference import wide
from dynprune.plan.substitute import Substitute


@dataclasses.dataclass(frozen=True)
class Inputs:
    """What a layer reads: columns of its weight, and what stands in for the missing ones.

    ``active`` is None where the input is full width and has no pruned units.
    """

    active: Tensor | None = None  # bool [units of the group read]
    substitute: Substitute | None = None
    spatial: int = 1

    @functools.cached_property
    def pruned(self) -> Tensor | None:
        """The constants with zeros at active units ``[units]``; None if nothing but zeros is missing."""
        if self.active is None or self.substitute is None or bool(self.active.all()):
            return None
        values = torch.where(self.active, 0.0, self.substitute.constants)
        return values if bool(values.any()) else None

    def mixed(self, weight: Tensor) -> Tensor:
        """``weight`` ``[out, in, ...]`` with the shares of pruned units added to the active ones.

        The columns of pruned units are left as they were.
        """
        mixing = None if self.substitute is None else self.substitute.mixing
        if mixing is None or self.active is None or bool(self.active.all()) or not bool(self.active.any()):
            return weight
        gone, kept = (~self.active).nonzero().flatten(), self.active.nonzero().flatten()
        by_unit = weight.reshape(weight.shape[0], len(self.active), -1)  # pixels or taps last
        by_unit = wide(by_unit)
        shares = mixing[gone[:, None], kept].to(by_unit.dtype)
        added = torch.einsum("npt,pa->nat", by_unit[:, gone], shares)
        return by_unit.index_add(1, kept, added).view_as(weight).to(weight.dtype)

    def columns(self) -> Tensor | None:
        """Columns of the weight, in the order of the compact input; None: all, in their order."""
        if self.active is None:
            return None
        units = self.active.nonzero().flatten()
        if self.spatial == 1:
            return None if len(units) == len(self.active) else units
        pixels = torch.arange(self.spatial)
        return (units[None, :] * self.spatial + pixels[:, None]).flatten()


def picked(values: Tensor, rows: Tensor | None) -> Tensor:
    """The ``rows`` of ``values``; None: all of them."""
    return values if rows is None else values.index_select(0, rows)


def pruned_sums(weight: Tensor, pruned: Tensor, rows: Tensor | None) -> Tensor:
    """What ``pruned`` ``[in]`` add to each row of ``weight`` ``[out, in, kh, kw]``, as packing finds it."""
    add_up = ops.tap_sums if weight.dtype == torch.float32 else reference.tap_sums
    return add_up(weight, pruned, rows)


def rows_of(active: Tensor | None) -> Tensor | None:
    """The units computed ``[active]``, int64; None: all of them."""
    if active is None or bool(active.all()):
        return None
    return active.nonzero().flatten()


def runs_native(weight: Tensor) -> bool:
    """Whether a compiled kernel of a linear layer or a convolution takes this weight."""
    return ops.native is not None and weight.dtype in (torch.float32, torch.bfloat16)
