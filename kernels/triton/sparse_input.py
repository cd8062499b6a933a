"""A linear layer for few rows that does not read the weights of inputs that no row needs."""

import triton
import triton.language as tl

from .epilogue import activate, add_usage


@triton.jit
def sparse_input_kernel(
    x,  # [rows, depth] of any strides
    w,  # packed: panels of 64 units, each [depth, width]; an input's weights in a panel lie side by side
    bias,  # [units]
    y,  # [rows, units]
    usage,  # float64 [4, usage_row], added to; None: not wanted
    rows,
    units,
    padded,  # units rounded up to 8, the sum of the panels' widths
    depth,
    x_row,
    x_column,
    usage_row,
    threshold,
    slope,
    KIND: tl.constexpr,
    PRECISION: tl.constexpr,
    ROWS: tl.constexpr,
    UNITS: tl.constexpr,  # divides 64
    DEPTH: tl.constexpr,
):
    """A program computes UNITS units; a load whose mask is false reads no memory."""
    r = tl.arange(0, ROWS)
    begin = tl.program_id(0) * UNITS
    u = begin + tl.arange(0, UNITS)
    panel = begin // 64
    width = tl.minimum(64, padded - panel * 64)
    row_there, unit_there = r < rows, u < units
    w_at = w + panel.to(tl.int64) * 64 * depth + (u - panel * 64)[None, :]
    sums = tl.zeros((ROWS, UNITS), dtype=tl.float32)
    for k in range(0, depth, DEPTH):
        d = k + tl.arange(0, DEPTH)
        a = tl.load(
            x + r[:, None] * x_row + d[None, :] * x_column,
            mask=row_there[:, None] & (d < depth)[None, :],
            other=0.0,
        )
        # Written so that NaN is needed.
        needed = tl.max(tl.where(tl.abs(a.to(tl.float32)) <= threshold, 0, 1), 0) > 0
        needed = needed & (d < depth)
        a = tl.where(needed[None, :], a, tl.zeros_like(a))
        b = tl.load(
            w_at + d.to(tl.int64)[:, None] * width, mask=needed[:, None] & unit_there[None, :], other=0.0
        )
        sums = tl.dot(a, b, sums, input_precision=PRECISION)
    sums += tl.load(bias + u, mask=unit_there, other=0.0).to(tl.float32)[None, :]
    out = activate(sums, slope, KIND)
    there = row_there[:, None] & unit_there[None, :]
    if usage is not None:
        add_usage(usage, usage_row, u, out, there, unit_there)
    tl.store(y + r[:, None] * units + u[None, :], out.to(y.dtype.element_ty), mask=there)
