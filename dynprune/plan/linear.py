"""Entries of linear layers."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from dynprune import ops
from dynprune.lowering.ir import LayerSite
from dynprune.ops import reference
from dynprune.plan.entries import LinearEntry
from dynprune.plan.inputs import (
    Inputs,
    compacted,
    for_tensor_cores,
    picked,
    pruned_sums,
    rows_of,
    runs_native,
    runs_on_gpu,
)

# A smaller weight lies in the cache, where reading it straight through costs little.
_INPUT_MAJOR_WEIGHTS = 65_536


def linear_entry(
    site: LayerSite,
    active: Tensor | None,
    inputs: Inputs,
    *,
    input_major: bool = False,
    packed: bool = True,
    **common: Any,
) -> LinearEntry:
    """The entry of a linear layer; ``active`` None computes every unit.

    ``packed``: for a CPU's kernels, where they take the weight. ``input_major`` keeps that a second time, for
    few rows; see :class:`~dynprune.config.Config`.
    """
    weight = site.weight
    scale, bias = site.fold()
    rows, columns = rows_of(active), inputs.columns()
    op: Callable[..., Tensor]
    if packed and runs_native(weight):
        op = torch.ops.dynprune.linear.default
        pruned, sums = inputs.pruned, None
        if pruned is not None:
            units = len(weight) if rows is None else len(rows)
            sums = bias.new_empty((units, weight.shape[1] // len(pruned)), dtype=torch.float64)
        laid_out = ops.pack_linear(inputs.mixed(weight), rows, columns, scale, pruned, sums)
        bias = linear_bias(weight, scale, bias, rows, inputs, sums)
        large = weight.dtype == torch.float32 and laid_out.numel() >= _INPUT_MAJOR_WEIGHTS
    else:
        on_gpu = runs_on_gpu("linear", weight)
        cut = for_tensor_cores if on_gpu else compacted
        laid_out = cut(inputs.mixed(weight), scale, rows, columns)
        bias = linear_bias(weight, scale, bias, rows, inputs)
        large, op = False, torch.ops.dynprune.linear.default if on_gpu else reference.linear
    units, depth = len(bias), weight.shape[1] if columns is None else len(columns)
    return LinearEntry(
        op=op,
        weight=laid_out,
        bias=bias,
        input_major=ops.pack_input_major(laid_out) if input_major and large else None,
        macs=units * depth,
        dense_operations=weight.shape[0] * weight.shape[1],
        **common,
    )


def linear_bias(
    weight: Tensor,
    scale: Tensor | None,
    bias: Tensor,
    rows: Tensor | None,
    inputs: Inputs,
    sums: Tensor | None = None,
) -> Tensor:
    """``b + W[:, pruned] @ constants`` over the rows computed ``[active]``.

    ``sums`` ``[active, pixels]`` are what packing found of the second term.
    """
    pruned, bias = inputs.pruned, picked(bias, rows)
    if pruned is None:
        return bias
    if sums is None:
        # The pixels of a flattened image are to a linear layer what taps are to a convolution.
        sums = pruned_sums(weight.view(len(weight), len(pruned), -1, 1), pruned, rows)
    taken = sums.sum(1)
    if scale is not None:
        taken = taken * picked(scale, rows)
    return (bias + taken).to(bias.dtype)
