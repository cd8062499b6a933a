"""lstm: whole sequences in one launch; a program runs a slice of the batch in one direction."""

import triton
import triton.language as tl

from .epilogue import sigmoid, tanh

PANEL = 64  # columns of a panel: four gates of 16 units


def options_for(bytes_each: int, counted: bool) -> dict:
    """How it is compiled, by bytes of a number and whether there are counts: so that nothing is spilled."""
    if not counted:
        return {"num_stages": 2}
    return {"num_stages": 3} if bytes_each == 4 else {"num_stages": 2, "maxnreg": 128}


@triton.jit(do_not_specialize=["steps", "batch"])
def lstm_kernel(
    product,  # float32 [steps, batch, product_row]: the input's products, a direction's panels side by side
    w_forward,  # [panels, depth + units, 64] of each direction
    w_reverse,
    bias_forward,  # [2, 4, units] of each direction: at the first step, and at all others
    bias_reverse,
    first,  # [batch, 4 * total], added at the first step; None: nothing
    lengths,  # int64 [batch]; None: all steps
    unit_counts,  # int32 [directions]: how many units of each there are; None: all
    h,  # [2, batch, total]: the initial states in the first half; the other is for every other step
    c,  # float32 [batch, total]: the initial states, in the end the last ones
    y,  # outputs, element (t, row, u) at t * y_time + row * y_batch + u
    last,  # [batch, total]: the last hidden states
    steps,
    batch,
    depth,
    total,
    units_forward,
    units_reverse,
    product_time,
    product_batch,
    y_time,
    y_batch,
    PRECISION: tl.constexpr,
    ROWS: tl.constexpr,
    UNITS: tl.constexpr,
    DEPTH: tl.constexpr,
):
    """A step reads what all threads of the program wrote in the step before: hence one barrier per step."""
    reverse = tl.program_id(1) == 1
    w, bias, units, offset, column = w_forward, bias_forward, units_forward, 0, 0
    if reverse:
        w, bias, units, offset = w_reverse, bias_reverse, units_reverse, units_forward
        column = tl.cdiv(units_forward, 16) * 64
    there_are = units
    if unit_counts is not None:
        there_are = tl.load(unit_counts + tl.program_id(1))
    r = tl.program_id(0) * ROWS + tl.arange(0, ROWS)
    row_there = r < batch
    length = tl.where(row_there, steps, 0)
    if lengths is not None:
        length = tl.load(lengths + r, mask=row_there, other=0).to(tl.int32)
    longest = tl.max(length, 0)
    for step in range(0, longest):
        on = step < length
        t = tl.where(reverse, length - 1 - step, step).to(tl.int64)
        now, then = h + (step % 2) * batch * total + offset, h + ((step + 1) % 2) * batch * total + offset
        bias_at = bias + tl.where(step == 0, 0, 4 * units)
        for begin in range(0, there_are, UNITS):
            u = begin + tl.arange(0, UNITS)
            unit_there = u < there_are
            there = on[:, None] & unit_there[None, :]
            panel = u // 16
            in_at = (
                product
                + t[:, None] * product_time
                + r[:, None] * product_batch
                + (column + panel * 64 + u % 16)[None, :]
            )
            i = tl.load(in_at, mask=there, other=0.0)
            f = tl.load(in_at + 16, mask=there, other=0.0)
            g = tl.load(in_at + 32, mask=there, other=0.0)
            o = tl.load(in_at + 48, mask=there, other=0.0)
            for k in range(0, there_are, DEPTH):
                d = k + tl.arange(0, DEPTH)
                d_there = d < there_are
                a = tl.load(
                    now + r[:, None] * total + d[None, :],
                    mask=row_there[:, None] & d_there[None, :],
                    other=0.0,
                )
                w_at = w + (panel * (depth + units) * 64 + u % 16)[None, :] + (depth + d)[:, None] * 64
                w_there = d_there[:, None] & unit_there[None, :]
                i = tl.dot(a, tl.load(w_at, mask=w_there, other=0.0), i, input_precision=PRECISION)
                f = tl.dot(a, tl.load(w_at + 16, mask=w_there, other=0.0), f, input_precision=PRECISION)
                g = tl.dot(a, tl.load(w_at + 32, mask=w_there, other=0.0), g, input_precision=PRECISION)
                o = tl.dot(a, tl.load(w_at + 48, mask=w_there, other=0.0), o, input_precision=PRECISION)
            i += tl.load(bias_at + u, mask=unit_there, other=0.0).to(tl.float32)[None, :]
            f += tl.load(bias_at + units + u, mask=unit_there, other=0.0).to(tl.float32)[None, :]
            g += tl.load(bias_at + 2 * units + u, mask=unit_there, other=0.0).to(tl.float32)[None, :]
            o += tl.load(bias_at + 3 * units + u, mask=unit_there, other=0.0).to(tl.float32)[None, :]
            if first is not None:
                starting = there & (step == 0)
                more = first + r[:, None] * 4 * total + (4 * offset + u)[None, :]
                i += tl.load(more, mask=starting, other=0.0).to(tl.float32)
                f += tl.load(more + units, mask=starting, other=0.0).to(tl.float32)
                g += tl.load(more + 2 * units, mask=starting, other=0.0).to(tl.float32)
                o += tl.load(more + 3 * units, mask=starting, other=0.0).to(tl.float32)
            state = r[:, None] * total + u[None, :]
            cell = sigmoid(f) * tl.load(c + offset + state, mask=there, other=0.0) + sigmoid(i) * tanh(g)
            new = (sigmoid(o) * tanh(cell)).to(h.dtype.element_ty)
            tl.store(c + offset + state, cell, mask=there)
            tl.store(then + state, new, mask=there)
            tl.store(y + t[:, None] * y_time + r[:, None] * y_batch + (offset + u)[None, :], new, mask=there)
            # A row's last state stays what its own last step made of it.
            ends = there & (length == step + 1)[:, None]
            tl.store(last + offset + state, new, mask=ends)
        tl.debug_barrier()
