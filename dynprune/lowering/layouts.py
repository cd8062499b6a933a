"""Which values are compact, and which layers have to flip their units together.

Every layer starts with a group of its own. A sum or a product of two compact tensors joins their groups,
where the units correspond one to one; where they do not, or where joining would gain nothing, the op gets
full-width tensors.
"""

from __future__ import annotations

import dataclasses
import math
import operator

from torch import fx, nn

from dynprune.lowering import convolution, shapes, tables
from dynprune.lowering.ir import Layout
from dynprune.lowering.layers import Layer, Layers, is_norm
from dynprune.lowering.recurrent import LSTMLayer


@dataclasses.dataclass
class Layouts:
    """The result of :func:`find_layouts`.

    Attributes:
        of: layout of every compact value.
        groups: name of a group, that of its first layer -> names of its layers (of a direction, for an
            LSTM), in execution order.
        widened: op with a compact value -> an operand that it gets at full width all the same.
        why: op -> why it gets full-width tensors, where there is more to say than that it is unknown.
    """

    of: dict[fx.Node, Layout]
    groups: dict[str, list[str]]
    widened: dict[fx.Node, fx.Node]
    why: dict[fx.Node, str]


def find_layouts(traced: fx.GraphModule, modules: dict[str, nn.Module], layers: Layers) -> Layouts:
    """Find compact values and groups in a trace with shapes."""
    apart: set[fx.Node] = set()
    while True:
        flow = _Flow(modules, layers, apart)
        for node in traced.graph.nodes:
            flow.visit(node)
        idle = flow.idle_sums()
        if not idle:
            return flow.result()
        apart |= idle  # their operands are expanded from now on


def fits(module: nn.Module, source: fx.Node, layout: Layout) -> bool:
    """Whether a layer reads the units along the dimension it contracts."""
    if isinstance(module, (nn.Conv1d, nn.Conv2d)):
        return module.groups == 1 and layout.dim == 1 and layout.spatial == 1
    return layout.dim == len(source.meta["shape"]) - 1


def follows(module: nn.Module, layout: Layout | None) -> bool:
    """Whether a convolution keeps compact channels apart, as a pooling does."""
    return convolution.is_depthwise(module) and layout is not None and layout.dim == 1 and layout.spatial == 1


