"""Writing the program: the traced graph with its layers taken from a plan."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, fx, nn

from dynprune.lowering import tables
from dynprune.lowering.analyse import Analysis
from dynprune.lowering.ir import LayerSite, LSTMSite, Program
from dynprune.ops import reference


def run_entry(plan: Any, index: int, record: Any, x: Tensor, *more: Tensor) -> Any:
    """Run one entry of a plan; the program's only way to its weights."""
    return plan.entries[index](x, record, *more)


class PoolUnits(nn.Module):
    """A pooling op on a compact image or sequence, also of no channel at all, which PyTorch refuses."""

    def __init__(self, pool: Callable[..., Tensor], args: tuple[Any, ...], kwargs: Any) -> None:
        super().__init__()
        self.pool = pool
        self.args = args
        self.kwargs = dict(kwargs)

    def forward(self, x: Tensor) -> Tensor:
        """``[batch, active, ...]`` to the pooled size."""
        if x.shape[1] == 0:
            one = x.new_zeros((x.shape[0], 1, *x.shape[2:]))
            return self.pool(one, *self.args, **self.kwargs)[:, :0]
        return self.pool(x, *self.args, **self.kwargs)


class MaxPoolUnits(nn.Module):
    """A max pool on a compact image, without the indices that PyTorch's own computes."""

    def __init__(self, geometry: tables.MaxPool) -> None:
        super().__init__()
        self.geometry = geometry

    def forward(self, x: Tensor) -> Tensor:
        """``[batch, active, height, width]`` to the pooled size."""
        if x.dtype == torch.float32:
            y: Tensor = torch.ops.dynprune.max_pool2d.default(x, *self.geometry)
            return y
        return reference.max_pool2d(x, *self.geometry)


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

    def entry(index: int, x: fx.Node, *more: fx.Node) -> fx.Node:
        return graph.call_function(run_entry, (plan, index, record, x, *more))

    for node in traced.graph.nodes:
        if node in analysis.fused:
            values[node] = values[analysis.fused[node]]
        elif node in analysis.site_of:
            index, source = analysis.site_of[node], tables.source_of(node)
            site = analysis.sites[index]
            x = values[source]
            if isinstance(site, (LayerSite, LSTMSite)) and source in analysis.expanded.get(node, {}):
                x = entry(analysis.expanded[node][source], x)
            # An LSTM's lengths, where it has some.
            values[node] = entry(index, x, *(values[n] for n in node.all_input_nodes[1:]))
        elif node in analysis.layouts:
            values[node] = _keep(graph, holder, modules, values, node)
        else:
            full = {
                source: entry(index, values[source])
                for source, index in analysis.expanded.get(node, {}).items()
            }
            values[node] = graph.node_copy(node, {**values, **full}.__getitem__)
    graph.lint()
    return Program(
        module=fx.GraphModule(holder, graph, "DynpruneProgram"),
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
    if tables.is_pool(node, modules):
        geometry = tables.max_pool_geometry(node, modules)
        pool: Any = modules[str(node.target)] if node.op == "call_module" else node.target
        name = f"dynprune_{node.name}"  # apart from the model's own
        holder.add_module(
            name,
            PoolUnits(pool, node.args[1:], node.kwargs) if geometry is None else MaxPoolUnits(geometry),
        )
        return graph.call_module(name, (values[tables.source_of(node)],))
    copied: fx.Node = graph.node_copy(node, lambda n: values[n])
    return copied
