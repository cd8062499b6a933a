"""Finding layers, what each can fuse, groups of prunable units, and the layout of every value."""

from __future__ import annotations

import dataclasses
import math
import operator

import torch
from torch import fx, nn

from dynprune.lowering import convolution, recurrent, shapes, tables
from dynprune.lowering.ir import (
    ActivationSite,
    ExpandSite,
    Group,
    LayerSite,
    Layout,
    LSTMSite,
    NormSite,
    Note,
    Read,
    Site,
)
from dynprune.lowering.recurrent import LSTMLayer
from dynprune.lowering.tables import Activation

_NEVER_PRUNED = "kernel; never pruned: its units reach an output of the model"


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


def _is_ours(module: nn.Module) -> bool:
    """A layer of dynprune.nn, told apart by its module: the lowering is below that package."""
    return type(module).__module__.startswith("dynprune.nn.")


def _why_not(node: fx.Node, module: nn.Module) -> str | None:
    """Why a layer cannot run on our kernels; None if it can."""
    if len(node.args) != 1 or not isinstance(node.args[0], fx.Node):
        return "an input that is not the first argument"
    shape = node.args[0].meta.get("shape")
    if _is_ours(module) and not torch.as_tensor(module.active).all():
        return "an active set of its own"
    if isinstance(module, (nn.Conv1d, nn.Conv2d)):
        if module.padding_mode != "zeros":
            return f"padding mode {module.padding_mode!r}"
        if convolution.conv_padding(convolution.as_image(module)) is None:
            return f"padding {module.padding!r} that differs between the two ends"
        batched = shape is not None and len(shape) == module.weight.dim()
    else:
        batched = shape is not None and len(shape) >= 2
    return None if batched else "an input without a batch dimension"


