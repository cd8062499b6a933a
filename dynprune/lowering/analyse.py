"""Call sites, groups of prunable units, and where pruned units are read."""

from __future__ import annotations

import dataclasses

from torch import fx, nn

from dynprune.lowering import convolution, layouts, shapes, tables
from dynprune.lowering.ir import (
    ExpandSite,
    Group,
    LayerSite,
    Layout,
    LSTMSite,
    NormSite,
    Note,
    Read,
    Site,
    UsageSite,
)
from dynprune.lowering.layers import Layer, find_layers, is_norm, only_user
from dynprune.lowering.recurrent import LSTMLayer

_NAMED = 3  # layers of the same group that a layer's line of explain() names


@dataclasses.dataclass
class Analysis:
    """The result of :func:`analyse`, on the traced graph."""

    traced: fx.GraphModule
    modules: dict[str, nn.Module]
    sites: list[Site] = dataclasses.field(default_factory=list)
    site_of: dict[fx.Node, int] = dataclasses.field(default_factory=dict)
    fused: dict[fx.Node, fx.Node] = dataclasses.field(default_factory=dict)
    groups: dict[str, Group] = dataclasses.field(default_factory=dict)
    reads: list[Read] = dataclasses.field(default_factory=list)
    layouts: dict[fx.Node, Layout] = dataclasses.field(default_factory=dict)
    expanded: dict[fx.Node, dict[fx.Node, int]] = dataclasses.field(default_factory=dict)
    notes: list[Note] = dataclasses.field(default_factory=list)


