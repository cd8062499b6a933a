"""A linear layer for few rows that does not read the weights of inputs that no row needs."""

import triton
import triton.language as tl

from .epilogue import activate, add_usage


@triton.jit(do_not_specialize=["rows", "usage_row"])
def sparse_input_kernel(
    x,  # [rows, depth] of any strides
    w,  # element (k, u) at k * w_input + u * w_unit; fast where an input's weights lie side by side
    bias,  # [units]
    y,  # [rows, units]
    usage,  # float64 [4, usage_row], added to; None: not wanted
    rows,
    units,
    depth,
    unit_count,  # int32 [1]: how many of `units` there are; None: all
    depth_count,  # int32 [1]: how many of `depth` there are; None: all
    x_row,
    x_column,
    w_input,
    w_unit,
    y_row,
    usage_row,
    threshold,
    slope,
    KIND: tl.constexpr,
    PRECISION: tl.constexpr,
    ROWS: tl.constexpr,
    UNITS: tl.constexpr,
    DEPTH: tl.constexpr,
):
    """A program computes UNITS units; a load whose mask is false reads no memory."""
    if unit_count is not None:
        units = tl.load(unit_count)
    if depth_count is not None:
        depth = tl.load(depth_count)
    begin = tl.program_id(0) * UNITS
    if begin >= units:
        return
    r = tl.arange(0, ROWS)
    u = begin + tl.arange(0, UNITS)
    row_there, unit_there = r < rows, u < units
    w_at = w + u.to(tl.int64)[None, :] * w_unit
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
            w_at + d.to(tl.int64)[:, None] * w_input, mask=needed[:, None] & unit_there[None, :], other=0.0
        )
        sums = tl.dot(a, b, sums, input_precision=PRECISION)
    sums += tl.load(bias + u, mask=unit_there, other=0.0).to(tl.float32)[None, :]
    out = activate(sums, slope, KIND)
    there = row_there[:, None] & unit_there[None, :]
    if usage is not None:
        add_usage(usage, usage_row, u, out, there, unit_there)
    tl.store(y + r[:, None] * y_row + u[None, :], out.to(y.dtype.element_ty), mask=there)
