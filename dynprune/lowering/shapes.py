"""Ops that move, pick or reduce dimensions: where the units' dimension is behind them."""

from __future__ import annotations

import operator
from typing import Any

import torch
from torch import fx

# Reductions that work on every unit by itself; those with indices return a pair.
_REDUCTIONS = {"mean": torch.mean, "sum": torch.sum, "amax": torch.amax, "amin": torch.amin}
_PAIRS = {"max": torch.max, "min": torch.min}


def _is(node: fx.Node, name: str, function: Any) -> bool:
    return (node.op == "call_method" and node.target == name) or (
        node.op == "call_function" and node.target is function
    )


def is_pair(node: fx.Node) -> bool:
    """Whether a node is a reduction that returns values and indices."""
    return any(_is(node, name, function) for name, function in _PAIRS.items()) and (
        len(node.all_input_nodes) == 1 and _dims(node) is not None
    )


def _dims(node: fx.Node) -> list[int] | None:
    """The dimensions a reduction names, as they stand."""
    dims = node.args[1] if len(node.args) > 1 else node.kwargs.get("dim")
    if isinstance(dims, int):
        return [dims]
    if isinstance(dims, (tuple, list)) and dims and all(isinstance(d, int) for d in dims):
        return [d for d in dims if isinstance(d, int)]
    return None


def _reduced(node: fx.Node, dim: int, rank: int) -> int | None:
    dims = _dims(node)
    if dims is None or node.kwargs.get("dtype") is not None or len(node.args) > 3:
        return None
    gone = {d % rank for d in dims}
    keep = node.args[2] if len(node.args) > 2 else node.kwargs.get("keepdim", False)
    if dim in gone or not isinstance(keep, bool):
        return None
    return dim if keep else dim - sum(d < dim for d in gone)


def _picked(index: Any, dim: int, rank: int) -> int | None:
    """Behind ``x[index]`` with integers, slices, None and Ellipsis; the units have to stay whole."""
    parts = list(index) if isinstance(index, tuple) else [index]
    if not all(p is None or p is Ellipsis or isinstance(p, (int, slice)) for p in parts):
        return None
    if any(isinstance(p, bool) for p in parts):
        return None
    for p in parts:
        if isinstance(p, slice) and any(isinstance(v, fx.Node) for v in (p.start, p.stop, p.step)):
            return None
    taken = sum(p is not None and p is not Ellipsis for p in parts)
    if Ellipsis in parts:
        at = parts.index(Ellipsis)
        parts[at : at + 1] = [slice(None)] * (rank - taken)
    source = target = 0
    for part in parts:
        if part is None:
            target += 1
            continue
        if source == dim:
            return target if part == slice(None) else None
        source += 1
        target += not isinstance(part, int)
    return target + dim - source


def dim_behind(node: fx.Node, dim: int, shape: tuple[int, ...]) -> int | None:
    """Where dimension ``dim`` of a value of ``shape`` is behind a node that keeps it whole.

    None for ops that are not known to, and for those that mix it with others.
    """
    if len(node.all_input_nodes) != 1:
        return None
    rank = len(shape)
    if any(_is(node, name, function) for name, function in _REDUCTIONS.items()):
        return _reduced(node, dim, rank)
    if is_pair(node):
        values_only = all(u.target is operator.getitem and u.args[1] == 0 for u in node.users)
        return _reduced(node, dim, rank) if values_only else None
    if node.op == "call_function" and node.target is operator.getitem:
        return _picked(node.args[1], dim, rank)
    numbers = node.args[1:]
    if len(numbers) == 1 and isinstance(numbers[0], (tuple, list)):
        numbers = tuple(numbers[0])
    if node.kwargs or not all(isinstance(n, int) for n in numbers):
        return None
    order = [n for n in numbers if isinstance(n, int)]
    if _is(node, "transpose", torch.transpose) and len(order) == 2:
        a, b = (n % rank for n in order)
        return b if dim == a else a if dim == b else dim
    if _is(node, "permute", torch.permute) and len(order) == rank:
        return [n % rank for n in order].index(dim)
    if _is(node, "unsqueeze", torch.unsqueeze) and len(order) == 1:
        return dim + (order[0] % (rank + 1) <= dim)
    if _is(node, "squeeze", torch.squeeze) and len(order) == 1:
        gone = order[0] % rank
        return dim - (gone < dim) if gone not in (0, dim) and shape[gone] == 1 else None
    return None


def concatenated(node: fx.Node) -> tuple[list[fx.Node], int] | None:
    """The values that a node lays one behind the other, and the dimension; None for other nodes."""
    if node.op != "call_function" or node.target not in (torch.cat, torch.concat, torch.concatenate):
        return None
    parts = node.args[0] if node.args else node.kwargs.get("tensors")
    dim = node.args[1] if len(node.args) > 1 else node.kwargs.get("dim", 0)
    shape = node.meta.get("shape")
    if not isinstance(parts, (list, tuple)) or not isinstance(dim, int) or shape is None:
        return None
    values = [part for part in parts if isinstance(part, fx.Node)]
    return (values, dim % len(shape)) if len(values) == len(parts) else None
