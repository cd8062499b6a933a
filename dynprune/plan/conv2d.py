"""Entries of convolutions, and their bias where zero padding cuts the constants off."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn

from dynprune import ops
from dynprune.lowering.analyse import conv_padding
from dynprune.lowering.ir import LayerSite
from dynprune.ops import reference
from dynprune.plan.entries import Conv2dEntry
from dynprune.plan.inputs import Inputs, rows_of, runs_native


def conv2d_entry(site: LayerSite, active: Tensor | None, inputs: Inputs, **common: Any) -> Conv2dEntry:
    """The entry of a convolution; ``active`` None computes every unit."""
    module = site.module
    assert isinstance(module, nn.Conv2d)
    weight = site.weight
    scale, bias = site.fold()
    rows, columns = rows_of(active), inputs.columns()
    padding = conv_padding(module)
    assert padding is not None
    bias = conv2d_bias(module, scale, bias, rows, inputs)
    op: Callable[..., Tensor]
    if runs_native(weight):
        op = torch.ops.dynprune.conv2d.default
        packed = ops.pack_conv2d(inputs.mixed(weight), rows, columns, scale)
    else:
        op = reference.conv2d
        packed = reference.pack_conv2d(inputs.mixed(weight), rows, columns, scale)
    units, channels = bias.shape[-1], weight.shape[1] if columns is None else len(columns)
    taps = weight.shape[2] * weight.shape[3]
    return Conv2dEntry(
        op=op,
        weight=packed,
        bias=bias,
        stride=list(module.stride),
        padding=padding,
        dilation=list(module.dilation),
        macs=units * channels * taps,
        dense_operations=weight.shape[0] * weight.shape[1] * taps,
        **common,
    )


def conv2d_bias(
    module: nn.Conv2d, scale: Tensor | None, bias: Tensor, rows: Tensor | None, inputs: Inputs
) -> Tensor:
    """Bias ``[active]``, or the border table ``[low, high, low, high, active]``.

    Zero padding means that outside the image a pruned unit's constant is absent: the bias depends on
    the taps the border cuts off, whatever the size of the image.
    """
    weight, pruned = module.weight.detach(), inputs.pruned
    if rows is not None:
        bias = bias.index_select(0, rows)
    if pruned is None or not bool(pruned.any()):
        return bias
    gone = pruned.nonzero().flatten()
    chosen = weight if rows is None else weight.index_select(0, rows)
    taps = torch.einsum("ocij,c->oij", chosen.index_select(1, gone).double(), pruned[gone].double())
    if scale is not None:
        taps = taps * (scale if rows is None else scale[rows]).double()[:, None, None]
    table = border_table(taps, conv_padding(module) or [0, 0], list(module.dilation))
    full = table + bias.double()
    return (full.flatten() if table.dim() == 1 else full).to(bias.dtype)


def border_table(taps: Tensor, padding: list[int], dilation: list[int]) -> Tensor:
    """Sums of ``taps`` ``[n, kh, kw]`` over what is left when a border cuts some off.

    Returns:
        ``[low_h, high_h, low_w, high_w, n]``, indexed by the number of taps cut off at each end;
        ``[n]`` without padding.
    """
    if padding == [0, 0]:
        return taps.sum((1, 2))
    sums = torch.nn.functional.pad(taps, (1, 0, 1, 0)).cumsum(1).cumsum(2)
    spans = []
    for axis in (0, 1):
        kernel = taps.shape[1 + axis]
        most = min(kernel, -(-padding[axis] // dilation[axis]))
        low = torch.arange(most + 1)[:, None].expand(most + 1, most + 1)
        high = (kernel - torch.arange(most + 1)[None, :]).expand(most + 1, most + 1)
        spans.append((low, torch.maximum(high, low)))
    (low_h, high_h), (low_w, high_w) = spans

    def at(h: Tensor, w: Tensor) -> Tensor:
        return sums[:, h[:, :, None, None], w[None, None, :, :]]

    table = at(high_h, high_w) - at(low_h, high_w) - at(high_h, low_w) + at(low_h, low_w)
    return table.permute(1, 2, 3, 4, 0)
