"""Entries of convolutions, and their bias where zero padding cuts the constants off."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from dynprune import ops
from dynprune.lowering.convolution import conv_padding, is_depthwise
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
    rows, taps = rows_of(active), weight.shape[2] * weight.shape[3]
    padding = conv_padding(module)
    assert padding is not None
    native = runs_native(weight)
    pack = ops.pack_conv2d if native else reference.pack_conv2d
    groups = module.groups
    more: dict[str, Any] = {}
    if groups == 1:
        columns = inputs.columns()
        bias = conv2d_bias(module, scale, bias, rows, inputs)
        weight = pack(inputs.mixed(weight), rows, columns, scale)
        depth = module.in_channels if columns is None else len(columns)
    else:
        weight, groups, more = _grouped_weight(site, weight, scale, rows, pack)
        depth = module.weight.shape[1]
        if rows is not None and "indices" not in more:  # a master weight's bias is full, too
            bias = bias[rows]
    return Conv2dEntry(
        op=torch.ops.dynprune.conv2d.default if native else reference.conv2d,
        weight=weight,
        bias=bias,
        stride=list(module.stride),
        padding=padding,
        dilation=list(module.dilation),
        groups=groups,
        macs=(site.units if rows is None else len(rows)) * depth * taps,
        dense_operations=module.weight.numel(),
        sequence=site.sequence,
        **more,
        **common,
    )


def _grouped_weight(
    site: LayerSite, weight: Tensor, scale: Tensor | None, rows: Tensor | None, pack: Any
) -> tuple[Tensor, int, dict[str, Tensor]]:
    """Weight, groups and index lists of a convolution in groups.

    The units of a depthwise convolution take their channels along, out of an input that may have others.
    """
    module = site.module
    assert isinstance(module, nn.Conv2d)
    if is_depthwise(module):
        more = {} if site.follows is not None or rows is None else {"input_indices": rows}
        return pack(weight, rows, None, scale), module.groups if rows is None else len(rows), more
    if rows is None and weight.shape[1] > 1:
        return pack(weight, None, None, scale, groups=module.groups), module.groups, {}
    # Some units of a group, and several units per channel, have no packed form.
    if scale is not None:
        weight = (weight * scale[:, None, None, None]).to(weight.dtype)
    return weight, module.groups, {} if rows is None else {"indices": rows}


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
    add_up = ops.tap_sums if weight.dtype == torch.float32 else reference.tap_sums
    taps = add_up(weight, pruned, rows).view(-1, *weight.shape[2:])
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
