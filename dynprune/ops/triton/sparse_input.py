"""The op ``sparse_input_linear`` on Triton."""

from __future__ import annotations

import triton
from torch import Tensor

from dynprune.kernels_triton.sparse_input import sparse_input_kernel
from dynprune.ops.checks import expect
from dynprune.ops.packing import padded_units
from dynprune.ops.reference import SPARSE_ROWS
from dynprune.ops.triton import common

_ROWS, _UNITS, _DEPTH = 16, 32, 32  # of a tile; tensor cores take no fewer rows


def sparse_input_linear(
    input: Tensor,
    weight: Tensor,
    bias: Tensor,
    *,
    threshold: float = 0.0,
    activation: str = "none",
    slope: float = 0.01,
    usage: Tensor | None = None,
    unit_count: Tensor | None = None,
    depth_count: Tensor | None = None,
) -> Tensor:
    """As :func:`dynprune.ops.reference.sparse_input_linear`; on a GPU a packed weight is a plain tensor.

    Raises:
        ValueError: a shape, dtype, device or value is not as there.
    """
    op = "sparse_input_linear"
    expect(
        input.dim() == 2 and input.shape[0] <= SPARSE_ROWS,
        op,
        f"an input [rows, features] of at most {SPARSE_ROWS} rows",
        list(input.shape),
    )
    expect(bias.dim() == 1, op, "a bias [units]", list(bias.shape))
    rows, depth = input.shape
    units = len(bias)
    packed = [1, depth, padded_units(units)]
    expect(list(weight.shape) == packed, op, f"a packed weight {packed}", list(weight.shape))
    expect(threshold >= 0, op, "a threshold of at least 0", threshold)
    common.expect_operands(op, input, weight, bias)
    common.expect_options(op, activation, usage, units)
    y = input.new_empty((rows, units))
    if y.numel():
        with common.on(input):
            sparse_input_kernel[(triton.cdiv(units, _UNITS),)](
                input, weight, bias, y, usage, rows, units, depth, unit_count, depth_count,
                *input.stride(), *weight.stride()[1:], units, common.usage_row(usage), threshold, slope,
                KIND=activation, PRECISION=common.precision("linear"), ROWS=_ROWS, UNITS=_UNITS, DEPTH=_DEPTH,
            )  # fmt: skip
    return y
