"""A plain module of the compacted size, from a program and a plan."""

from __future__ import annotations

import copy
from typing import Any

import torch
from torch import Tensor, fx, nn

from dynprune.compact import CompactLSTM, ExpandUnits, PickChannels, with_ones_channel
from dynprune.lowering import tables
from dynprune.lowering.convolution import conv_padding, is_depthwise
from dynprune.lowering.emit import full_size, unflatten_units
from dynprune.lowering.ir import ExpandSite, LayerSite, LSTMSite, NormSite, Program
from dynprune.ops.reference import wide
from dynprune.plan.build import norm_entry
from dynprune.plan.inputs import Inputs
from dynprune.plan.plan import Plan


class _Materializer:
    def __init__(self, program: Program, plan: Plan, compensate: bool) -> None:
        self.program = program
        self.plan = plan
        self.compensate = compensate
        self.modules = dict(program.traced.named_modules())
        self.graph = fx.Graph()
        self.root: dict[str, Any] = {}
        self.copied: dict[str, str] = {}  # a module taken over as it is -> its name in root
        self.values: dict[fx.Node, fx.Node] = {}

    def run(self) -> nn.Module:
        for node in self.program.traced.graph.nodes:
            self.values[node] = self._node(node)
        self.graph.lint()
        compact = fx.GraphModule(self.root, self.graph, "CompactModel")
        compact.graph.eliminate_dead_code()
        compact.recompile()
        return compact.eval().requires_grad_(False)

    def _kept(self, *groups: str) -> Tensor:
        """Units the plain module has of each group ``[n]``: the active ones; PyTorch wants one at least."""
        parts, before = [], 0
        for group in groups:
            mask = self.plan.active[group]
            index = mask.nonzero().flatten()
            parts.append(before + (index if len(index) else torch.zeros(1, dtype=torch.int64)))
            before += len(mask)
        return torch.cat(parts)

    def _inputs(self, read: int | None) -> Inputs:
        if read is None:
            return Inputs()
        point = self.program.reads[read]
        value = self.plan.substitutes[point.name]
        substitute = value if self.compensate else value.without()
        return Inputs(point.layout.join(self.plan.active), substitute, point.layout.spatial)

    def _node(self, node: fx.Node) -> fx.Node:
        program = self.program
        if node in program.fused:
            source = self.values[tables.source_of(node)]
            if node.op == "call_module" and isinstance(
                self.modules[str(node.target)], (nn.BatchNorm1d, nn.BatchNorm2d)
            ):
                return source  # folded into the layer
            return self._copy(node, {})
        expanded = {
            source: self._expand(index, source) for source, index in program.expanded.get(node, {}).items()
        }
        if node in program.site_of:
            site = program.sites[program.site_of[node]]
            source = expanded.get(tables.source_of(node), self.values[tables.source_of(node)])
            if isinstance(site, LayerSite):
                return self._layer(node, site, source)
            if isinstance(site, LSTMSite):
                more: Any = fx.map_arg(node.args[1:], lambda n: expanded.get(n, self.values[n]))
                module: nn.Module = self._lstm(site, given_states=len(more) > 1)
                return self._call(site.name.replace(".", "_"), module, source, *more)
            if isinstance(site, NormSite):
                module = _compact_norm(site, self._kept(*site.layout.groups))
                return self._call(str(node.target), module, source)
            return self._copy(node, {})
        if node in program.layouts and tables.is_flatten(node, self.modules):
            return self.graph.call_function(torch.flatten, (self.values[tables.source_of(node)], 1))
        if node in program.layouts and tables.is_unflatten(node):
            return unflatten_units(self.graph, self.values[tables.source_of(node)], node)
        if tables.is_size(node) and tables.source_of(node) in program.layouts:
            return full_size(self.graph, program.layouts, self.values, node)
        return self._copy(node, expanded)

    def _copy(self, node: fx.Node, expanded: dict[fx.Node, fx.Node]) -> fx.Node:
        if node.op == "call_module" and node.target not in self.copied:
            name = self._free_name(str(node.target))
            self.root[name] = copy.deepcopy(self.modules[str(node.target)])
            self.copied[str(node.target)] = name
        elif node.op == "get_attr":
            value: Any = self.program.traced
            for part in str(node.target).split("."):
                value = getattr(value, part)
            self.root.setdefault(str(node.target), copy.deepcopy(value))
        copied: fx.Node = self.graph.node_copy(node, lambda n: expanded.get(n, self.values[n]))
        if node.op == "call_module":
            copied.target = self.copied[str(node.target)]
        return copied

    def _free_name(self, name: str) -> str:
        unique, count = name, 1
        while unique in self.root:
            count += 1
            unique = f"{name}_{count}"
        return unique

    def _call(self, name: str, module: nn.Module, *sources: fx.Node | None) -> fx.Node:
        unique = self._free_name(name)
        self.root[unique] = module
        return self.graph.call_module(unique, sources)

    def _expand(self, index: int, source: fx.Node) -> fx.Node:
        site = self.program.sites[index]
        assert isinstance(site, ExpandSite)
        inputs, layout = self._inputs(site.read), self.program.reads[site.read].layout
        assert inputs.active is not None and inputs.substitute is not None
        module = ExpandUnits(self._kept(*layout.groups), inputs.active, inputs.substitute, layout)
        return self._call(f"expand_{index}", module, self.values[source])

    def _lstm(self, site: LSTMSite, *, given_states: bool) -> CompactLSTM:
        columns = None
        if site.read is not None:
            columns = self._kept(*self.program.reads[site.read].layout.groups)
        steps = [(self._inputs(r), self._kept(g)) for r, g in zip(site.recurrent, site.groups, strict=True)]
        if not steps:
            everything = torch.arange(site.layer.hidden_size)
            steps = [(Inputs(), everything) for _ in site.layer.suffixes]
        return CompactLSTM(
            site, (self._inputs(site.read), columns), steps, starts=given_states and self.compensate
        )

    def _layer(self, node: fx.Node, site: LayerSite, source: fx.Node) -> fx.Node:
        weight = wide(site.module.weight.detach())
        scale, bias = site.fold()
        if scale is not None:
            weight = weight * scale.view(-1, *[1] * (weight.dim() - 1))
        rows = torch.arange(site.units)
        if site.group is not None:
            rows = self._kept(site.group)
        elif site.follows is not None:
            rows = self._kept(*site.follows.groups)
        weight, bias = weight[rows], bias[rows]
        taps: Tensor | None = None
        if site.read is not None:
            inputs = self._inputs(site.read)
            mask, substitute = inputs.active, inputs.substitute
            assert mask is not None and substitute is not None
            missing = torch.where(mask, 0.0, substitute.constants).to(weight.dtype)
            gone = torch.einsum("nup,u->np", weight.view(len(rows), len(mask), -1).double(), missing.double())
            by_unit = inputs.mixed(weight).view(len(rows), len(mask), -1)
            kept = self._kept(*self.program.reads[site.read].layout.groups)
            weight = (by_unit[:, kept] * mask[kept].view(-1, 1)).reshape(len(rows), -1, *weight.shape[2:])
            if isinstance(site.module, nn.Linear) or conv_padding(site.module) == [0, 0]:
                bias = bias + gone.sum(1).to(bias.dtype)
            elif bool(missing.any()):
                taps = gone.to(weight.dtype).view(len(rows), 1, *weight.shape[2:])
        if isinstance(site.module, nn.Linear):
            linear = nn.Linear(weight.shape[1], len(rows), dtype=site.module.weight.dtype)
            return self._call(str(node.target), _filled(linear, weight, bias), source)
        if taps is not None:
            weight = torch.cat([weight, taps], dim=1)
            source = self.graph.call_function(with_ones_channel, (source,))
        groups = site.module.groups
        if is_depthwise(site.module):
            groups = len(rows)
            if site.follows is None and groups < site.units:
                source = self._call(f"{node.target}_channels", PickChannels(rows), source)
        conv = _convolution(site, weight, groups)
        return self._call(str(node.target), _filled(conv, weight, bias), source)


