"""A plain module of the compacted size, from a program and a plan."""

from __future__ import annotations

import copy
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, fx, nn

from dynprune.lowering import tables
from dynprune.lowering.analyse import conv_padding
from dynprune.lowering.ir import ExpandSite, LayerSite, Layout, NormSite, Program
from dynprune.plan import build
from dynprune.plan.plan import Plan
from dynprune.plan.substitute import Substitute


class ExpandUnits(nn.Module):
    """Full width again: the active units among constants, in PyTorch's order of a flattened image."""

    index: Tensor
    constants: Tensor
    mixing: Tensor | None

    def __init__(self, index: Tensor, substitute: Substitute, layout: Layout) -> None:
        super().__init__()
        self.register_buffer("index", index)
        self.register_buffer("constants", substitute.constants.clone())
        mixing = substitute.mixing
        self.register_buffer("mixing", None if mixing is None else mixing[:, index])
        self.dim = layout.dim
        self.spatial = layout.spatial

    def forward(self, x: Tensor) -> Tensor:
        """``[batch, active ...]`` to ``[batch, units ...]``."""
        units, shape = len(self.constants), list(x.shape)
        if self.spatial > 1:
            x = x.view(shape[0], len(self.index), self.spatial)
        view, full = [1] * x.dim(), list(x.shape)
        dim = 1 if self.spatial > 1 else self.dim
        view[dim] = full[dim] = units
        constants = self.constants.to(x.dtype).view(view).expand(full)
        if self.mixing is not None:
            constants = constants + (x.movedim(dim, -1) @ self.mixing.to(x.dtype).T).movedim(-1, dim)
        y = constants.index_copy(dim, self.index, x)
        return y.flatten(1) if self.spatial > 1 else y


def with_ones_channel(x: Tensor) -> Tensor:
    """``[batch, n, height, width]`` with one more channel of ones: it carries constants per tap."""
    return F.pad(x, (0, 0, 0, 0, 0, 1), value=1.0)


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
        return fx.GraphModule(self.root, self.graph, "CompactModel").eval().requires_grad_(False)

    def _kept(self, group: str) -> Tensor:
        """Units the plain module has ``[n]``: the active ones; PyTorch wants one at least."""
        index = self.plan.active[group].nonzero().flatten()
        return index if len(index) else torch.zeros(1, dtype=torch.int64)

    def _substitute(self, read: int) -> Substitute:
        value = self.plan.substitutes[self.program.reads[read].name]
        return value if self.compensate else value.without()

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
            if isinstance(site, NormSite):
                module = _compact_norm(site, self._kept(site.layout.group))
                return self._call(str(node.target), module, source)
            return self._copy(node, {})
        if node in program.layouts and tables.is_flatten(node, self.modules):
            return self.graph.call_function(torch.flatten, (self.values[tables.source_of(node)], 1))
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

    def _call(self, name: str, module: nn.Module, source: fx.Node) -> fx.Node:
        unique = self._free_name(name)
        self.root[unique] = module
        return self.graph.call_module(unique, (source,))

    def _expand(self, index: int, source: fx.Node) -> fx.Node:
        site = self.program.sites[index]
        assert isinstance(site, ExpandSite)
        read = self.program.reads[site.read]
        mask = self.plan.active[read.layout.group]
        substitute = self._substitute(site.read)
        kept = self._kept(read.layout.group)
        module: nn.Module = ExpandUnits(kept, substitute, read.layout)
        if not bool(mask.any()):
            module = ExpandUnits(kept[:0], substitute, read.layout)
            nothing = self.graph.call_function(drop_units, (self.values[source], read.layout.dim))
            return self._call(f"expand_{index}", module, nothing)
        return self._call(f"expand_{index}", module, self.values[source])

    def _layer(self, node: fx.Node, site: LayerSite, source: fx.Node) -> fx.Node:
        weight = site.module.weight.detach()
        scale, bias = site.fold()
        if scale is not None:
            weight = weight * scale.view(-1, *[1] * (weight.dim() - 1))
        rows = self._kept(site.group) if site.group else torch.arange(site.units)
        weight, bias = weight[rows], bias[rows]
        taps: Tensor | None = None
        if site.read is not None:
            layout = self.program.reads[site.read].layout
            mask = self.plan.active[layout.group]
            substitute = self._substitute(site.read)
            missing = torch.where(mask, 0.0, substitute.constants).to(weight.dtype)
            gone = torch.einsum("nup,u->np", weight.view(len(rows), len(mask), -1).double(), missing.double())
            by_unit = build.Inputs(mask, substitute).mixed(weight).view(len(rows), len(mask), -1)
            kept = self._kept(layout.group)
            weight = (by_unit[:, kept] * mask[kept].view(-1, 1)).reshape(len(rows), -1, *weight.shape[2:])
            if isinstance(site.module, nn.Linear) or conv_padding(site.module) == [0, 0]:
                bias = bias + gone.sum(1).to(bias.dtype)
            elif bool(missing.any()):
                taps = gone.to(weight.dtype).view(len(rows), 1, *weight.shape[2:])
        if isinstance(site.module, nn.Linear):
            linear = nn.Linear(weight.shape[1], len(rows), dtype=weight.dtype)
            return self._call(str(node.target), _filled(linear, weight, bias), source)
        if taps is not None:
            weight = torch.cat([weight, taps], dim=1)
            source = self.graph.call_function(with_ones_channel, (source,))
        old = site.module
        conv = nn.Conv2d(
            weight.shape[1],
            len(rows),
            weight.shape[2:],  # type: ignore[arg-type]
            old.stride,  # type: ignore[arg-type]
            conv_padding(old),  # type: ignore[arg-type]
            old.dilation,  # type: ignore[arg-type]
            dtype=weight.dtype,
        )
        return self._call(str(node.target), _filled(conv, weight, bias), source)


def drop_units(x: Tensor, dim: int) -> Tensor:
    """No unit at all along ``dim``, where PyTorch made us keep one."""
    return x.narrow(dim, 0, 0)


def _filled(module: nn.Linear | nn.Conv2d, weight: Tensor, bias: Tensor) -> nn.Module:
    with torch.no_grad():
        module.weight.copy_(weight)
        assert module.bias is not None
        module.bias.copy_(bias)
    return module


def _compact_norm(site: NormSite, kept: Tensor) -> nn.Module:
    old, entry = site.module, build.norm_entry(site, kept)
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
