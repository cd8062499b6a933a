"""Writing the program: the traced graph with its layers taken from a plan."""

from __future__ import annotations

import operator
from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch import Tensor, fx, nn

from dynprune.lowering import shapes, tables
from dynprune.lowering.analyse import Analysis
from dynprune.lowering.ir import Layout, Program, UsageSite
from dynprune.ops import reference


def run_entry(plan: Any, index: int, record: Any, x: Tensor, *more: Tensor | None) -> Any:
    """Run one entry of a plan; the program's only way to its weights."""
    return plan.entries[index](x, record, *more)


class ByChannel(nn.Module):
    """A pooling or resizing op on a compact image, also of no channel at all, which PyTorch refuses."""

    def __init__(self, op: Callable[..., Tensor]) -> None:
        super().__init__()
        self.op = op

    def forward(self, x: Tensor, *args: Any, **kwargs: Any) -> Tensor:
        """``[batch, active, ...]`` to the size that the op gives."""
        if x.shape[1] == 0:
            one = x.new_zeros((x.shape[0], 1, *x.shape[2:]))
            return self.op(one, *args, **kwargs)[:, :0]
        return self.op(x, *args, **kwargs)


def max_pool_units(x: Tensor, *geometry: Any) -> Tensor:
    """A max pool on a compact image ``[batch, active, height, width]``, without the indices that PyTorch's
    own computes.
    """
    if x.dtype == torch.float32 and x.device.type == "cpu":
        y: Tensor = torch.ops.dynprune.max_pool2d.default(x, *geometry)
        return y
    return reference.max_pool2d(x, *geometry)


def flatten_units(x: Tensor) -> Tensor:
    """``[batch, active, ...]`` to ``[batch, positions * active]``, units fastest.

    For a channels-last image this is a view.
    """
    return x if x.dim() == 2 else x.movedim(1, -1).flatten(1)


def emit(analysis: Analysis) -> Program:
    """Build the program ``module(plan, record, *inputs)`` from an analysis."""
    traced, modules = analysis.traced, analysis.modules
    graph, holder = fx.Graph(), _Holder(traced)
    plan = graph.placeholder("dynprune_plan")
    record = graph.placeholder("dynprune_record")
    values: dict[fx.Node, fx.Node] = {}

    def entry(index: int, x: fx.Node, *more: fx.Node | None) -> fx.Node:
        return graph.call_function(run_entry, (plan, index, record, x, *more))

    for node in traced.graph.nodes:
        index = analysis.site_of.get(node)
        expanded = analysis.expanded.get(node, {})
        inputs = {**values, **{source: entry(i, values[source]) for source, i in expanded.items()}}
        if node in analysis.fused:
            values[node] = values[analysis.fused[node]]
        elif index is not None and not isinstance(analysis.sites[index], UsageSite):
            # Behind the source an LSTM's lengths and initial states, where it has some.
            values[node] = entry(index, *fx.map_arg(node.args, inputs.__getitem__))
        elif node in analysis.layouts:
            kept = _keep(graph, holder, modules, inputs, node)
            values[node] = kept if index is None else entry(index, kept)
        elif tables.is_size(node) and tables.source_of(node) in analysis.layouts:
            values[node] = full_size(graph, analysis.layouts, values, node)
        else:
            values[node] = _copy(graph, modules, inputs, node)
    graph.lint()
    program = fx.GraphModule(holder, graph, "DynpruneProgram")
    program.graph.eliminate_dead_code()  # sizes that were asked for a flatten
    program.recompile()
    return Program(
        module=program,
        traced=traced,
        sites=analysis.sites,
        groups=analysis.groups,
        reads=analysis.reads,
        layouts=analysis.layouts,
        site_of=analysis.site_of,
        fused=analysis.fused,
        expanded=analysis.expanded,
        notes=analysis.notes,
    )


def _copy(
    graph: fx.Graph, modules: dict[str, nn.Module], values: dict[fx.Node, fx.Node], node: fx.Node
) -> fx.Node:
    """A node as it is; a flatten as a function, whose call takes less than a module's."""
    module = modules.get(str(node.target)) if node.op == "call_module" else None
    if type(module) is nn.Flatten and not (module._forward_hooks or module._forward_pre_hooks):
        args, kwargs = fx.map_arg((node.args, node.kwargs), values.__getitem__)
        if len(args) == 1 and not kwargs:
            return graph.call_function(torch.flatten, (*args, module.start_dim, module.end_dim))
    copied: fx.Node = graph.node_copy(node, values.__getitem__)
    return copied


class _Holder(nn.Module):
    """The traced module's members under their own names, without its forward."""

    def __init__(self, traced: fx.GraphModule) -> None:
        super().__init__()
        for name, child in traced.named_children():
            self.add_module(name, child)
        for name, parameter in traced.named_parameters(recurse=False):
            self.register_parameter(name, parameter)
        for name, buffer in traced.named_buffers(recurse=False):
            self.register_buffer(name, buffer)


def full_size(
    graph: fx.Graph, layouts: Mapping[fx.Node, Layout], values: Mapping[fx.Node, fx.Node], node: fx.Node
) -> fx.Node:
    """A query of sizes (:func:`tables.is_size`) on a compact tensor, answered for the full-width one."""
    source = tables.source_of(node)
    which = node.args[1:] if node.op == "call_method" else ()
    which = (*which, *node.kwargs.values())
    if which == (0,):  # the batch, which is never pruned
        return graph.call_method("size", (values[source], 0))
    dim = layouts[source].dim
    size = source.meta["shape"][dim]
    return graph.call_function(shapes.full_size, (values[source], dim, size, *which))


def unflatten_units(graph: fx.Graph, x: fx.Node, node: fx.Node) -> fx.Node:
    """``[batch, units]`` with the dimensions of size 1 that an unflatten (see tables) adds."""
    added = len(node.meta["shape"]) - 2
    return graph.call_function(operator.getitem, (x, (slice(None), slice(None), *[None] * added)))


def _keep(
    graph: fx.Graph,
    holder: nn.Module,
    modules: dict[str, nn.Module],
    values: dict[fx.Node, fx.Node],
    node: fx.Node,
) -> fx.Node:
    """An op that keeps units apart, on compact tensors."""
    if tables.is_flatten(node, modules):
        return graph.call_function(flatten_units, (values[tables.source_of(node)],))
    if tables.is_unflatten(node):
        return unflatten_units(graph, values[tables.source_of(node)], node)
    if tables.is_pool(node, modules) or tables.is_resize(node, modules):
        geometry = tables.max_pool_geometry(node, modules)
        name = f"dynprune_{node.name}"  # apart from the model's own
        if geometry is not None:
            return graph.call_function(max_pool_units, (values[tables.source_of(node)], *geometry))
        op: Any = modules[str(node.target)] if node.op == "call_module" else node.target
        holder.add_module(name, ByChannel(op))
        args, kwargs = fx.map_arg((node.args, node.kwargs), values.__getitem__)
        return graph.call_module(name, args, kwargs)
    copied: fx.Node = graph.node_copy(node, values.__getitem__)
    return copied
