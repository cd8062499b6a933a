"""The op ``conv2d`` on Triton."""

from __future__ import annotations

from collections.abc import Sequence

import torch
import triton
from torch import Tensor

from dynprune.kernels_triton.conv2d import conv2d_kernel
from dynprune.kernels_triton.linear import tile_for
from dynprune.ops import reference
from dynprune.ops.checks import expect, expect_list
from dynprune.ops.triton import common


def conv2d(
    input: Tensor,
    weight: Tensor,
    bias: Tensor | None = None,
    stride: Sequence[int] = (1, 1),
    padding: Sequence[int] = (0, 0),
    dilation: Sequence[int] = (1, 1),
    groups: int = 1,
    *,
    indices: Tensor | None = None,
    input_indices: Tensor | None = None,
    activation: str = "none",
    slope: float = 0.01,
    usage: Tensor | None = None,
    unit_count: Tensor | None = None,
    depth_count: Tensor | None = None,
) -> Tensor:
    """As :func:`dynprune.ops.reference.conv2d`; index lists on the device, counts as in ``linear``.

    Groups of fewer than 8 channels (depthwise ones among them), which would leave tensor cores idle, take
    PyTorch's convolution: the reference op. A packed weight is a plain tensor on a GPU.

    Raises:
        ValueError: a shape, dtype or device is not as there.
    """
    op = "conv2d"
    expect(input.dim() == 4, op, "an input [batch, channels, height, width]", list(input.shape))
    if weight.dim() == 5:
        expect(
            bias is not None and indices is None,
            op,
            "a bias, and no indices, beside a packed weight",
            "others",
        )
        assert bias is not None
        of_group = bias.shape[-1] // max(1, weight.shape[0])
        weight = weight.permute(0, 4, 3, 1, 2)[:, :of_group].flatten(0, 1)
        if input_indices is not None:
            expect_list(op, "input_indices", input_indices, input)
            if input.shape[1] != weight.shape[1] * groups:
                input = reference.pick_channels(input, input_indices)
            input_indices = None
    if groups != 1 and (indices is not None or weight.shape[1] < 8):
        # All units, of which some are picked: lists are on the device, and the reference would wait for them.
        sums = usage
        if indices is not None:
            expect_list(op, "indices", indices, input)
            common.expect_options(op, activation, usage, len(indices))
            sums = None if usage is None else usage.new_zeros((len(usage), weight.shape[0]))
        y = reference.conv2d(
            input, weight, bias, stride, padding, dilation, groups,
            input_indices=input_indices, activation=activation, slope=slope, usage=sums,
        )  # fmt: skip
        if indices is None:
            return y
        if usage is not None and sums is not None:
            usage += sums.index_select(1, indices)
        return reference.pick_channels(y, indices)
    expect(weight.dim() == 4, op, "a weight [out, in, kh, kw]", list(weight.shape))
    common.expect_operands(op, input, weight, bias)
    expect_list(op, "indices", indices, input)
    expect_list(op, "input_indices", input_indices, input)
    expect(groups == 1 or input_indices is None, op, "no input_indices with groups", groups)
    divide = groups > 0 and weight.shape[0] % groups == 0
    expect(divide, op, f"positive groups that divide {weight.shape[0]} units", groups)
    table = bias is not None and bias.dim() == 5
    expect(not table or indices is None, op, "no indices beside a table of biases", "indices")
    got = None if bias is None else list(bias.shape)
    fits = bias is None or (bias.dim() in (1, 5) and bias.shape[-1] == weight.shape[0])
    expect(fits, op, f"a bias [{weight.shape[0]}] or [low, high, low, high, {weight.shape[0]}]", got)
    units = weight.shape[0] if indices is None else len(indices)
    channels = weight.shape[1] if input_indices is None else len(input_indices)
    given = input.shape[1]
    gather = input_indices is not None and given == weight.shape[1]
    expect(given == channels * groups or gather, op, f"an input with {channels * groups} channels", given)
    common.expect_options(op, activation, usage, units)
    size = [
        (input.shape[2 + i] + 2 * padding[i] - dilation[i] * (weight.shape[2 + i] - 1) - 1) // stride[i] + 1
        for i in (0, 1)
    ]
    y = torch.empty(
        (input.shape[0], units, *size),
        dtype=input.dtype,
        device=input.device,
        memory_format=torch.channels_last,
    )
    if y.numel():
        pixels = input.shape[0] * size[0] * size[1]
        tile = tile_for(pixels, units // groups, input.element_size(), usage=usage is not None)
        grid = (triton.cdiv(pixels, tile.rows), triton.cdiv(units // groups, tile.units), groups)
        zones = bias.shape[:4] if bias is not None and table else (1, 1, 1, 1)
        with common.on(input):
            conv2d_kernel[grid](
                input, weight, None if bias is None else bias.contiguous(), y, indices, input_indices,
                unit_count, depth_count, usage, pixels, units // groups, channels,
                *input.shape[2:], *size, *input.stride(), *weight.stride(), units,
                common.usage_row(usage), *weight.shape[2:], *stride, *padding, *dilation,
                zones[1], zones[2], zones[3], zones[0], slope,
                KIND=activation, GATHER_INPUT=gather, TABLE=table, PRECISION=common.precision("conv2d"),
                ROWS=tile.rows, UNITS=tile.units, DEPTH=min(tile.depth, 64),
                num_warps=tile.warps, num_stages=tile.stages,
            )  # fmt: skip
    return y
