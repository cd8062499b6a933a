"""Entries of convolutions, and their bias where zero padding cuts the constants off."""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn

from dynprune import ops
from dynprune.lowering.convolution import conv_padding, is_depthwise
from dynprune.lowering.ir import LayerSite
from dynprune.ops import packing, reference
from dynprune.ops.devices import upload
from dynprune.plan.entries import Conv2dEntry
from dynprune.plan.inputs import (
    Inputs,
    for_tensor_cores,
    picked,
    pruned_sums,
    rows_of,
    runs_native,
    runs_on_gpu,
)


def conv2d_entry(
    site: LayerSite, active: Tensor | None, inputs: Inputs, *, packed: bool = True, **common: Any
) -> Conv2dEntry:
    """The entry of a convolution; ``active`` None computes every unit.

    ``packed``: for a CPU's kernels, where they take the weight.
    """
    module = site.module
    assert isinstance(module, nn.Conv2d)
    weight = site.weight
    scale, bias = site.fold()
    rows, taps = rows_of(active), weight.shape[2] * weight.shape[3]
    padding = conv_padding(module)
    assert padding is not None
    op, pack = _kernel(weight, packed)
    groups = module.groups
    more: dict[str, Any] = {}
    if groups == 1:
        columns = inputs.columns()
        # A weight in half the width is added up as the model has it, not on the way.
        pruned, sums = inputs.pruned if weight.dtype == module.weight.dtype else None, None
        if pruned is not None:
            sums = bias.new_empty((site.units if rows is None else len(rows), taps), dtype=torch.float64)
        laid_out = pack(inputs.mixed(weight), rows, columns, scale, values=pruned, sums=sums)
        bias, weight = conv2d_bias(module, scale, bias, rows, inputs, sums), laid_out
        depth = module.in_channels if columns is None else len(columns)
    else:
        weight, groups, more = _grouped_weight(site, weight, scale, rows, pack)
        depth = module.weight.shape[1]
        if "indices" not in more:  # a master weight's bias is full, too
            bias = picked(bias, rows)
        more = {name: upload(rows_of_input, weight.device) for name, rows_of_input in more.items()}
        if pack is _compact:
            op = functools.partial(run_picked, op)
    return Conv2dEntry(
        op=op,
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


def _kernel(weight: Tensor, packed: bool) -> tuple[Callable[..., Tensor], Callable[..., Tensor]]:
    """What computes with this weight, and what packs it."""
    if weight.is_cuda or not packed:
        native = runs_on_gpu("conv2d", weight)
        return torch.ops.dynprune.conv2d.default if native else reference.conv2d, _compact
    if runs_native(weight):
        return torch.ops.dynprune.conv2d.default, ops.pack_conv2d
    return reference.conv2d, packing.pack_conv2d


def _compact(
    weight: Tensor,
    rows: Tensor | None,
    columns: Tensor | None,
    scale: Tensor | None,
    groups: int = 1,
    values: Tensor | None = None,
    sums: Tensor | None = None,
) -> Tensor:
    """A compact weight ``[n, in / groups, kh, kw]``; arguments as of ``packing.pack_conv2d``."""
    if values is not None and sums is not None:
        sums.copy_(pruned_sums(weight, values, rows))
    return for_tensor_cores(weight, scale, rows, columns)


def run_picked(
    op: Callable[..., Tensor],
    x: Tensor,
    weight: Tensor,
    bias: Tensor,
    stride: list[int],
    padding: list[int],
    dilation: list[int],
    groups: int,
    *,
    input_indices: Tensor | None,
    **options: Any,
) -> Tensor:
    """A convolution in groups of the channels ``input_indices``, which it does not pick by itself here."""
    if input_indices is not None:
        x = reference.pick_channels(x, input_indices)
    if groups == 0:  # no unit is active: one group of nothing
        x, weight, groups = x[:, :0], weight[:, :0], 1
    return op(x, weight, bias, stride, padding, dilation, groups, **options)


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
    module: nn.Conv2d,
    scale: Tensor | None,
    bias: Tensor,
    rows: Tensor | None,
    inputs: Inputs,
    sums: Tensor | None = None,
) -> Tensor:
    """Bias ``[active]``, or the border table ``[low, high, low, high, active]``.

    ``sums`` ``[active, kh * kw]`` is what packing found of the constants' part, tap by tap. Zero padding
    means that outside the image a pruned unit's constant is absent: the bias depends on the taps the
    border cuts off, whatever the size of the image.
    """
    weight, pruned, bias = module.weight.detach(), inputs.pruned, picked(bias, rows)
    if pruned is None:
        return bias
    if sums is None:
        sums = pruned_sums(weight, pruned, rows)
    if scale is not None:
        sums = sums * picked(scale, rows).double()[:, None]
    masks = border_masks(weight.shape[2:], tuple(conv_padding(module) or (0, 0)), module.dilation)
    masks = upload(masks, weight.device)
    table = (masks.flatten(1).t() @ sums.t() + bias.double()).to(bias.dtype)
    return table.view(*masks.shape[1:], -1) if masks.dim() > 2 else table[0]


@functools.lru_cache
def border_masks(kernel: tuple[int, ...], padding: tuple[int, ...], dilation: tuple[int, ...]) -> Tensor:
    """Which taps are left when a border cuts some off, as ones among zeros.

    Returns:
        Float64 ``[kh * kw, low_h, high_h, low_w, high_w]``, indexed by the number of taps cut off at each
        end; ``[kh * kw, 1]`` without padding.
    """
    if not any(padding):
        return torch.ones(kernel[0] * kernel[1], 1, dtype=torch.float64)
    left = []
    for size, pad, step in zip(kernel, padding, dilation, strict=True):
        cut = torch.arange(min(size, -(-pad // step)) + 1)
        tap = torch.arange(size)[:, None, None]
        left.append((tap >= cut[:, None]) & (tap < size - cut))  # [taps, low, high]
    height, width = left
    both = height[:, None, :, :, None, None] & width[None, :, None, None, :, :]
    return both.flatten(0, 1).double()
