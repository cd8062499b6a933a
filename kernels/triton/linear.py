"""linear: ``y = activation(x @ w.T + bias)``, over the units and inputs of index lists."""

from typing import NamedTuple

import triton
import triton.language as tl

from .epilogue import activate, add_usage


class Tile(NamedTuple):
    """Sizes of a program's tile, and how it is compiled."""

    rows: int
    units: int
    depth: int
    warps: int
    stages: int


# Few on purpose: a choice by shape takes no timing, no synchronisation, and works under capture.
# By bytes of a number: for few rows, for few tiles, for enough of them to fill a GPU, for these with
# usage sums. None of them spills registers; larger ones do, and the third one with usage sums on sm_100.
TILES = {
    2: (Tile(16, 32, 128, 4, 3), Tile(32, 64, 64, 4, 4), Tile(128, 64, 64, 8, 3), Tile(64, 64, 64, 8, 3)),
    4: (Tile(16, 32, 32, 4, 3), Tile(32, 32, 32, 4, 3), Tile(64, 64, 16, 8, 3), Tile(64, 64, 16, 8, 3)),
}


def tile_for(rows: int, units: int, bytes_each: int, *, usage: bool) -> Tile:
    """The tile for a product of this size: a large one only where it makes enough programs for a GPU."""
    few, small, large, watched = TILES[bytes_each]
    if rows <= few.rows:
        return few
    if (rows // large.rows) * (units // large.units) < 128:
        return small
    return watched if usage else large


@triton.jit(do_not_specialize=["rows", "usage_row"])
def linear_kernel(
    x,  # [rows, depth], or [rows, full depth] with GATHER_INPUT; element (r, k) at r * x_row + k * x_column
    w,  # [out, in]; element (u, k) at u * w_unit + k * w_column
    bias,  # [out], or None
    y,  # [rows, y_row], units contiguous
    indices,  # int64 [units]: rows of w and of bias; None: the first ones
    input_indices,  # int64 [depth]: columns of w; None: the first ones
    unit_count,  # int32 [1]: how many of `units` there are, a multiple of 16; None: all
    depth_count,  # int32 [1]: how many of `depth` there are, likewise; None: all
    usage,  # float64 [4, usage_row], added to; None: not wanted
    rows,  # not specialized, so that batches of all sizes share a program
    units,
    depth,
    x_row,
    x_column,
    w_unit,
    w_column,
    y_row,
    usage_row,
    slope,
    KIND: tl.constexpr,
    GATHER_INPUT: tl.constexpr,  # input_indices are columns of x as well
    PRECISION: tl.constexpr,  # of float32 products: "ieee" or "tf32"
    ROWS: tl.constexpr,
    UNITS: tl.constexpr,
    DEPTH: tl.constexpr,
):
    """A program computes a tile of ROWS x UNITS over the whole depth."""
    if unit_count is not None:
        units = tl.multiple_of(tl.load(unit_count), 16)
    if depth_count is not None:
        depth = tl.multiple_of(tl.load(depth_count), 16)
    first_unit = tl.program_id(1) * UNITS
    if first_unit >= units:
        return
    r = tl.program_id(0) * ROWS + tl.arange(0, ROWS)
    u = first_unit + tl.arange(0, UNITS)
    row_there, unit_there = r < rows, u < units
    source = u
    if indices is not None:
        source = tl.load(indices + u, mask=unit_there, other=0)
    x_at = x + r.to(tl.int64)[:, None] * x_row
    w_at = w + source.to(tl.int64)[None, :] * w_unit
    sums = tl.zeros((ROWS, UNITS), dtype=tl.float32)
    for begin in range(0, depth, DEPTH):
        k = begin + tl.arange(0, DEPTH)
        there = k < depth
        column = k
        if input_indices is not None:
            column = tl.load(input_indices + k, mask=there, other=0)
        x_column_at = column if GATHER_INPUT else k
        a = tl.load(
            x_at + x_column_at[None, :] * x_column, mask=row_there[:, None] & there[None, :], other=0.0
        )
        b = tl.load(w_at + column[:, None] * w_column, mask=there[:, None] & unit_there[None, :], other=0.0)
        sums = tl.dot(a, b, sums, input_precision=PRECISION)
    if bias is not None:
        sums += tl.load(bias + source, mask=unit_there, other=0.0).to(tl.float32)[None, :]
    a = activate(sums, slope, KIND)
    there = row_there[:, None] & unit_there[None, :]
    if usage is not None:
        add_usage(usage, usage_row, u, a, there, unit_there)
    tl.store(y + r.to(tl.int64)[:, None] * y_row + u[None, :], a.to(y.dtype.element_ty), mask=there)
