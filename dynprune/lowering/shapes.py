"""Ops that move, pick, reduce or broadcast dimensions: where the units' dimension is behind them."""

from __future__ import annotations

import operator
from typing import Any

import torch
from torch import Tensor, fx

from dynprune.lowering.ir import Layout

# Elementwise functions of two tensors; expand_as takes only the shape of the second.
_BINARY_FUNCTIONS = {
    operator.add, operator.iadd, torch.add, operator.sub, operator.isub, torch.sub,
    operator.mul, operator.imul, torch.mul, torch.multiply,
    operator.truediv, operator.itruediv, torch.div, torch.maximum, torch.minimum, torch.max, torch.min,
}  # fmt: skip
_BINARY_METHODS = {
    "add", "add_", "sub", "sub_", "mul", "mul_", "multiply", "div", "div_", "maximum", "minimum", "max",
    "min", "expand_as",
}  # fmt: skip

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


def operands(node: fx.Node) -> tuple[fx.Node, fx.Node] | None:
    """The two values that an elementwise function takes; None for other nodes."""
    known = (node.op == "call_function" and node.target in _BINARY_FUNCTIONS) or (
        node.op == "call_method" and node.target in _BINARY_METHODS
    )
    if not known or len(node.args) != 2 or "out" in node.kwargs:
        return None
    left, right = node.args
    return (left, right) if isinstance(left, fx.Node) and isinstance(right, fx.Node) else None


def aligned(a: Layout, left: fx.Node, b: Layout, right: fx.Node, node: fx.Node) -> Layout | None:
    """The layout of an elementwise function of two compact tensors; None where their units do not meet.

    Other dimensions may broadcast: a gate has one value for all pixels.
    """
    shape = node.meta.get("shape")
    if shape is None or a.spatial != b.spatial:
        return None
    if a.spatial > 1:
        return a if left.meta["shape"] == right.meta["shape"] == shape and a.dim == b.dim else None
    dims = [layout.dim + len(shape) - len(value.meta["shape"]) for layout, value in ((a, left), (b, right))]
    return Layout(a.groups, dims[0]) if dims[0] == dims[1] else None


def spread(layout: Layout, compact: fx.Node, other: fx.Node, node: fx.Node) -> Layout | None:
    """The layout of an elementwise function of a compact tensor and one that is the same for all its units.

    None for other tensors.
    """
    shape, own, beside = node.meta.get("shape"), compact.meta["shape"], other.meta.get("shape")
    if shape is None or own[layout.dim] == 1:
        return None
    dim: int = layout.dim + len(shape) - len(own)
    if shape[dim] != own[layout.dim] or (layout.spatial > 1 and shape != own):
        return None
    if beside is not None:  # a number otherwise
        at = dim - (len(shape) - len(beside))
        if at >= 0 and beside[at] != 1:
            return None
    return Layout(layout.groups, dim, layout.spatial)


def full_size(x: Tensor, dim: int, size: int, *which: int) -> Any:
    """``x.size(*which)`` of the full-width tensor, which has ``size`` elements along ``dim``."""
    sizes = torch.Size((*x.shape[:dim], size, *x.shape[dim + 1 :]))
    return sizes[which[0]] if which else sizes
