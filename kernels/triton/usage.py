"""Usage sums of values that lie in memory: what no epilogue has seen."""

import triton
import triton.language as tl

from .epilogue import add_usage


@triton.jit(do_not_specialize=["steps", "batch", "usage_row"])
def usage_kernel(
    a,  # element (t, row, u) at t * a_time + row * a_batch + u
    lengths,  # int64 [batch], the steps of each row that count; None: all
    usage,  # float64 [4, usage_row], added to
    steps,
    batch,
    units,
    a_time,
    a_batch,
    usage_row,
    ROWS: tl.constexpr,
    UNITS: tl.constexpr,
):
    """A program sums ROWS values of UNITS units."""
    q = tl.program_id(0) * ROWS + tl.arange(0, ROWS)
    u = tl.program_id(1) * UNITS + tl.arange(0, UNITS)
    t, row = q // batch, q % batch
    there = q < steps * batch
    if lengths is not None:
        there &= t < tl.load(lengths + row, mask=there, other=0)
    unit_there = u < units
    at = a + t.to(tl.int64)[:, None] * a_time + row.to(tl.int64)[:, None] * a_batch + u[None, :]
    both = there[:, None] & unit_there[None, :]
    add_usage(usage, usage_row, u, tl.load(at, mask=both, other=0.0).to(tl.float32), both, unit_there)