class _Analyser:
    def __init__(self, traced: fx.GraphModule) -> None:
        self.modules = tables.visible_modules(traced)
        self.result = Analysis(traced, self.modules)
        self.layers: dict[fx.Node, nn.Linear | nn.Conv1d | nn.Conv2d] = {}
        self.direct: set[fx.Node] = set()  # values whose units are as the usage saw them

    def run(self) -> Analysis:
        nodes = list(self.result.traced.graph.nodes)
        for node in nodes:
            inputs = node.all_input_nodes
            node.meta["in_shape"] = inputs[0].meta.get("shape") if inputs else None
            if node.op == "call_module":
                self._find_layer(node)
        for node in nodes:
            if node in self.result.fused:
                continue
            if node in self.layers:
                self._layer(node)
            elif node.op == "call_module" and isinstance(self.modules[str(node.target)], LSTMLayer):
                self._lstm(node)
            else:
                self._other(node)
        self._name_reads()
        return self.result

    def _find_layer(self, node: fx.Node) -> None:
        module = self.modules[str(node.target)]
        if isinstance(module, nn.LSTM):  # those that can be lowered are split into layers by now
            self._note(node, f"dense: {recurrent.why_not(node, module)}")
            return
        if type(module) not in (nn.Linear, nn.Conv1d, nn.Conv2d) and not _is_ours(module):
            if isinstance(module, (nn.GRU, nn.RNN)):
                self._note(node, f"dense: {type(module).__name__} has no kernel")
            elif type(module) is nn.Module:
                self._note(node, "dense: it has forward hooks")
            return
        assert isinstance(module, (nn.Linear, nn.Conv1d, nn.Conv2d))
        reason = _why_not(node, module)
        if reason is None:
            self.layers[node] = module
        else:
            self._note(node, f"dense: {reason}")

    def _note(self, node: fx.Node, what: str) -> None:
        name = str(node.target) if node.op == "call_module" else node.name
        self.result.notes.append(Note(name, what))

    # Layers -------------------------------------------------------------------------------------

    def _layer(self, node: fx.Node) -> None:
        module = self.layers[node]
        end, norm, activation = self._fuse(node, module)
        name = self._call_name(str(node.target))
        plain = module if isinstance(module, nn.Linear) else convolution.as_image(module)
        site = LayerSite(name, plain, activation, norm, sequence=isinstance(module, nn.Conv1d))
        shape = node.meta["shape"]
        index = self._add_site(node, site)
        if convolution.is_depthwise(module) and self._follow(node, end, site):
            return
        site.read = self._read_input(node, module, index)
        if isinstance(plain, nn.Conv2d) and plain.groups > 1 and not convolution.is_depthwise(plain):
            self._note(node, f"kernel; never pruned: its units come in {plain.groups} groups")
            return
        if self._reaches_output(end):
            self._note(node, _NEVER_PRUNED)
            return
        dim = len(shape) - 1 if isinstance(module, nn.Linear) else 1
        site.group = name
        self.result.groups[name] = Group(name, site.units, index, index)
        self.result.layouts[end] = Layout((name,), dim)
        if activation.kind != "none" or not self._find_usage_site(end, name):
            self.direct.add(end)
        parts = [type(module).__name__]
        parts += ["batch norm"] if norm is not None else []
        parts += [activation.kind] if activation.kind != "none" else []
        self._note(node, f"kernel ({' + '.join(parts)}); {site.units} units may be pruned")

    def _follow(self, node: fx.Node, end: fx.Node, site: LayerSite) -> bool:
        """A depthwise convolution of compact channels keeps them apart, as a pooling does."""
        layout = self.result.layouts.get(tables.source_of(node))
        if layout is None or layout.dim != 1 or layout.spatial > 1:
            return False
        site.follows = self.result.layouts[end] = layout
        self._note(node, f"kernel (depthwise); computes the units of {layout.name} that are active")
        return True

    def _lstm(self, node: fx.Node) -> None:
        layer = self.modules[str(node.target)]
        assert isinstance(layer, LSTMLayer)
        name = self._call_name(node.meta["name"])
        site = LSTMSite(name, layer)
        index = self._add_site(node, site)
        site.read = self._read_input(node, layer, index)
        kind = "LSTM, both directions" if len(layer.suffixes) == 2 else "LSTM"
        if any(self._reaches_output(part) for part in node.users):
            self.result.notes.append(Note(name, _NEVER_PRUNED))
            return
        site.groups = tuple(f"{name}{'_reverse' * way}" for way in range(len(layer.suffixes)))
        reads = []
        for group in site.groups:
            self.result.groups[group] = Group(group, layer.hidden_size, index, index)
            reads.append(self._add_read(Layout((group,), 1), index, direct=True, reader="recurrent"))
        site.recurrent = tuple(reads)
        for part in node.users:
            which = part.args[1]
            assert part.target is operator.getitem and isinstance(which, int)
            if which == 0:
                self.result.layouts[part] = Layout(site.groups, 2)
                self.direct.add(part)
            else:
                self.result.layouts[part] = Layout((site.groups[(which - 1) % len(site.groups)],), 1)
        units = " + ".join([str(layer.hidden_size)] * len(site.groups))
        self.result.notes.append(Note(name, f"kernel ({kind}); {units} units may be pruned"))

    def _read_input(self, node: fx.Node, module: nn.Module, index: int) -> int | None:
        """The read point of a layer's input where it is compact, after an expansion where it does not fit."""
        source = tables.source_of(node)
        layout = self.result.layouts.get(source)
        if layout is None:
            return None
        if not self._fits(module, source, layout):
            self._expand(node, source)
            return None
        return self._add_read(layout, index, direct=source in self.direct)

    def _call_name(self, target: str) -> str:
        names = {site.name for site in self.result.sites}
        name, call = target, 1
        while name in names:
            call += 1
            name = f"{target}@{call}"
        return name

    def _fuse(
        self, node: fx.Node, module: nn.Linear | nn.Conv1d | nn.Conv2d
    ) -> tuple[fx.Node, nn.BatchNorm1d | nn.BatchNorm2d | None, Activation]:
        """What follows a layer and can run in its epilogue; the last node of that chain."""
        end, norm = node, None
        user = _only_user(end)
        if user is not None and user.op == "call_module":
            candidate = self.modules[str(user.target)]
            if isinstance(candidate, (nn.BatchNorm1d, nn.BatchNorm2d)):
                fits = not isinstance(module, nn.Linear) or len(node.meta["shape"]) == 2
                if fits and candidate.running_mean is not None:
                    norm, end = candidate, user
                    self.result.fused[user] = node
        user = _only_user(end)
        if user is None:
            return end, norm, Activation()
        activation = tables.find_activation(user, self.modules)
        if activation is not None:
            self.result.fused[user] = node
            return user, norm, activation
        return end, norm, Activation()

    def _fits(self, module: nn.Module, source: fx.Node, layout: Layout) -> bool:
        """Whether a layer reads the units along the dimension it contracts."""
        shape = source.meta["shape"]
        if isinstance(module, (nn.Conv1d, nn.Conv2d)):
            return module.groups == 1 and layout.dim == 1 and layout.spatial == 1
        return layout.dim == len(shape) - 1

    def _reaches_output(self, node: fx.Node) -> bool:
        """Whether an output of the model sees these units without another layer in between."""
        seen, stack = {node}, [node]
        while stack:
            for user in stack.pop().users:
                if user.op == "output":
                    return True
                if user in seen or self._mixes(user) or tables.is_batch_size(user):
                    continue
                seen.add(user)
                stack.append(user)
        return False

    def _mixes(self, node: fx.Node) -> bool:
        if node.op != "call_module":
            return False
        module = self.modules[str(node.target)]
        if convolution.is_depthwise(module):
            return False
        return isinstance(module, LSTMLayer) or any(p.dim() >= 2 for p in module.parameters())

    def _find_usage_site(self, end: fx.Node, group: str) -> bool:
        """The first activation behind a layer without a fused one, past ops that keep units apart.

        False if there is none.
        """
        user = _only_user(end)
        while user is not None:
            if tables.find_activation(user, self.modules) is not None:
                user.meta["usage_of"] = group
                return True
            norm = user.op == "call_module" and isinstance(
                self.modules[str(user.target)], (nn.BatchNorm1d, nn.BatchNorm2d)
            )
            if not (norm or tables.is_pool(user, self.modules)):
                return False
            user = _only_user(user)
        return False

    # Everything else ----------------------------------------------------------------------------

    def _other(self, node: fx.Node) -> None:
        sources = [n for n in node.all_input_nodes if n in self.result.layouts]
        if not sources or tables.is_batch_size(node):
            return
        if shapes.concatenated(node) is not None:
            kept = self._concatenate(node)
        else:
            kept = self._keep(node, self.result.layouts[sources[0]]) if len(sources) == 1 else None
        if kept is not None:
            self.result.layouts[node] = kept
            return
        for source in sources:
            self._expand(node, source)

    def _keep(self, node: fx.Node, layout: Layout) -> Layout | None:
        """The layout behind an op that keeps units apart; None if it may mix them."""
        module = self.modules[str(node.target)] if node.op == "call_module" else None
        shape: tuple[int, ...] = node.meta.get("in_shape") or ()
        image = layout.dim == 1 and layout.spatial == 1 and len(shape) in (3, 4)
        if "usage_of" in node.meta:
            activation = tables.find_activation(node, self.modules)
            assert activation is not None
            group = self.result.groups[node.meta["usage_of"]]
            group.usage_site = self._add_site(node, ActivationSite(node.name, activation, layout))
            self.direct.add(node)
            return layout
        if tables.is_elementwise(node, self.modules):
            return layout
        if image and tables.is_pool(node, self.modules):
            return layout
        if layout.spatial == 1 and shape:
            dim = shapes.dim_behind(node, layout.dim, shape)
            if dim is not None:
                return Layout(layout.groups, dim)
        if node.target is operator.getitem and shapes.is_pair(tables.source_of(node)):
            return layout
        flat = layout.dim == 1 and len(shape) == 2
        if isinstance(module, (nn.BatchNorm1d, nn.BatchNorm2d)):
            if (image or (flat and layout.spatial == 1)) and module.running_mean is not None:
                self._add_site(node, NormSite(str(node.target), module, layout))
                return layout
            return None
        if (image or flat) and tables.is_flatten(node, self.modules):
            pixels = math.prod(shape[2:]) if image else layout.spatial
            return Layout(layout.groups, 1, pixels)
        return None

    def _concatenate(self, node: fx.Node) -> Layout | None:
        """The layout of groups one behind the other; None where something else is between them."""
        found = shapes.concatenated(node)
        assert found is not None
        parts, dim = found
        layouts = [self.result.layouts.get(part) for part in parts]
        groups: list[str] = []
        for layout in layouts:
            if layout is None or layout.dim != dim or layout.spatial > 1:
                return None
            groups += layout.groups
        if len(set(groups)) != len(groups):
            return None
        if all(part in self.direct for part in parts):
            self.direct.add(node)
        return Layout(tuple(groups), dim)

    def _expand(self, node: fx.Node, source: fx.Node) -> None:
        layout = self.result.layouts[source]
        name = f"{layout.name}:{node.name}"
        index = len(self.result.sites)
        read = self._add_read(layout, index, direct=source in self.direct, reader=node.name)
        self.result.sites.append(ExpandSite(name, read))
        self.result.expanded.setdefault(node, {})[source] = index
        reader = "the output" if node.op == "output" else f"{node.op} {node.target}"
        self.result.notes.append(Note(node.name, f"reads {layout.name} at full width: {reader}"))

    def _add_site(self, node: fx.Node, site: Site) -> int:
        self.result.sites.append(site)
        self.result.site_of[node] = len(self.result.sites) - 1
        return len(self.result.sites) - 1

    def _add_read(self, layout: Layout, consumer: int, *, direct: bool, reader: str = "") -> int:
        index = len(self.result.reads)
        name = reader or self.result.sites[consumer].name
        self.result.reads.append(Read(name, layout, consumer, direct))
        for group in layout.groups:
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


def _only_user(node: fx.Node) -> fx.Node | None:
    users = list(node.users)
    return users[0] if len(users) == 1 and users[0].op != "output" else None


def analyse(traced: fx.GraphModule) -> Analysis:
    """Find sites, groups, reads and layouts in a traced graph with shapes."""
    return _Analyser(traced).run()
