"""What the ops in plain torch check alike, and how they count."""

from __future__ import annotations

import torch
from torch import Tensor


def expect(condition: bool, op: str, expected: str, got: object) -> None:
    """Raise ``ValueError("<op>: expected <expected>, got <got>")`` unless ``condition`` holds."""
    if not condition:
        raise ValueError(f"{op}: expected {expected}, got {got}")


def expect_count(op: str, name: str, t: Tensor | None, length: int = 1) -> None:
    """Raise ValueError unless ``t`` is None or int32 ``[length]``."""
    fits = t is None or (t.shape == (length,) and t.dtype == torch.int32)
    expect(fits, op, f"int32 {name} [{length}]", None if t is None else f"{t.dtype} {list(t.shape)}")


def counted(count: Tensor | None, most: int) -> int:
    """How many of ``most`` there are. On a GPU all of them: to read the count would wait for the device."""
    return most if count is None or count.is_cuda else min(most, int(count))


def leave_unwritten(y: Tensor, units: int, dim: int) -> Tensor:
    """``y`` with ``units`` along ``dim``; those it has not are NaN, as what no kernel writes may be."""
    missing = units - y.shape[dim]
    if missing == 0:
        return y
    shape = list(y.shape)
    shape[dim] = missing
    return torch.cat([y, y.new_full(shape, torch.nan)], dim)


def expect_list(op: str, name: str, t: Tensor | None, like: Tensor) -> None:
    """Raise ValueError unless ``t`` is None or an int64 list where ``like`` lies; values are not read."""
    if t is not None:
        fits = t.dim() == 1 and t.dtype == torch.int64 and t.is_contiguous() and t.device == like.device
        got = f"{t.dtype} {list(t.shape)} on {t.device}"
        expect(fits, op, f"contiguous int64 {name} [n] on {like.device}", got)


def expect_indices(op: str, name: str, t: Tensor, limit: int) -> None:
    """Raise ValueError unless ``t`` is an int64 list, strictly increasing in [0, ``limit``)."""
    expect(
        t.dim() == 1 and t.dtype == torch.int64,
        op,
        f"contiguous int64 {name} [n] on the CPU",
        f"{t.dtype} {list(t.shape)}",
    )
    previous = -1
    for value in t.tolist():
        expect(
            previous < value < limit,
            op,
            f"{name} strictly increasing in [0, {limit})",
            f"{value} after {previous}",
        )
        previous = value
