"""Layouts of weights in plain torch: packed for the CPU's kernels, compact for a GPU's.

Those of an LSTM stand in ``lstm_reference.py``.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from dynprune.ops.checks import expect, expect_list

PANEL = 64
UNIT_ALIGN = 8
INPUT_MAJOR_ALIGN = 16


def padded_units(units: int) -> int:
    """``units`` rounded up to what the kernels compute."""
    return -(-units // UNIT_ALIGN) * UNIT_ALIGN


def pack_panels(matrix: Tensor) -> Tensor:
    """``[units, depth]`` to the packed storage, flat: panels of 64 units, each ``[depth, width]``.

    In bfloat16 a panel is ``[depth // 2, width, 2]``, and behind it the last row of an odd depth.
    """
    units, depth = matrix.shape
    padded = F.pad(matrix, (0, 0, 0, padded_units(units) - units)).t()
    panels = [_paired(padded[:, start : start + PANEL]).reshape(-1) for start in range(0, units, PANEL)]
    return torch.cat(panels) if panels else matrix.new_empty(0)


def _paired(panel: Tensor) -> Tensor:
    if panel.dtype != torch.bfloat16:
        return panel
    depth, width = panel.shape
    pairs = panel[: depth // 2 * 2].reshape(depth // 2, 2, width).transpose(1, 2)
    return torch.cat([pairs.flatten(), panel[2 * len(pairs) :].flatten()])


def _unpaired(panel: Tensor) -> Tensor:
    """``[depth, width]`` of a packed panel that is viewed so."""
    if panel.dtype != torch.bfloat16:
        return panel
    depth, width = panel.shape
    pairs = panel[: depth // 2 * 2].reshape(depth // 2, width, 2).transpose(1, 2)
    return torch.cat([pairs.flatten(0, 1), panel[2 * len(pairs) :]])


def unpack_panels(packed: Tensor, units: int, depth: int) -> Tensor:
    """The inverse of :func:`pack_panels`: flat storage to ``[units, depth]``."""
    flat, padded = packed.reshape(-1), padded_units(units)
    panels = []
    for start in range(0, units, PANEL):
        width = min(PANEL, padded - start)
        panels.append(_unpaired(flat[start * depth : (start + width) * depth].view(depth, width)))
    if not panels:
        return packed.new_empty(0, depth)
    return torch.cat(panels, dim=1)[:, :units].t().contiguous()


def pack_linear(
    weight: Tensor,
    indices: Tensor | None = None,
    columns: Tensor | None = None,
    scale: Tensor | None = None,
    values: Tensor | None = None,
    sums: Tensor | None = None,
) -> Tensor:
    """``[out, in]`` to ``[1, n_in, padded n_out]``; see ``csrc/pack.h``."""
    if values is not None and sums is not None:
        sums.copy_(tap_sums(weight.view(len(weight), len(values), -1, 1), values, indices))
    if scale is not None:
        weight = (weight * scale[:, None]).to(weight.dtype)
    if indices is not None:
        weight = weight.index_select(0, indices)
    if columns is not None:
        weight = weight.index_select(1, columns)
    return pack_panels(weight).view(1, weight.shape[1], padded_units(weight.shape[0]))


def pack_plain(weight: Tensor) -> Tensor:
    """``[out, in]`` as a packed weight ``[1, in, padded out]`` of the ops on a GPU: a plain tensor there."""
    return F.pad(weight.t(), (0, padded_units(weight.shape[0]) - weight.shape[0])).contiguous()[None]


def pack_input_major(packed: Tensor) -> Tensor:
    """Packed ``[1, in, padded out]`` to ``[in, out rounded up to 16]``, an input's weights in one run."""
    depth, units = packed.shape[1:]
    return F.pad(unpack_panels(packed, units, depth).t(), (0, -units % INPUT_MAJOR_ALIGN)).contiguous()


def pack_conv2d(
    weight: Tensor,
    indices: Tensor | None = None,
    input_indices: Tensor | None = None,
    scale: Tensor | None = None,
    groups: int = 1,
    values: Tensor | None = None,
    sums: Tensor | None = None,
) -> Tensor:
    """``[out, in, kh, kw]`` to ``[1, kh, kw, n_in, padded n_out]``; see ``csrc/pack.h``.

    With groups of several channels ``[groups, kh, kw, in, padded out / groups]``, without index lists.
    """
    if groups != 1 and weight.shape[1] != 1:
        op, units = "pack_conv2d", weight.shape[0]
        divide = groups > 0 and units > 0 and units % groups == 0
        expect(divide, op, f"positive groups that divide {units} units", groups)
        expect(indices is None and input_indices is None, op, "no index lists with groups", groups)
        scales = [None] * groups if scale is None else scale.chunk(groups)
        parts = zip(weight.chunk(groups), scales, strict=True)
        return torch.cat([pack_conv2d(part, scale=part_scale) for part, part_scale in parts])
    if values is not None and sums is not None:
        sums.copy_(tap_sums(weight, values, indices))
    if scale is not None:
        weight = (weight * scale[:, None, None, None]).to(weight.dtype)
    if indices is not None:
        weight = weight.index_select(0, indices)
    if input_indices is not None:
        weight = weight.index_select(1, input_indices)
    units, channels, kh, kw = weight.shape
    matrix = weight.permute(0, 2, 3, 1).reshape(units, kh * kw * channels)
    return pack_panels(matrix).view(1, kh, kw, channels, padded_units(units))


def gather_into(
    to: Tensor,
    weight: Tensor,
    *,
    indices: Tensor | None = None,
    input_indices: Tensor | None = None,
    scale: Tensor | None = None,
    input_slots: Tensor | None = None,
) -> None:
    """Write the chosen units and inputs of a master weight into a compact one; the rest of it stays.

    Args:
        to: ``[units, inputs]`` or ``[units, inputs, kh, kw]``, inputs side by side in memory: its first
            units are written.
        weight: master ``[out, in]`` or ``[out, in, kh, kw]``.
        indices, input_indices: int64 ``[n]`` on the device: rows and columns of ``weight``; None: all.
        scale: float32 ``[out]``, a factor of each row.
        input_slots: int64 ``[n]`` on the device: where in ``to`` each input goes; None: to the first ones.

    Raises:
        ValueError: a shape, dtype or device is not as above, or on the CPU an index is out of range.
    """
    op = "gather_into"
    for name, t, of, dim in (
        ("indices", indices, weight, 0),
        ("input_indices", input_indices, weight, 1),
        ("input_slots", input_slots, to, 1),
    ):
        expect_list(op, name, t, weight)
        if t is not None and t.numel() and t.device.type == "cpu" and of.dim() > dim:
            least, most = int(t.min()), int(t.max())
            within = least >= 0 and most < of.shape[dim]
            expect(within, op, f"{name} in [0, {of.shape[dim]})", f"{least} to {most}")
    values, n = weight, len(weight if indices is None else indices)
    columns = weight.shape[1] if input_indices is None else len(input_indices)
    fits = to.dim() == weight.dim() and to.dim() in (2, 4) and to.shape[2:] == weight.shape[2:]
    room = [n, columns if input_slots is None else 0, *weight.shape[2:]]
    fits = fits and to.dtype == weight.dtype and all(a >= b for a, b in zip(to.shape, room, strict=True))
    fits = fits and to.device == weight.device
    expected = f"room for a weight of at least {room}, {weight.dtype} on {weight.device}"
    expect(fits, op, expected, f"{list(to.shape)}, {to.dtype} on {to.device}")
    fits = input_slots is None or input_slots.shape == (columns,)
    got = None if input_slots is None else list(input_slots.shape)
    expect(fits, op, f"input_slots [{columns}]", got)
    if scale is not None:
        expect(scale.shape == weight.shape[:1], op, f"a scale [{len(weight)}]", list(scale.shape))
        values = (values * scale.view(-1, *[1] * (weight.dim() - 1))).to(weight.dtype)
    if indices is not None:
        values = values.index_select(0, indices)
    if input_indices is not None:
        values = values.index_select(1, input_indices)
    if input_slots is None:
        to[:n, :columns] = values
    else:
        to[:n].index_copy_(1, input_slots, values)


def tap_sums(weight: Tensor, values: Tensor, indices: Tensor | None = None) -> Tensor:
    """What channels with known ``values`` ``[in]`` add to a convolution ``[out, in, kh, kw]``, tap by tap.

    Returns:
        Float64 ``[n, kh * kw]``, for the units ``indices`` (None: all).
    """
    if indices is not None:
        weight = weight.index_select(0, indices)
    return torch.einsum("ncp,c->np", weight.flatten(2).double(), values.double())
