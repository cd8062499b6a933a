"""An eval-mode copy that shares the parameters, traced with torch.fx, with the shape of every value."""

from __future__ import annotations

import copy
import inspect
import itertools
import linecache
import operator
import traceback
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, fx, nn
from torch.nn.utils.rnn import pack_padded_sequence, pad_packed_sequence

from dynprune.lowering import tables, transformer

_IDENTITIES = (nn.Dropout, nn.Dropout1d, nn.Dropout2d, nn.Dropout3d, nn.AlphaDropout, nn.Identity)
_IDENTITY_FUNCTIONS = (
    torch.nn.functional.dropout,
    torch.nn.functional.dropout1d,
    torch.nn.functional.dropout2d,
    torch.nn.functional.dropout3d,
    torch.nn.functional.alpha_dropout,
    torch.dropout,
)


# Where no model's own lines stand, as file names begin.
_INSIDE = (*(str(Path(file).parent) for file in (torch.__file__, __file__)), "<eval_with_key", "<frozen")


class TraceError(ValueError):
    """The model's forward cannot be traced; the message names the line and the way out."""


class _Tracer(fx.Tracer):
    """A tracer for one model and the positional arguments of its example."""

    def __init__(self, example: tuple[Any, ...]) -> None:
        leaves = (pack_padded_sequence, pad_packed_sequence, transformer.zero_padding)
        super().__init__(autowrap_functions=leaves)
        # They are called through their modules as well.
        self._autowrap_search += [nn.utils.rnn, transformer]
        self.example = example
        self.failed: str | None = None  # the innermost submodule whose forward raised

    def is_leaf_module(self, m: nn.Module, module_qualified_name: str) -> bool:
        ours = type(m).__module__.startswith("dynprune.nn")
        return ours or super().is_leaf_module(m, module_qualified_name)

    def call_module(self, m: nn.Module, forward: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        try:
            return super().call_module(m, forward, args, kwargs)
        except Exception:
            self.failed = self.failed or f"{self.path_of_module(m)} ({type(m).__name__})"
            raise

    def create_args_for_root(
        self, root_fn: Any, is_module: bool, concrete_args: Any = None
    ) -> tuple[Any, list[Any]]:
        function, values = super().create_args_for_root(root_fn, is_module, concrete_args)
        return function, [values[0], *(self._fixed(i, value) for i, value in enumerate(values[1:]))]

    def _fixed(self, position: int, value: Any) -> Any:
        """An argument that is None or a bool, by which forwards choose: as in the example, or its default."""
        node = value.node
        absent = node.args[0] if node.args else value
        known = self.example[position] if position < len(self.example) else absent
        if str(node.target).startswith("*") or not (known is None or isinstance(known, bool)):
            return value
        self.create_proxy("call_function", expect_same, (value, known, str(node.target)), {})
        return known


@fx.has_side_effect
def expect_same(value: Any, known: bool | None, name: str) -> None:
    """Refuse another value of an argument than the one a model was traced with.

    Raises:
        ValueError: ``value`` is not ``known``.
    """
    if value is not known:
        got = value if isinstance(value, bool) else type(value).__name__
        raise ValueError(f"forward: expected {name} to be {known}, as in example_inputs, got {got}")


def share_copy(model: nn.Module) -> nn.Module:
    """A copy of the module tree in eval mode whose parameters and buffers are the model's own."""
    shared: dict[int, Any] = {id(t): t for t in itertools.chain(model.parameters(), model.buffers())}
    return copy.deepcopy(model, shared).eval()


def _where(error: BaseException) -> str:
    """The innermost line of the traceback that is neither torch's nor dynprune's."""
    frames = traceback.extract_tb(error.__traceback__)
    for frame in reversed(frames):
        if not frame.filename.startswith(_INSIDE):
            line = (frame.line or linecache.getline(frame.filename, frame.lineno or 0)).strip()
            return f"{frame.filename}:{frame.lineno}: {line}"
    return "a line that Python does not name"


def trace(model: nn.Module, example: tuple[Any, ...]) -> fx.GraphModule:
    """Trace an eval-mode model and drop what does nothing in eval mode.

    Args:
        model: to trace.
        example: its positional arguments; those that are None or a bool are taken as constants.

    Raises:
        TraceError: the forward depends on values, or is otherwise out of torch.fx's reach.
    """
    tracer = _Tracer(example)
    try:
        with transformer.traceable(model):
            graph = tracer.trace(model)
    except Exception as error:
        inside = f", in the submodule {tracer.failed}" if tracer.failed else ""
        raise TraceError(
            f"accelerate: expected a model that torch.fx can trace, got {type(error).__name__} "
            f"({error}) at {_where(error)}{inside}. Accelerate a submodule without that line, or build the "
            "model of dynprune.nn modules"
        ) from error
    for node in graph.nodes:
        # Marked nodes make the generated code register their function for all later traces, by a
        # qualified name that those then fail to find.
        node.meta.pop("is_wrapped", None)
    traced = fx.GraphModule(model, graph)
    modules = tables.visible_modules(traced)
    for node in list(graph.nodes):
        _name_no_input(node)
        if _is_in_place(node, modules):
            _read_behind(node)
        identity = (node.op == "call_module" and isinstance(modules[node.target], _IDENTITIES)) or (
            node.op == "call_function" and node.target in _IDENTITY_FUNCTIONS
        )
        if identity:
            # In eval mode these return their input; a functional dropout that ignores eval mode
            # (training=True) is a random op, and stays.
            if node.op == "call_function" and _is_random(node):
                continue
            node.replace_all_uses_with(node.args[0])
            graph.erase_node(node)
    for node in list(graph.nodes):
        if tables.is_max_pool(node, modules):
            _activate_before_pool(node, modules)
    graph.eliminate_dead_code()
    traced.recompile()
    return traced


def _name_no_input(node: fx.Node) -> None:
    """``f(input=x)`` as ``f(x)``, for PyTorch's own functions and modules."""
    origin = getattr(node.target, "__module__", None) or "torch"
    known = node.op == "call_module" or (node.op == "call_function" and origin.startswith("torch"))
    if known and not node.args and "input" in node.kwargs:
        rest = dict(node.kwargs)
        node.args = (rest.pop("input"),)
        node.kwargs = rest


def _is_in_place(node: fx.Node, modules: dict[str, nn.Module]) -> bool:
    """Whether a node changes its first argument."""
    if not node.args or not isinstance(node.args[0], fx.Node):
        return False
    if node.op == "call_module":
        return bool(getattr(modules[str(node.target)], "inplace", False))
    if node.op == "call_method":
        return str(node.target).endswith("_") and not str(node.target).endswith("__")
    if node.op != "call_function":
        return False
    name = getattr(node.target, "__name__", "")
    if name.endswith("_") or (name.startswith("i") and getattr(operator, name, None) is node.target):
        return name not in ("is_", "invert", "index", "indexOf", "itemgetter")
    try:
        given = inspect.signature(node.target).bind(*node.args, **node.kwargs)  # type: ignore[arg-type]
    except (TypeError, ValueError):
        return False
    return given.arguments.get("inplace") is True


def _read_behind(node: fx.Node) -> None:
    """Let what reads the tensor that ``node`` changed, later, read it from ``node``."""
    source = node.args[0]
    assert isinstance(source, fx.Node)
    for user in list(source.users):
        if node < user:
            user.replace_input_with(source, node)


def _activate_before_pool(pool: fx.Node, modules: dict[str, nn.Module]) -> None:
    """Swap a max pool with a monotone activation behind it: the same values, and it can be fused."""
    source = pool.args[0]
    if len(pool.users) != 1 or not isinstance(source, fx.Node) or len(source.users) != 1:
        return
    behind = next(iter(pool.users))
    activation = tables.find_activation(behind, modules)
    if activation is None or not activation.monotone:
        return
    behind.replace_all_uses_with(pool)
    behind.replace_input_with(pool, source)
    pool.replace_input_with(source, behind)
    pool.prepend(behind)


def _is_random(node: fx.Node) -> bool:
    default = node.target is not torch.dropout
    if node.target is torch.nn.functional.alpha_dropout:
        default = False
    position = 2
    training = node.args[position] if len(node.args) > position else default
    return bool(node.kwargs.get("training", node.kwargs.get("train", training)))


class _Shapes(fx.Interpreter):
    def run_node(self, n: fx.Node) -> Any:
        value = super().run_node(n)
        n.meta["shape"] = tuple(value.shape) if isinstance(value, Tensor) else None
        return value


def annotate_shapes(traced: fx.GraphModule, args: tuple[Any, ...]) -> None:
    """Run the example once, and note the shape of every tensor in ``node.meta["shape"]``.

    Raises:
        ValueError: the model does not accept the example.
    """
    try:
        with torch.no_grad():
            inspect.signature(traced.forward).bind(*args)  # the interpreter drops what is too many
            _Shapes(traced).run(*args)
    except Exception as error:
        raise ValueError(
            "accelerate: expected example_inputs that the model accepts, got "
            f"{describe(args)}, which ends in {type(error).__name__}: "
            f"{str(error).strip().splitlines()[0] if str(error) else ''}"
        ) from error


def describe(args: tuple[Any, ...]) -> str:
    """Shapes, dtypes and types of call arguments, for messages."""
    parts = [
        f"{a.dtype} {list(a.shape)} on {a.device}" if isinstance(a, Tensor) else type(a).__name__
        for a in args
    ]
    return f"({', '.join(parts)})"