class _Analyser:
    def __init__(self, traced: fx.GraphModule) -> None:
        self.modules = tables.visible_modules(traced)
        self.result = Analysis(traced, self.modules)
        self.direct: set[fx.Node] = set()  # values whose units are as the usage saw them
        self.usage_of: dict[fx.Node, str] = {}  # an activation that could not be fused -> its group

    def run(self) -> Analysis:
        nodes = list(self.result.traced.graph.nodes)
        for node in nodes:
            inputs = node.all_input_nodes
            node.meta["in_shape"] = inputs[0].meta.get("shape") if inputs else None
        found = find_layers(self.result.traced, self.modules)
        self.result.fused = found.fused
        self.flow = layouts.find_layouts(self.result.traced, self.modules, found)
        self.result.layouts = self.flow.of
        for node in nodes:
            if node in found.notes:
                self.result.notes.append(found.notes[node])
            if node in found.fused:
                continue
            layer = found.calls.get(node)
            if layer is None:
                self._other(node)
            elif isinstance(layer.module, LSTMLayer):
                self._lstm(node, layer, layer.module)
            else:
                self._layer(node, layer, layer.module)
        self._name_reads()
        return self.result

    def _note(self, name: str, what: str) -> None:
        self.result.notes.append(Note(name, what))

    # Layers -------------------------------------------------------------------------------------

    def _layer(self, node: fx.Node, layer: Layer, module: nn.Linear | nn.Conv1d | nn.Conv2d) -> None:
        plain = module if isinstance(module, nn.Linear) else convolution.as_image(module)
        sequence = isinstance(module, nn.Conv1d)
        site = LayerSite(layer.name, plain, layer.activation, layer.norm, sequence=sequence)
        index = self._add_site(node, site)
        source = tables.source_of(node)
        if layouts.follows(module, self.flow.of.get(source)):
            site.follows = self.flow.of[source]
            self._note(
                layer.name, f"kernel (depthwise); computes the units of {site.follows.name} that are active"
            )
            return
        site.read = self._read_input(node, module, index)
        if layer.never is not None:
            self._note(layer.name, f"kernel; never pruned: {layer.never}")
            return
        site.group = self.flow.of[layer.end].name
        together = self._join_group(site.group, layer.name, site.units)
        if len(self.flow.groups[site.group]) == 1:
            group = self.result.groups[site.group]
            group.usage_site = index
            behind = None if layer.activation.kind != "none" else self._activation_behind(layer.end)
            if behind is None:
                self.direct.add(layer.end)
            else:
                self.usage_of[behind] = site.group
        parts = [type(module).__name__]
        parts += ["batch norm"] if layer.norm is not None else []
        parts += [layer.activation.kind] if layer.activation.kind != "none" else []
        self._note(layer.name, f"kernel ({' + '.join(parts)}); {site.units} units may be pruned{together}")

    def _join_group(self, name: str, layer: str, units: int) -> str:
        """Make the group unless it is there, and say which layers flip with this one."""
        members = self.flow.groups[name]
        self.result.groups.setdefault(name, Group(name, units, members))
        others = [member for member in members if member != layer]
        shown = ", ".join(others[:_NAMED])
        more = f" and {len(others) - _NAMED} more" if len(others) > _NAMED else ""
        return f", together with those of {shown}{more}" if others else ""

    def _lstm(self, node: fx.Node, layer: Layer, module: LSTMLayer) -> None:
        site = LSTMSite(layer.name, module)
        index = self._add_site(node, site)
        site.read = self._read_input(node, module, index)
        for state, kind in zip(node.args[2:], ("hidden", "cell"), strict=False):
            # At the first step pruned units of this layer have the values that they are given.
            if isinstance(state, fx.Node) and state in self.flow.of:
                if state not in self.result.expanded.get(node, {}):
                    self._expand(node, state, f"{layer.name}.{kind}")
        if layer.never is not None:
            self._note(layer.name, f"kernel; never pruned: {layer.never}")
            return
        site.groups = layouts.lstm_groups(layer)
        reads = []
        for name in site.groups:
            self.result.groups[name] = Group(name, module.hidden_size, [name], index)
            reads.append(self._add_read(Layout((name,), 1), index, direct=True, reader="recurrent"))
        site.recurrent = tuple(reads)
        self.direct |= {part for part in node.users if part.args[1] == 0}
        kind = "LSTM, both directions" if len(module.suffixes) == 2 else "LSTM"
        units = " + ".join([str(module.hidden_size)] * len(site.groups))
        self._note(layer.name, f"kernel ({kind}); {units} units may be pruned")

    def _read_input(self, node: fx.Node, module: nn.Module, index: int) -> int | None:
        """The read point of a layer's input where it is compact, after an expansion where it does not fit."""
        source = tables.source_of(node)
        layout = self.flow.of.get(source)
        if layout is None:
            return None
        if not layouts.fits(module, source, layout):
            self._expand(node, source)
            return None
        return self._add_read(layout, index, direct=source in self.direct)

    def _activation_behind(self, end: fx.Node) -> fx.Node | None:
        """The first activation behind a layer without a fused one, past ops that keep units apart."""
        user = only_user(end)
        while user is not None and user in self.flow.of:
            if tables.is_activation(user, self.modules):
                return user
            if not (is_norm(user, self.modules) or tables.is_pool(user, self.modules)):
                return None
            user = only_user(user)
        return None

    # Everything else ----------------------------------------------------------------------------

    def _other(self, node: fx.Node) -> None:
        sources = [n for n in node.all_input_nodes if n in self.flow.of]
        if not sources or tables.takes_no_values(node):
            return
        layout = self.flow.of.get(node)
        for source in sources if layout is None else [s for s in sources if self.flow.widened.get(node) is s]:
            self._expand(node, source)
        if layout is None:
            return
        if is_norm(node, self.modules):
            norm = self.modules[str(node.target)]
            assert isinstance(norm, (nn.BatchNorm1d, nn.BatchNorm2d))
            self._add_site(node, NormSite(str(node.target), norm, layout))
        elif node in self.usage_of:
            group = self.result.groups[self.usage_of[node]]
            group.usage_site = self._add_site(node, UsageSite(node.name, layout))
            self.direct.add(node)
        elif shapes.concatenated(node) is not None and self.direct.issuperset(sources):
            self.direct.add(node)

    def _expand(self, node: fx.Node, source: fx.Node, reader: str | None = None) -> None:
        """Full width for an op; ``reader`` names the read point after something else than the op."""
        layout, reader = self.flow.of[source], reader or node.name
        name = f"{layout.name}:{reader}"
        index = len(self.result.sites)
        read = self._add_read(layout, index, direct=source in self.direct, reader=reader)
        self.result.sites.append(ExpandSite(name, read))
        self.result.expanded.setdefault(node, {})[source] = index
        what = "the output" if node.op == "output" else f"{node.op} {_target(node)}"
        what = what if reader == node.name else "an initial state"
        why = f", because {self.flow.why[node]}" if node in self.flow.why else ""
        self._note(reader, f"reads {layout.name} at full width: {what}{why}")

    def _add_site(self, node: fx.Node, site: Site) -> int:
        self.result.sites.append(site)
        self.result.site_of[node] = len(self.result.sites) - 1
        return len(self.result.sites) - 1

    def _add_read(self, layout: Layout, consumer: int, *, direct: bool, reader: str = "") -> int:
        index = len(self.result.reads)
        name = reader or self.result.sites[consumer].name
        self.result.reads.append(Read(name, layout, consumer, direct))
        for group in dict.fromkeys(layout.groups):
            self.result.groups[group].reads.append(index)
        return index

    def _name_reads(self) -> None:
        """Name every read point after what it reads, and its reader where the groups have others."""
        for index, read in enumerate(self.result.reads):
            site = self.result.sites[read.consumer]
            own_steps = isinstance(site, LSTMSite) and index in site.recurrent
            alone = all(len(self.result.groups[name].reads) == 1 for name in read.layout.groups)
            if not alone or own_steps:
                read.name = f"{read.layout.name}:{read.name}"
            else:
                read.name = read.layout.name


def _target(node: fx.Node) -> str:
    return str(getattr(node.target, "__name__", node.target))


def analyse(traced: fx.GraphModule) -> Analysis:
    """Find sites, groups, reads and layouts in a traced graph with shapes."""
    return _Analyser(traced).run()
