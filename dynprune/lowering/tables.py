"""What the lowering knows about ops: activations it fuses, and ops that keep channels apart."""

from __future__ import annotations

import operator
from collections.abc import Callable
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from torch import fx, nn


class Activation(NamedTuple):
    """An activation the kernels fuse; ``slope`` is that of ``leaky_relu``."""

    kind: str = "none"
    slope: float = 0.0

    @property
    def monotone(self) -> bool:
        """Whether it never decreases, so that it may change places with a max pool."""
        return self.kind in ("relu", "tanh", "sigmoid") or (self.kind == "leaky_relu" and self.slope >= 0)


_ACTIVATION_MODULES: dict[type[nn.Module], Callable[[Any], Activation]] = {
    nn.ReLU: lambda m: Activation("relu"),
    nn.LeakyReLU: lambda m: Activation("leaky_relu", float(m.negative_slope)),
    nn.GELU: lambda m: Activation("gelu" if m.approximate == "none" else "gelu_tanh"),
    nn.SiLU: lambda m: Activation("silu"),
    nn.Tanh: lambda m: Activation("tanh"),
    nn.Sigmoid: lambda m: Activation("sigmoid"),
}
_ACTIVATION_FUNCTIONS: dict[Any, str] = {
    F.relu: "relu",
    F.relu_: "relu",
    torch.relu: "relu",
    torch.relu_: "relu",
    F.leaky_relu: "leaky_relu",
    F.gelu: "gelu",
    F.silu: "silu",
    F.tanh: "tanh",
    torch.tanh: "tanh",
    F.sigmoid: "sigmoid",
    torch.sigmoid: "sigmoid",
}
_ACTIVATION_METHODS = {"relu", "relu_", "tanh", "sigmoid"}

# Elementwise and without parameters: each channel's output depends on that channel alone.
_UNFUSED_ACTIVATION_MODULES = (
    nn.ReLU6, nn.ELU, nn.SELU, nn.CELU, nn.Hardtanh, nn.Hardsigmoid, nn.Hardswish, nn.Mish,
    nn.Softplus, nn.Softsign, nn.LogSigmoid, nn.Tanhshrink, nn.Hardshrink, nn.Softshrink,
    nn.Threshold,
)  # fmt: skip
_UNFUSED_ACTIVATION_FUNCTIONS = {
    F.relu6, F.elu, F.selu, F.celu, F.hardtanh, F.hardsigmoid, F.hardswish, F.mish, F.softplus,
    F.softsign, F.logsigmoid, F.tanhshrink,
}  # fmt: skip
_ELEMENTWISE_FUNCTIONS = {
    torch.abs, torch.exp, torch.neg, torch.square, torch.sqrt, torch.clamp, operator.neg,
}  # fmt: skip
_ELEMENTWISE_METHODS = {"abs", "exp", "neg", "square", "sqrt", "clamp", "contiguous"}
_SCALAR_FUNCTIONS = {
    operator.add,
    operator.sub,
    operator.mul,
    operator.truediv,
    operator.pow,
    torch.add,
    torch.sub,
    torch.mul,
    torch.div,
    torch.pow,
}

_POOL_MODULES = (
    nn.MaxPool1d, nn.AvgPool1d, nn.AdaptiveAvgPool1d, nn.AdaptiveMaxPool1d,
    nn.MaxPool2d, nn.AvgPool2d, nn.AdaptiveAvgPool2d, nn.AdaptiveMaxPool2d,
)  # fmt: skip
_POOL_FUNCTIONS = {
    F.max_pool1d, torch.max_pool1d, F.avg_pool1d, F.adaptive_avg_pool1d, F.adaptive_max_pool1d,
    F.max_pool2d, torch.max_pool2d, F.avg_pool2d, F.adaptive_avg_pool2d, F.adaptive_max_pool2d,
}  # fmt: skip
_MAX_POOL_MODULES = (nn.MaxPool1d, nn.AdaptiveMaxPool1d, nn.MaxPool2d, nn.AdaptiveMaxPool2d)
_MAX_POOL_FUNCTIONS = {
    F.max_pool1d, torch.max_pool1d, F.adaptive_max_pool1d,
    F.max_pool2d, torch.max_pool2d, F.adaptive_max_pool2d,
}  # fmt: skip