class _Flow:
    def __init__(self, modules: dict[str, nn.Module], layers: Layers, apart: set[fx.Node]) -> None:
        self.modules = modules
        self.layers = layers
        self.apart = apart
        self.layouts: dict[fx.Node, Layout] = {}
        self.units: dict[str, int] = {}  # of every group that a layer starts with
        self.single: set[str] = set()  # groups that take no other in
        self.parent: dict[str, str] = {}
        self.sums: list[tuple[fx.Node, str]] = []  # an op that joined groups, and one of them
        self.widened: dict[fx.Node, fx.Node] = {}
        self.why: dict[fx.Node, str] = {}

    def find(self, name: str) -> str:
        """The group that a layer's group is part of by now."""
        while self.parent[name] != name:
            name = self.parent[name]
        return name

    def result(self) -> Layouts:
        groups: dict[str, list[str]] = {}
        for name in self.units:
            groups.setdefault(self.find(name), []).append(name)
        of = {
            node: dataclasses.replace(layout, groups=tuple(self.find(g) for g in layout.groups))
            for node, layout in self.layouts.items()
        }
        return Layouts(of, groups, self.widened, self.why)

    def idle_sums(self) -> set[fx.Node]:
        """Ops that joined groups which no layer reads: joining them would gain nothing but constraints."""
        read = set()
        for node, layer in self.layers.calls.items():
            source = tables.source_of(node)
            layout = self.layouts.get(source)
            if layout is not None and fits(layer.module, source, layout):
                read |= {self.find(name) for name in layout.groups}
        return {node for node, name in self.sums if self.find(name) not in read}

    def visit(self, node: fx.Node) -> None:
        """Find the layout of a node's value from those of its inputs."""
        if node in self.layers.fused:
            return
        layer = self.layers.calls.get(node)
        if layer is not None and isinstance(layer.module, LSTMLayer):
            self._lstm(node, layer)
        elif layer is not None:
            self._layer(node, layer)
        elif not tables.takes_no_values(node):
            layout = self._behind(node)
            if layout is not None:
                self.layouts[node] = layout

    def _start(self, name: str, units: int) -> None:
        self.units[name] = units
        self.parent[name] = name

    def _layer(self, node: fx.Node, layer: Layer) -> None:
        source = self.layouts.get(tables.source_of(node))
        if follows(layer.module, source):
            assert source is not None
            self.layouts[layer.end] = source
        elif layer.never is None:
            assert not isinstance(layer.module, LSTMLayer)
            self._start(layer.name, int(layer.module.weight.shape[0]))
            dim = len(node.meta["shape"]) - 1 if isinstance(layer.module, nn.Linear) else 1
            self.layouts[layer.end] = Layout((layer.name,), dim)

    def _lstm(self, node: fx.Node, layer: Layer) -> None:
        assert isinstance(layer.module, LSTMLayer)
        if layer.never is not None:
            return
        groups = lstm_groups(layer)
        for name in groups:
            self._start(name, layer.module.hidden_size)
            self.single.add(name)
        for part in node.users:
            which = part.args[1]
            assert part.target is operator.getitem and isinstance(which, int)
            chosen = groups if which == 0 else (groups[(which - 1) % len(groups)],)
            self.layouts[part] = Layout(chosen, 2 if which == 0 else 1)

    def _behind(self, node: fx.Node) -> Layout | None:
        if node in self.layouts:  # an LSTM's part
            return self.layouts[node]
        sources = [n for n in node.all_input_nodes if n in self.layouts]
        if not sources:
            return None
        if shapes.concatenated(node) is not None:
            return self._concatenate(node)
        operands = shapes.operands(node)
        if operands is not None:
            return self._combine(node, *operands)
        return self._keep(node, sources[0]) if len(sources) == 1 else None

    def _keep(self, node: fx.Node, source: fx.Node) -> Layout | None:
        """The layout behind an op that keeps units apart; None if it may mix them."""
        layout, shape = self.layouts[source], source.meta.get("shape") or ()
        image = layout.dim == 1 and layout.spatial == 1 and len(shape) in (3, 4)
        if tables.is_elementwise(node, self.modules):
            return layout
        if image and (tables.is_pool(node, self.modules) or tables.is_resize(node, self.modules)):
            return layout
        if layout.spatial == 1 and shape:
            dim = shapes.dim_behind(node, layout.dim, shape)
            if dim is not None:
                return Layout(layout.groups, dim)
        if node.target is operator.getitem and shapes.is_pair(tables.source_of(node)):
            return layout
        flat = layout.dim == 1 and len(shape) == 2
        if is_norm(node, self.modules):
            norm = self.modules[str(node.target)]
            stands = image or (flat and layout.spatial == 1)
            return layout if stands and getattr(norm, "running_mean", None) is not None else None
        if flat and layout.spatial == 1 and tables.is_unflatten(node):
            return layout
        if (image or flat) and tables.is_flatten(node, self.modules):
            pixels = math.prod(shape[2:]) if image else layout.spatial
            return Layout(layout.groups, 1, pixels)
        return None

    def _concatenate(self, node: fx.Node) -> Layout | None:
        """The layout of groups one behind the other; None where something else is between them."""
        found = shapes.concatenated(node)
        assert found is not None
        values, dim = found
        layouts = [self.layouts.get(value) for value in values]
        groups: list[str] = []
        for layout in layouts:
            if layout is None or layout.dim != dim or layout.spatial != 1:
                self.why[node] = "not all of its parts are compact in the same dimension"
                return None
            groups += layout.groups
        return Layout(tuple(groups), dim)

    def _combine(self, node: fx.Node, left: fx.Node, right: fx.Node) -> Layout | None:
        """The layout of an elementwise function of two values; joins their groups."""
        a, b = self.layouts.get(left), self.layouts.get(right)
        if a is not None and b is not None:
            layout = shapes.aligned(a, left, b, right, node)
            if layout is not None and self._sizes(a) == self._sizes(b):
                return layout if self._join(node, a, b) else None
        for compact, other in ((left, right), (right, left)):
            layout = self.layouts.get(compact)
            spread = None if layout is None else shapes.spread(layout, compact, other, node)
            if spread is not None:
                if other in self.layouts:
                    self.widened[node] = other
                    self.why[node] = "its one unit meets all those of the other operand"
                return spread
        whole = "its other operand is full width"
        self.why[node] = whole if None in (a, b) else "the units of its operands do not correspond"
        return None

    def _sizes(self, layout: Layout) -> list[int]:
        return [self.units[name] for name in layout.groups]

    def _join(self, node: fx.Node, a: Layout, b: Layout) -> bool:
        """Let the groups of two layouts flip together, one by one; False where they are to stay apart."""
        pairs = [(self.find(g), self.find(h)) for g, h in zip(a.groups, b.groups, strict=True)]
        pairs = [(g, h) for g, h in pairs if g != h]
        if any({*pair} & self.single for pair in pairs):
            self.why[node] = "the units of an LSTM flip on their own"
            return False
        if pairs and node in self.apart:
            self.why[node] = "no layer reads the result"
            return False
        order = {name: position for position, name in enumerate(self.units)}
        for g, h in pairs:
            first, second = sorted((self.find(g), self.find(h)), key=order.__getitem__)
            self.parent[second] = first
            self.sums.append((node, first))
        return True


def lstm_groups(layer: Layer) -> tuple[str, ...]:
    """The groups of an LSTM layer, one for each direction."""
    assert isinstance(layer.module, LSTMLayer)
    return tuple(f"{layer.name}{'_reverse' * way}" for way in range(len(layer.module.suffixes)))
