"""The LSTM op in plain torch, and the layout of its weights."""

from __future__ import annotations

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor

from dynprune.ops.checks import counted, expect, expect_count, leave_unwritten
from dynprune.ops.packing import PANEL

LSTM_UNITS = PANEL // 4


def pack_lstm(
    weight_ih: Tensor, weight_hh: Tensor, indices: Tensor | None = None, columns: Tensor | None = None
) -> Tensor:
    """Weights of one direction as the op takes them.

    Args:
        weight_ih: ``[4 * hidden, in]``, gates in PyTorch's order: input, forget, cell, output.
        weight_hh: ``[4 * hidden, hidden]``.
        indices: units to keep, int64 ``[n]``; None: all.
        columns: of the input to keep, int64 ``[k]``; None: all.

    Returns:
        ``[panels, k + n, 64]``: a panel holds the four gates of 16 units, surplus columns are zero.
    """
    hidden = weight_hh.shape[1]
    expect(
        weight_ih.dim() == 2 and weight_ih.shape[0] == 4 * hidden and weight_hh.shape[0] == 4 * hidden,
        "pack_lstm",
        "weights [4 * hidden, in] and [4 * hidden, hidden]",
        f"{list(weight_ih.shape)} and {list(weight_hh.shape)}",
    )
    if columns is not None:
        weight_ih = weight_ih.index_select(1, columns)
    if indices is not None:
        weight_hh = weight_hh.index_select(1, indices)
    both = torch.cat([weight_ih, weight_hh], 1)
    both = both.view(4, hidden, both.shape[1])
    if indices is not None:
        both = both.index_select(1, indices)
    units, depth = both.shape[1], both.shape[2]
    panels = -(-units // LSTM_UNITS)
    padded = both.new_zeros(4, panels * LSTM_UNITS, depth)
    padded[:, :units] = both
    by_panel = padded.view(4, panels, LSTM_UNITS, depth).permute(1, 3, 0, 2)
    return by_panel.reshape(panels, depth, PANEL).contiguous()


def pack_lstm_rows(weight_ih: Tensor, weight_hh: Tensor) -> Tensor:
    """Compact weights of one direction as the CUDA kernel takes them; arguments as of :func:`pack_lstm`.

    Returns:
        ``[4 * n, k + n]``, row ``4 * unit + gate``; either part's columns fill whole 16 bytes, with zeros.
    """
    chunk = 16 // weight_ih.element_size()
    parts = (F.pad(w, (0, -w.shape[1] % chunk)) for w in (weight_ih, weight_hh))
    units = weight_hh.shape[1]
    by_unit = [w.view(4, units, w.shape[1]).transpose(0, 1).reshape(4 * units, w.shape[1]) for w in parts]
    return torch.cat(by_unit, 1)


def _unpacked(packed: Tensor, units: int) -> Tensor:
    """``[4, units, depth]`` from ``[panels, depth, 64]``."""
    panels, depth, _ = packed.shape
    gates = packed.view(panels, depth, 4, LSTM_UNITS).permute(2, 0, 3, 1)
    return gates.reshape(4, panels * LSTM_UNITS, depth)[:, :units]


def lstm(
    input: Tensor,
    weight: Sequence[Tensor],
    bias: Sequence[Tensor],
    lengths: Tensor | None = None,
    hidden: Tensor | None = None,
    cell: Tensor | None = None,
    *,
    batch_first: bool = False,
    first: Tensor | None = None,
    usage: Tensor | None = None,
    unit_counts: Tensor | None = None,
    depth_count: Tensor | None = None,
) -> tuple[Tensor, Tensor, Tensor]:
    """One LSTM layer of one or two directions over whole sequences (Hochreiter and Schmidhuber 1997).

    Args:
        input: ``[steps, batch, in]``, or ``[batch, steps, in]`` with ``batch_first``.
        weight: of each direction ``[panels, in + units, 64]``, see :func:`pack_lstm`. The second
            direction runs from each sequence's own last step back.
        bias: of each direction ``[2, 4, units]``: at the first step of a sequence, and at all others
            (where the constants of pruned units enter through their recurrent weights).
        lengths: int64 ``[batch]``, from 0 to ``steps``; None: all ``steps``.
        hidden: initial states ``[batch, units of all directions]``; None: zero.
        cell: likewise.
        batch_first: order of the first two dimensions of input and output.
        first: ``[batch, 4 * units of all directions]``, added to the gates at the first step, per
            direction ``[4, units]``: the share of initial states of pruned units.
        usage: float64 ``[4, units of all directions]``, added to; padding does not count.
        unit_counts: int32 ``[directions]`` on the device, for captured graphs: so many units of each are
            there. Outputs and states of the others are left as they were allocated. None: all are there.
        depth_count: likewise ``[1]``, so many inputs; None: all.

    Returns:
        The outputs ``[..., units of all directions]``, zero in the padding, and the last hidden and
        cell states ``[batch, units of all directions]``.

    Raises:
        ValueError: a shape or dtype is not as above.
    """
    expect(
        input.dim() == 3,
        "lstm",
        "an input [steps, batch, features], or [batch, steps, features] batch first",
        list(input.shape),
    )
    expect(
        len(weight) in (1, 2) and len(bias) == len(weight),
        "lstm",
        "a weight and a bias for each of one or two directions",
        f"{len(weight)} and {len(bias)}",
    )
    for b in bias:
        expect(
            b.dim() == 3 and b.shape[:2] == (2, 4), "lstm", "a contiguous bias [2, 4, units]", list(b.shape)
        )
    x = input.transpose(0, 1) if batch_first else input
    steps, batch, depth = x.shape
    sizes = [b.shape[2] for b in bias]
    total, outputs, states = sum(sizes), [], []
    expect_count("lstm", "unit_counts", unit_counts, len(weight))
    expect_count("lstm", "depth_count", depth_count)
    inputs = counted(depth_count, depth)
    if lengths is None:
        lengths = torch.full((batch,), steps, dtype=torch.int64)
    expect(
        lengths.shape == (batch,) and lengths.dtype == torch.int64,
        "lstm",
        f"contiguous int64 lengths [{batch}] on the CPU",
        f"{lengths.dtype} {list(lengths.shape)}",
    )
    for value in lengths.tolist():
        expect(0 <= value <= steps, "lstm", f"lengths from 0 to {steps}", value)
    for name, given in (("hidden", hidden), ("cell", cell)):
        expect(
            given is None or given.shape == (batch, total),
            "lstm",
            f"a {name} state [{batch}, {total}]",
            None if given is None else list(given.shape),
        )
    expect(
        first is None or first.shape == (batch, 4 * total),
        "lstm",
        f"first [{batch}, {4 * total}]",
        None if first is None else list(first.shape),
    )
    lengths = lengths.to(x.device)
    offset = 0
    for index, (packed, b, units) in enumerate(zip(weight, bias, sizes, strict=True)):
        expect(
            packed.shape == (-(-units // LSTM_UNITS), depth + units, PANEL),
            "lstm",
            f"a contiguous packed weight [{-(-units // LSTM_UNITS)}, {depth + units}, {PANEL}]",
            list(packed.shape),
        )
        there = counted(None if unit_counts is None else unit_counts[index], units)
        w = _unpacked(packed, units)[:, :there]
        w = torch.cat([w[:, :, :inputs], w[:, :, depth : depth + there]], 2).flatten(0, 1)
        own = slice(offset, offset + there)
        h = x.new_zeros(batch, there) if hidden is None else hidden[:, own]
        c = x.new_zeros(batch, there) if cell is None else cell[:, own]
        y = x.new_zeros(steps, batch, there)
        rows = torch.arange(batch, device=x.device)
        for step in range(steps):
            on = lengths > step
            times = (lengths - 1 - step).clamp(min=0) if index else torch.full_like(lengths, step)
            gates = torch.cat([x[times, rows, :inputs], h], 1) @ w.T + b[min(step, 1), :, :there].flatten()
            if step == 0 and first is not None:
                given = first[:, 4 * offset : 4 * (offset + units)].view(batch, 4, units)
                gates = gates + given[:, :, :there].flatten(1)
            i, f, g, o = gates.chunk(4, 1)
            new_c = f.sigmoid() * c + i.sigmoid() * g.tanh()
            new_h = o.sigmoid() * new_c.tanh()
            h, c = torch.where(on[:, None], new_h, h), torch.where(on[:, None], new_c, c)
            y[times[on], rows[on]] = new_h[on]
            if usage is not None:
                v = new_h[on].double()
                v = v[v.isfinite().all(1)]
                sums = [v.abs().sum(0), v.sum(0), v.square().sum(0), torch.full_like(v.sum(0), len(v))]
                usage[:, own] += torch.stack(sums)
        outputs.append(leave_unwritten(y, units, 2))
        states.append((leave_unwritten(h, units, 1), leave_unwritten(c, units, 1)))
        offset += units
    y = torch.cat(outputs, 2)
    y = y.transpose(0, 1).contiguous() if batch_first else y
    return y, torch.cat([h for h, _ in states], 1), torch.cat([c for _, c in states], 1)