def visible_modules(traced: fx.GraphModule) -> dict[str, nn.Module]:
    """Modules by name; one with forward hooks, which a kernel would skip, shows as a bare ``nn.Module``."""
    return {
        name: nn.Module() if module._forward_hooks or module._forward_pre_hooks else module
        for name, module in traced.named_modules()
    }


def find_activation(node: fx.Node, modules: dict[str, nn.Module]) -> Activation | None:
    """The fusable activation a node applies, if it is one."""
    if node.op == "call_module":
        make = _ACTIVATION_MODULES.get(type(modules[str(node.target)]))
        return None if make is None else make(modules[str(node.target)])
    if node.op == "call_method":
        name = str(node.target)
        plain = name in _ACTIVATION_METHODS and len(node.args) == 1 and not node.kwargs
        return Activation(name.rstrip("_")) if plain else None
    if node.op == "call_function" and node.target in _ACTIVATION_FUNCTIONS:
        kind = _ACTIVATION_FUNCTIONS[node.target]
        if kind == "leaky_relu":
            slope = node.args[1] if len(node.args) > 1 else node.kwargs.get("negative_slope", 0.01)
            return Activation(kind, float(slope)) if isinstance(slope, (int, float)) else None
        if kind == "gelu" and node.kwargs.get("approximate", "none") != "none":
            return Activation("gelu_tanh")
        return Activation(kind)
    return None


def source_of(node: fx.Node) -> fx.Node:
    """The value a node with one tensor argument works on."""
    source = node.args[0]
    assert isinstance(source, fx.Node)
    return source


def is_activation(node: fx.Node, modules: dict[str, nn.Module]) -> bool:
    """Whether a node is an activation function, fusable or not."""
    if node.op == "call_module" and isinstance(modules[str(node.target)], _UNFUSED_ACTIVATION_MODULES):
        return True
    if node.op == "call_function" and node.target in _UNFUSED_ACTIVATION_FUNCTIONS:
        return len(node.all_input_nodes) == 1
    return find_activation(node, modules) is not None


def is_elementwise(node: fx.Node, modules: dict[str, nn.Module]) -> bool:
    """Whether a node with one tensor argument maps every element by the same function."""
    if is_activation(node, modules):
        return True
    if node.op == "call_method":
        return node.target in _ELEMENTWISE_METHODS and len(node.all_input_nodes) == 1
    if node.op != "call_function" or len(node.all_input_nodes) != 1:
        return False
    return node.target in _ELEMENTWISE_FUNCTIONS or node.target in _SCALAR_FUNCTIONS


def is_pool(node: fx.Node, modules: dict[str, nn.Module]) -> bool:
    """Whether a node pools over the pixels of each channel, and returns one tensor."""
    if node.op == "call_module":
        module = modules[str(node.target)]
        return isinstance(module, _POOL_MODULES) and not getattr(module, "return_indices", False)
    if node.op != "call_function" or len(node.all_input_nodes) != 1:
        return False
    return node.target in _POOL_FUNCTIONS and not node.kwargs.get("return_indices", False)


def is_max_pool(node: fx.Node, modules: dict[str, nn.Module]) -> bool:
    """Whether a node is a max pool in the sense of :func:`is_pool`."""
    if not is_pool(node, modules):
        return False
    if node.op == "call_module":
        return isinstance(modules[str(node.target)], _MAX_POOL_MODULES)
    return node.target in _MAX_POOL_FUNCTIONS


class MaxPool(NamedTuple):
    """Arguments of the op ``max_pool2d``."""

    kernel_size: list[int]
    stride: list[int]
    padding: list[int]
    dilation: list[int]
    ceil_mode: bool


