"""Structures of tensors, as models take and give them, and the rows of a batch in them."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Any

import torch
from torch import Tensor
from torch.utils import _pytree as pytree

from dynprune.ops.devices import upload


def cast(values: Any, dtype: torch.dtype) -> Any:
    """Floating tensors of a structure in another dtype."""
    return pytree.tree_map_only(Tensor, lambda t: t.to(dtype) if t.is_floating_point() else t, values)


def leaves_of(args: tuple[Any, ...], kwargs: dict[str, Any]) -> list[Any]:
    """What a call was given, leaf by leaf; a lone tensor, as most calls have, needs no walk."""
    if len(args) == 1 and not kwargs and isinstance(args[0], Tensor):
        return [args[0]]
    return pytree.tree_leaves((args, kwargs))


def batch_size(leaves: Iterable[Any]) -> int | None:
    """Size of dimension 0 of the first tensor among them; None if there is none."""
    for value in leaves:
        if isinstance(value, Tensor) and value.dim() > 0:
            return int(value.shape[0])
    return None


def take_rows(values: Any, index: Tensor, rows: int) -> Any:
    """The rows ``index`` (of the host) of every tensor whose dimension 0 is the batch."""

    def take(t: Tensor) -> Tensor:
        return t.index_select(0, upload(index, t.device)) if t.dim() > 0 and t.shape[0] == rows else t

    return pytree.tree_map_only(Tensor, take, values)


def slice_rows(values: Any, first: int, last: int, rows: int) -> Any:
    """The rows [first, last) of every tensor whose dimension 0 is the batch, without a copy."""

    def cut(t: Tensor) -> Tensor:
        return t[first:last] if t.dim() > 0 and t.shape[0] == rows else t

    return pytree.tree_map_only(Tensor, cut, values)


def merge(parts: list[Any], join: Callable[[tuple[Tensor, ...]], Tensor]) -> Any:
    """One structure from several alike, whose leaves are tensors, leaf by leaf."""
    leaves = [pytree.tree_flatten(part) for part in parts]
    merged = [join(column) for column in zip(*(flat for flat, _ in leaves), strict=True)]
    return pytree.tree_unflatten(merged, leaves[0][1])


def alike(left: Any, right: Any) -> bool:
    """Whether two structures hold rows of the same sizes."""
    pairs = zip(pytree.tree_leaves(left), pytree.tree_leaves(right), strict=True)
    return all(a.shape[1:] == b.shape[1:] for a, b in pairs)


def put_rows(parts: list[tuple[Any, Tensor]], rows: int) -> Any:
    """One structure of ``rows`` rows from parts with the indices of their rows; later parts win."""

    def join(column: tuple[Tensor, ...]) -> Tensor:
        out = column[0].new_empty((rows, *column[0].shape[1:]))
        for value, (_, index) in zip(column, parts, strict=True):
            out.index_copy_(0, upload(index, out.device), value)
        return out

    return merge([part for part, _ in parts], join)


def close(got: Any, expected: Any, tolerance: float) -> bool:
    """Whether two structures of tensors agree, relative to the largest value of each."""
    left, right = pytree.tree_leaves(got), pytree.tree_leaves(expected)
    if len(left) != len(right):
        return False
    for a, b in zip(left, right, strict=True):
        if not isinstance(b, Tensor):
            continue
        if not isinstance(a, Tensor) or a.shape != b.shape:
            return False
        if not b.is_floating_point():
            continue
        scale = float(b.abs().nan_to_num(0, 0, 0).max()) if b.numel() else 0.0
        if not torch.allclose(a.double(), b.double(), rtol=tolerance, atol=tolerance * scale, equal_nan=True):
            return False
    return True
