"""Compact weights from a master, in one pass."""

import triton
import triton.language as tl


@triton.jit
def gather_kernel(
    master,  # [out, in * taps], an input's taps side by side
    rows,  # int64 [n]; None: the first n
    columns,  # int64 [k]: inputs; None: the first k
    compact,  # [n, k * taps]
    n,
    k,
    taps,
    master_row,
    ROWS: tl.constexpr,
    COLUMNS: tl.constexpr,
):
    """A program copies a tile."""
    r = tl.program_id(0) * ROWS + tl.arange(0, ROWS)
    c = tl.program_id(1) * COLUMNS + tl.arange(0, COLUMNS)
    row_there, there = r < n, c < k * taps
    row, column = r, c // taps
    if rows is not None:
        row = tl.load(rows + r, mask=row_there, other=0)
    if columns is not None:
        column = tl.load(columns + column, mask=there, other=0)
    both = row_there[:, None] & there[None, :]
    value = tl.load(
        master + row.to(tl.int64)[:, None] * master_row + (column * taps + c % taps)[None, :], mask=both
    )
    tl.store(compact + r.to(tl.int64)[:, None] * (k * taps) + c[None, :], value, mask=both)
