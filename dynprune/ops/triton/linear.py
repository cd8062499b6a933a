"""The op ``linear`` on Triton."""

from __future__ import annotations

import triton
from torch import Tensor

from dynprune.kernels_triton.linear import linear_kernel, tile_for
from dynprune.ops import packing, reference
from dynprune.ops.checks import expect, expect_list
from dynprune.ops.triton import common


def linear(
    input: Tensor,
    weight: Tensor,
    bias: Tensor | None = None,
    *,
    indices: Tensor | None = None,
    input_indices: Tensor | None = None,
    activation: str = "none",
    slope: float = 0.01,
    input_threshold: float = 0.0,
    input_major: Tensor | None = None,
    usage: Tensor | None = None,
    unit_count: Tensor | None = None,
    depth_count: Tensor | None = None,
) -> Tensor:
    """As :func:`dynprune.ops.reference.linear`.

    Plans on a GPU hold compact weights ``[n, in]``; a packed one is a plain tensor there.

    Args:
        input, weight, bias, indices, input_indices, activation, slope, usage: as there; index lists on the
            device.
        input_threshold: with at most 8 rows, as there.
        input_major: not read.
        unit_count: int32 ``[1]`` on the device: how many of the units there are. The others' outputs
            are not written.
        depth_count: likewise, of the inputs.

    Raises:
        ValueError: a shape, dtype or device is not as above.
    """
    op = "linear"
    expect(input.dim() >= 1, op, "an input [..., features]", list(input.shape))
    expect(input_threshold >= 0, op, "an input_threshold of at least 0", input_threshold)
    if weight.dim() == 3:
        units = packing.padded_units(len(bias)) if bias is not None and bias.dim() == 1 else -1
        got = "none" if bias is None else list(bias.shape)
        expected = f"a bias [n] with n rounded up to {weight.shape[2]} beside a packed weight"
        expect(units == weight.shape[2], op, expected, got)
        assert bias is not None
        expect(indices is None, op, "no indices beside a packed weight", "indices")
        weight = weight[0, :, : len(bias)].t()
        if input_indices is not None:
            expect_list(op, "input_indices", input_indices, input)
            if input.shape[-1] != weight.shape[1]:
                input = input.index_select(-1, input_indices)
            input_indices = None
    expect(weight.dim() == 2, op, "a weight [out, in] or packed [1, in, padded out]", list(weight.shape))
    common.expect_operands(op, input, weight, bias)
    expect(
        bias is None or bias.shape == weight.shape[:1],
        op,
        f"a bias [{weight.shape[0]}]",
        bias is not None and list(bias.shape),
    )
    expect_list(op, "indices", indices, input)
    expect_list(op, "input_indices", input_indices, input)
    units = weight.shape[0] if indices is None else len(indices)
    depth = weight.shape[1] if input_indices is None else len(input_indices)
    features = input.shape[-1]
    gather = input_indices is not None and features == weight.shape[1]
    expect(features == depth or gather, op, f"an input with {depth} (active) features", features)
    common.expect_options(op, activation, usage, units)
    x = (
        input.reshape(-1, features)
        if input.numel()
        else input.new_empty((input.shape[:-1].numel(), features))
    )
    if input_threshold > 0 and len(x) <= reference.SPARSE_ROWS:
        needed = ~(x.abs() <= input_threshold).all(0)
        x = x.where(needed, 0.0)
    y = input.new_empty((len(x), units))
    if y.numel():
        tile = tile_for(len(x), units, x.element_size(), usage=usage is not None)
        grid = (triton.cdiv(len(x), tile.rows), triton.cdiv(units, tile.units))
        with common.on(x):
            linear_kernel[grid](
                x, weight, None if bias is None else bias.contiguous(), y, indices, input_indices,
                unit_count, depth_count, usage, len(x), units, depth, *x.stride(), *weight.stride(),
                y.stride(0), common.usage_row(usage), slope,
                KIND=activation, GATHER_INPUT=gather, PRECISION=common.precision("linear"),
                ROWS=tile.rows, UNITS=tile.units, DEPTH=tile.depth,
                num_warps=tile.warps, num_stages=tile.stages,
            )  # fmt: skip
    return y.view(*input.shape[:-1], units)
