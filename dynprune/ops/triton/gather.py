"""Compact weights on the device."""

from __future__ import annotations

import triton
from torch import Tensor

from dynprune.kernels_triton.gather import gather_kernel
from dynprune.ops.reference import expect
from dynprune.ops.triton import common

_TILE = 32


def compact_weight(weight: Tensor, indices: Tensor | None = None, columns: Tensor | None = None) -> Tensor:
    """The rows ``indices`` and inputs ``columns`` of a master weight, contiguous.

    Args:
        weight: ``[out, in]`` or ``[out, in, kh, kw]``.
        indices: int64 ``[n]`` on the device; None: all.
        columns: int64 ``[k]`` on the device; None: all.

    Returns:
        ``[n, k]`` or ``[n, k, kh, kw]``.

    Raises:
        ValueError: the weight has less than two dimensions, or a list is not as above.
    """
    op = "compact_weight"
    expect(weight.dim() >= 2, op, "a weight [out, in, ...]", list(weight.shape))
    common.expect_list(op, "indices", indices, weight)
    common.expect_list(op, "columns", columns, weight)
    n = weight.shape[0] if indices is None else len(indices)
    k = weight.shape[1] if columns is None else len(columns)
    taps = weight.shape[2:].numel()
    compact = weight.new_empty((n, k, *weight.shape[2:]))
    if compact.numel():
        flat = weight.contiguous()
        grid = (triton.cdiv(n, _TILE), triton.cdiv(k * taps, _TILE))
        with common.on(weight):
            gather_kernel[grid](
                flat, indices, columns, compact, n, k, taps, flat.stride(0), ROWS=_TILE, COLUMNS=_TILE
            )
    return compact
