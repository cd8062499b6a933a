"""The layers of a trace: which run on our kernels, what is fused into each, and which are never pruned."""

from __future__ import annotations

import dataclasses

import torch
from torch import fx, nn

from dynprune.lowering import convolution, recurrent, tables
from dynprune.lowering.ir import Note
from dynprune.lowering.recurrent import LSTMLayer
from dynprune.lowering.tables import Activation

Plain = nn.Linear | nn.Conv1d | nn.Conv2d
Norm = nn.BatchNorm1d | nn.BatchNorm2d


@dataclasses.dataclass
class Layer:
    """A call of a layer that a kernel runs.

    Attributes:
        name: qualified name of the module, with ``@2`` at its second call.
        module: that is called.
        end: the last node of what is fused into it, itself if nothing is.
        never: why its units are never pruned; None if they may be.
    """

    name: str
    module: Plain | LSTMLayer
    end: fx.Node
    norm: Norm | None = None
    activation: Activation = dataclasses.field(default_factory=Activation)
    never: str | None = None


@dataclasses.dataclass
class Layers:
    """The result of :func:`find_layers`: calls in execution order, fused node -> layer, notes on the rest."""

    calls: dict[fx.Node, Layer] = dataclasses.field(default_factory=dict)
    fused: dict[fx.Node, fx.Node] = dataclasses.field(default_factory=dict)
    notes: dict[fx.Node, Note] = dataclasses.field(default_factory=dict)


def find_layers(traced: fx.GraphModule, modules: dict[str, nn.Module]) -> Layers:
    """Find the layers of a trace with shapes."""
    result = Layers()
    names: set[str] = set()
    for node in traced.graph.nodes:
        if node.op != "call_module":
            continue
        module = modules[str(node.target)]
        reason = _why_dense(node, module)
        if reason is not None:
            result.notes[node] = Note(str(node.target), f"dense: {reason}")
        if reason is not None or not (isinstance(module, LSTMLayer) or _is_layer(module)):
            continue
        assert isinstance(module, (nn.Linear, nn.Conv1d, nn.Conv2d, LSTMLayer))
        name = _call_name(str(node.meta.get("name", node.target)), names)
        layer = result.calls[node] = Layer(name, module, node)
        if not isinstance(module, LSTMLayer):
            _fuse(node, layer, modules, result.fused)
        layer.never = _why_never(node, layer, modules)
    return result


def is_norm(node: fx.Node, modules: dict[str, nn.Module]) -> bool:
    """Whether a node is a call of a batch norm."""
    return node.op == "call_module" and isinstance(
        modules[str(node.target)], (nn.BatchNorm1d, nn.BatchNorm2d)
    )


def only_user(node: fx.Node) -> fx.Node | None:
    """What alone reads a value; None if several do, or an output of the model."""
    users = list(node.users)
    return users[0] if len(users) == 1 and users[0].op != "output" else None


def _is_ours(module: nn.Module) -> bool:
    """A layer of dynprune.nn, told apart by its module: the lowering is below that package."""
    return type(module).__module__.startswith("dynprune.nn.")


def _is_layer(module: nn.Module) -> bool:
    return type(module) in (nn.Linear, nn.Conv1d, nn.Conv2d) or _is_ours(module)


def _why_dense(node: fx.Node, module: nn.Module) -> str | None:
    """Why a module with weights does not run on our kernels; None if it does, or has none."""
    if isinstance(module, LSTMLayer):
        return None
    if isinstance(module, nn.LSTM):  # those that can be lowered are split into layers by now
        return recurrent.why_not(node, module)
    if _is_layer(module):
        return _why_not(node, module)
    if type(module) is nn.Module:
        return "it has forward hooks"
    if any(p.dim() >= 2 for p in module.parameters()):
        return f"{type(module).__name__} has no kernel"
    return None


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


def _call_name(target: str, names: set[str]) -> str:
    name, call = target, 1
    while name in names:
        call += 1
        name = f"{target}@{call}"
    names.add(name)
    return name


def _fuse(node: fx.Node, layer: Layer, modules: dict[str, nn.Module], fused: dict[fx.Node, fx.Node]) -> None:
    """Take up what follows a layer and can run in its epilogue."""
    user = only_user(node)
    if user is not None and is_norm(user, modules):
        norm = modules[str(user.target)]
        assert isinstance(norm, (nn.BatchNorm1d, nn.BatchNorm2d))
        fits = not isinstance(layer.module, nn.Linear) or len(node.meta["shape"]) == 2
        if fits and norm.running_mean is not None:
            layer.norm, layer.end = norm, user
            fused[user] = node
    user = only_user(layer.end)
    activation = None if user is None else tables.find_activation(user, modules)
    if user is not None and activation is not None:
        layer.activation, layer.end = activation, user
        fused[user] = node


def _why_never(node: fx.Node, layer: Layer, modules: dict[str, nn.Module]) -> str | None:
    module = layer.module
    ends = list(node.users) if isinstance(module, LSTMLayer) else [layer.end]
    if isinstance(module, (nn.Conv1d, nn.Conv2d)) and module.groups > 1:
        if not convolution.is_depthwise(module):
            return f"its units come in {module.groups} groups"
    if any(_reaches_output(end, modules) for end in ends):
        return "its units reach an output of the model"
    return None


def _reaches_output(node: fx.Node, modules: dict[str, nn.Module]) -> bool:
    """Whether an output of the model sees these units without another layer in between."""
    seen, stack = {node}, [node]
    while stack:
        for user in stack.pop().users:
            if user.op == "output":
                return True
            if user in seen or _mixes(user, modules) or tables.takes_no_values(user):
                continue
            seen.add(user)
            stack.append(user)
    return False


def _mixes(node: fx.Node, modules: dict[str, nn.Module]) -> bool:
    if node.op != "call_module":
        return False
    module = modules[str(node.target)]
    if convolution.is_depthwise(module):
        return False
    return isinstance(module, LSTMLayer) or any(p.dim() >= 2 for p in module.parameters())