def _convolution(site: LayerSite, weight: Tensor, groups: int) -> nn.Conv1d | nn.Conv2d:
    """A convolution with room for ``weight`` ``[out, in, kh, kw]``."""
    old = site.module
    assert isinstance(old, nn.Conv2d)
    padding = conv_padding(old)
    assert padding is not None
    channels, units = weight.shape[1] * groups, weight.shape[0]
    kernel, stride, pad, dilation = (
        (int(pair[0]), int(pair[1])) for pair in (weight.shape[2:], old.stride, padding, old.dilation)
    )
    if site.sequence:
        return nn.Conv1d(
            channels, units, kernel[1], stride[1], pad[1], dilation[1], groups, dtype=old.weight.dtype
        )  # fmt: skip
    return nn.Conv2d(channels, units, kernel, stride, pad, dilation, groups, dtype=old.weight.dtype)


def _filled(module: nn.Linear | nn.Conv1d | nn.Conv2d, weight: Tensor, bias: Tensor) -> nn.Module:
    with torch.no_grad():
        module.weight.copy_(weight.view_as(module.weight))
        assert module.bias is not None
        module.bias.copy_(bias)
    return module


def _compact_norm(site: NormSite, kept: Tensor) -> nn.Module:
    old, entry = site.module, norm_entry(site, kept)
    new = type(old)(len(kept), eps=old.eps, affine=old.affine, dtype=entry.mean.dtype)
    with torch.no_grad():
        assert new.running_mean is not None and new.running_var is not None
        new.running_mean.copy_(entry.mean)
        new.running_var.copy_(entry.var)
        if entry.weight is not None and entry.bias is not None:
            new.weight.copy_(entry.weight)
            new.bias.copy_(entry.bias)
    return new


def materialize(program: Program, plan: Plan, *, compensate: bool) -> nn.Module:
    """A plain ``nn.Module`` that computes what the plan computes, or without its constants.

    Exact in standard modules: where padding makes a compensated bias depend on the position, the
    convolution gets one more input channel, of ones, whose weights carry the constants per tap.
    """
    with torch.inference_mode(False), torch.no_grad():
        return _Materializer(program, plan, compensate).run()