def max_pool_geometry(node: fx.Node, modules: dict[str, nn.Module]) -> MaxPool | None:
    """The arguments of a max pool with constant numbers; None for other pools."""
    if node.op == "call_module":
        m = modules[str(node.target)]
        if not isinstance(m, nn.MaxPool2d):
            return None
        values: list[Any] = [m.kernel_size, m.stride, m.padding, m.dilation, m.ceil_mode]
    elif node.target in (F.max_pool2d, torch.max_pool2d):
        names = ("kernel_size", "stride", "padding", "dilation", "ceil_mode")
        given = dict(zip(names, node.args[1:], strict=False)) | node.kwargs
        values = [given.get(n, d) for n, d in zip(names, (None, None, 0, 1, False), strict=True)]
    else:
        return None
    values[1] = values[1] if values[1] not in (None, [], ()) else values[0]
    pairs = [
        [v, v] if isinstance(v, int) else list(v) for v in values[:4] if isinstance(v, (int, list, tuple))
    ]
    if len(pairs) != 4 or not all(len(p) == 2 and all(isinstance(n, int) for n in p) for p in pairs):
        return None
    return MaxPool(pairs[0], pairs[1], pairs[2], pairs[3], bool(values[4]))


def is_resize(node: fx.Node, modules: dict[str, nn.Module]) -> bool:
    """Whether a node resizes every channel of an image or a sequence by itself."""
    if node.op == "call_module":
        return isinstance(modules[str(node.target)], nn.Upsample)
    return node.op == "call_function" and node.target in (F.interpolate, F.upsample)


def is_flatten(node: fx.Node, modules: dict[str, nn.Module]) -> bool:
    """Whether a node turns ``[batch, channels, ...]`` into ``[batch, everything]``, at any batch size."""
    before, after = node.meta.get("in_shape"), node.meta.get("shape")
    if before is None or after is None or len(before) < 2 or len(after) != 2:
        return False
    if after[0] != before[0]:
        return False
    if node.op == "call_module":
        module = modules[str(node.target)]
        return isinstance(module, nn.Flatten) and module.start_dim == 1
    if node.op == "call_function" and node.target is torch.flatten:
        return True
    if node.op == "call_method" and node.target == "flatten":
        return True
    return _is_reshape(node)


def is_unflatten(node: fx.Node) -> bool:
    """Whether a node turns ``[batch, channels]`` into ``[batch, channels, 1, ...]``, at any batch size."""
    before, after = node.meta.get("in_shape"), node.meta.get("shape")
    if before is None or after is None or len(before) != 2:
        return False
    return _is_reshape(node) and after == (*before, *[1] * (len(after) - 2))


def _is_reshape(node: fx.Node) -> bool:
    """Whether a node gives a tensor another shape, with any batch size in front."""
    reshape = (node.op == "call_method" and node.target in ("view", "reshape")) or (
        node.op == "call_function" and node.target is torch.reshape
    )
    if not reshape or len(node.args) < 2:
        return False
    sizes = node.args[1:] if not isinstance(node.args[1], (tuple, list)) else node.args[1]
    # A fixed batch size would be wrong for other batches: the model's own op has to say so.
    return len(sizes) >= 2 and (isinstance(sizes[0], fx.Node) or bool(sizes[0] == -1))


def is_size(node: fx.Node) -> bool:
    """Whether a node reads the sizes of a tensor, or one of them (``x.size(1)``, ``x.shape``)."""
    if node.op == "call_method" and node.target == "size":
        return all(isinstance(n, int) for n in (*node.args[1:], *node.kwargs.values()))
    return node.op == "call_function" and node.target is getattr and node.args[1:] == ("shape",)


def takes_no_values(node: fx.Node) -> bool:
    """Whether a node asks a tensor for its sizes, rank, dtype or device."""
    if node.op == "call_method" and node.target == "dim":
        return True
    described = node.op == "call_function" and node.target is getattr
    return is_size(node) or (described and node.args[1] in ("ndim", "dtype", "device"))
