"""What a layer reads, and which of its units are computed: what every entry is built from."""

from __future__ import annotations

import dataclasses
import functools

import torch
from torch import Tensor

from dynprune import ops
from dynprune.ops import packing
from dynprune.ops.devices import upload
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
        shares = upload(mixing[gone[:, None], kept].to(by_unit.dtype), weight.device)
        gone, kept = upload(gone, weight.device), upload(kept, weight.device)
        added = torch.einsum("npt,pa->nat", by_unit.index_select(1, gone), shares)
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
    """The ``rows`` (of the host) of ``values``; None: all of them."""
    return values if rows is None else values.index_select(0, upload(rows, values.device))


def pruned_sums(weight: Tensor, pruned: Tensor, rows: Tensor | None) -> Tensor:
    """What ``pruned`` ``[in]`` add to each row of ``weight`` ``[out, in, kh, kw]``, as packing finds it."""
    if weight.dtype == torch.float32 and weight.device.type == "cpu":
        return ops.tap_sums(weight, pruned, rows)
    return packing.tap_sums(picked(weight, rows), upload(pruned, weight.device))


def rows_of(active: Tensor | None) -> Tensor | None:
    """The units computed ``[active]``, int64; None: all of them."""
    if active is None or bool(active.all()):
        return None
    return active.nonzero().flatten()


def runs_native(weight: Tensor) -> bool:
    """Whether a compiled kernel of a linear layer or a convolution takes this weight on the CPU."""
    return (
        ops.native is not None
        and weight.device.type == "cpu"
        and weight.dtype in (torch.float32, torch.bfloat16)
    )


def runs_on_gpu(op: str, weight: Tensor) -> bool:
    """Whether an op has a kernel, compiled or Triton's, for this weight on its GPU."""
    return weight.is_cuda and op in ops.on_cuda and weight.dtype in ops.GPU_DTYPES


def compacted(
    weight: Tensor, scale: Tensor | None, rows: Tensor | None, columns: Tensor | None = None
) -> Tensor:
    """Rows and columns of a weight ``[out, in, ...]``, scaled; None: all of them, or by one."""
    if scale is not None:
        weight = (weight * scale.view(-1, *[1] * (weight.dim() - 1))).to(weight.dtype)
    weight = picked(weight, rows)
    if columns is not None:
        weight = weight.index_select(1, upload(columns, weight.device))
    return weight


def for_tensor_cores(
    weight: Tensor,
    scale: Tensor | None = None,
    rows: Tensor | None = None,
    columns: Tensor | None = None,
) -> Tensor:
    """As :func:`compacted`, with inputs side by side, those of each unit and tap beginning at a multiple of
    16 bytes: so the kernels on a GPU copy them without looking at single numbers."""
    if weight.shape[1] == 1 and columns is None:  # depthwise: plain sums of taps
        return compacted(weight, scale, rows).contiguous()
    units, inputs = (
        size if chosen is None else len(chosen)
        for size, chosen in zip(weight.shape[:2], (rows, columns), strict=True)
    )
    result = zeros_for_tensor_cores(weight, units, inputs)
    write_weight(
        result,
        weight,
        indices=None if rows is None else upload(rows, weight.device),
        input_indices=None if columns is None else upload(columns, weight.device),
        scale=scale,
    )
    return result


def zeros_for_tensor_cores(like: Tensor, units: int, inputs: int) -> Tensor:
    """A weight of zeros with the kernel, dtype and device of ``like``, laid out so."""
    padded = inputs + -inputs % (16 // like.element_size())
    by_input = like.new_zeros((units, *like.shape[2:], padded))
    return (by_input if like.dim() == 2 else by_input.permute(0, 3, 1, 2))[:, :inputs]


def write_weight(to: Tensor, weight: Tensor, **chosen: Tensor | None) -> None:
    """As :func:`dynprune.ops.packing.gather_into`, in one launch where there is a kernel."""
    write = torch.ops.dynprune.gather_into if runs_on_gpu("gather_into", weight) else packing.gather_into
    write(to, weight, **chosen)
