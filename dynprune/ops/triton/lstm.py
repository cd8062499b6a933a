"""The op ``lstm`` on Triton."""

from __future__ import annotations

from collections.abc import Sequence

import torch
import triton
from torch import Tensor

from dynprune.kernels_triton.lstm import PANEL, lstm_kernel, options_for
from dynprune.kernels_triton.usage import usage_kernel
from dynprune.ops.checks import expect, expect_count
from dynprune.ops.lstm_reference import LSTM_UNITS
from dynprune.ops.triton import common

_ROWS, _UNITS, _DEPTH = 16, 32, 32  # of a tile; tensor cores take no fewer rows


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
    """As :func:`dynprune.ops.lstm_reference.lstm`, also in float16 and bfloat16.

    The input's products are one matrix product of PyTorch's, which takes no ``depth_count``: what lies
    behind counts as zero. All steps are one launch. ``lengths`` on the CPU are checked and copied to the
    device; those on the device are taken as they are.

    Raises:
        ValueError: a shape, dtype or device is not as there.
    """
    op = "lstm"
    shape = "an input [steps, batch, features], or [batch, steps, features] batch first"
    expect(input.dim() == 3, op, shape, list(input.shape))
    several = "a weight and a bias for each of one or two directions"
    expect(len(weight) in (1, 2) and len(bias) == len(weight), op, several, f"{len(weight)} and {len(bias)}")
    x = input.transpose(0, 1) if batch_first else input
    steps, batch, depth = x.shape
    for w, b in zip(weight, bias, strict=True):
        common.expect_operands(op, input, w, b)
        fits = b.dim() == 3 and b.shape[:2] == (2, 4) and b.is_contiguous()
        expect(fits, op, "a contiguous bias [2, 4, units]", list(b.shape))
        wanted = (-(-b.shape[2] // LSTM_UNITS), depth + b.shape[2], PANEL)
        expect(
            w.shape == wanted and w.is_contiguous(),
            op,
            f"a contiguous packed weight {list(wanted)}",
            list(w.shape),
        )
    sizes = [b.shape[2] for b in bias]
    total = sum(sizes)
    on_device = _lengths(op, lengths, steps, batch, input)
    expected = (("hidden state", hidden, total), ("cell state", cell, total), ("first", first, 4 * total))
    for name, state, columns in expected:
        got = None if state is None else list(state.shape)
        fits = state is None or state.shape == (batch, columns)
        expect(fits, op, f"{'' if name == 'first' else 'a '}{name} [{batch}, {columns}]", got)
    common.expect_options(op, "none", usage, total)
    expect_count(op, "unit_counts", unit_counts, len(weight))
    expect_count(op, "depth_count", depth_count)

    h = input.new_zeros((2, batch, total))
    if hidden is not None:
        h[0] = hidden
    c = torch.zeros((batch, total), dtype=torch.float32, device=input.device)
    if cell is not None:
        c.copy_(cell)
    last = h[0].clone()
    y = input.new_zeros((*input.shape[:2], total))
    by_time = y.transpose(0, 1) if batch_first else y
    if y.numel():
        into = torch.cat([w[:, :depth].transpose(0, 1).flatten(1) for w in weight], 1)
        if depth_count is not None:
            x = torch.where(torch.arange(depth, device=x.device) < depth_count, x, 0.0)
        product = torch.matmul(x, into).float()
        reverse = 1 if len(weight) == 2 else 0
        with common.on(input):
            lstm_kernel[(triton.cdiv(batch, _ROWS), len(weight))](
                product, weight[0], weight[reverse], bias[0], bias[reverse],
                None if first is None else first.contiguous(), on_device,
                unit_counts,
                h, c, by_time, last,
                steps, batch, depth, total, sizes[0], sizes[reverse],
                product.stride(0), product.stride(1), by_time.stride(0), by_time.stride(1),
                PRECISION=common.precision("lstm"), ROWS=_ROWS, UNITS=_UNITS, DEPTH=_DEPTH,
                **options_for(input.element_size(), unit_counts is not None),
            )  # fmt: skip
            if usage is not None:
                usage_kernel[(triton.cdiv(steps * batch, 128), triton.cdiv(total, 32))](
                    by_time, on_device, usage, steps, batch, total, by_time.stride(0), by_time.stride(1),
                    common.usage_row(usage), ROWS=128, UNITS=32,
                )  # fmt: skip
    return y, last, c.to(input.dtype)


def _lengths(op: str, lengths: Tensor | None, steps: int, batch: int, input: Tensor) -> Tensor | None:
    if lengths is None:
        return None
    fits = lengths.shape == (batch,) and lengths.dtype == torch.int64
    expect(fits, op, f"contiguous int64 lengths [{batch}]", f"{lengths.dtype} {list(lengths.shape)}")
    if lengths.device.type == "cpu":
        for value in lengths.tolist():
            expect(0 <= value <= steps, op, f"lengths from 0 to {steps}", value)
    return lengths.contiguous().to(input.device, non_blocking=True)
