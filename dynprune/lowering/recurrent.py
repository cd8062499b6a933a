"""LSTMs in a trace: one node per layer, packed sequences as padded ones with lengths."""

from __future__ import annotations

import inspect
import operator
from typing import Any

import torch
from torch import Tensor, fx, nn
from torch.nn.utils.rnn import pack_padded_sequence, pad_packed_sequence

from dynprune.lowering import tables
from dynprune.ops.devices import upload


class LSTMLayer(nn.Module):
    """One layer of an ``nn.LSTM`` that shares its parameters.

    Args:
        source: the whole LSTM.
        layer: which of its layers.
        batch_first: order of the first two dimensions of input and output.
    """

    lstm: nn.LSTM

    def __init__(self, source: nn.LSTM, layer: int, batch_first: bool) -> None:
        super().__init__()
        ways = 2 if source.bidirectional else 1
        one = nn.LSTM(
            source.input_size if layer == 0 else ways * source.hidden_size, source.hidden_size,
            bias=source.bias, batch_first=batch_first, bidirectional=ways == 2, device="meta",
        )  # fmt: skip
        for name in list(one._parameters):
            setattr(one, name, getattr(source, name.replace("_l0", f"_l{layer}")))
        self.__dict__["lstm"] = one  # not a submodule: its parameters are registered at the source
        self.hidden_size = source.hidden_size
        self.batch_first = batch_first
        self.suffixes = ["", "_reverse"][:ways]

    def weights(self, direction: int) -> tuple[Tensor, Tensor, Tensor]:
        """``[4 * hidden, in]``, ``[4 * hidden, hidden]`` and the sum of both biases ``[4 * hidden]``."""
        name = f"l0{self.suffixes[direction]}"
        w_ih, w_hh = (getattr(self.lstm, f"weight_{part}_{name}").detach() for part in ("ih", "hh"))
        if not self.lstm.bias:
            return w_ih, w_hh, w_ih.new_zeros(4 * self.hidden_size)
        b_ih, b_hh = (getattr(self.lstm, f"bias_{part}_{name}").detach() for part in ("ih", "hh"))
        return w_ih, w_hh, b_ih + b_hh

    def forward(
        self,
        x: Tensor,
        lengths: Tensor | None = None,
        hidden: Tensor | None = None,
        cell: Tensor | None = None,
    ) -> tuple[Tensor, ...]:
        """All units, by PyTorch; see :func:`run_lstm`."""
        return run_lstm(self.lstm, x, lengths, hidden, cell)


def run_lstm(
    lstm: nn.LSTM,
    x: Tensor,
    lengths: Tensor | None = None,
    hidden: Tensor | None = None,
    cell: Tensor | None = None,
) -> tuple[Tensor, ...]:
    """One layer by PyTorch.

    Args:
        lstm: of one layer.
        x: ``[steps, batch, in]``, or batch first as ``lstm`` is.
        lengths: int64 ``[batch]`` of the host, the longest as long as ``x``; None: all steps.
        hidden: initial states ``[batch, hidden * directions]``; None: zero.
        cell: likewise, given with ``hidden``.

    Returns:
        The outputs ``[..., hidden * directions]``, then the last hidden state ``[batch, hidden]`` of
        each direction, then the last cell states likewise.
    """
    given = None
    if hidden is not None and cell is not None:
        given = _by_direction(lstm, hidden), _by_direction(lstm, cell)
    if lengths is None:
        y, (h, c) = lstm(x, given)
    else:
        # In PyTorch's packed sequences, the longest first. PyTorch would sort rows by itself, but wait for a
        # GPU twice on the way.
        falling = lengths.argsort(descending=True, stable=True)
        there, back = upload(falling, x.device), upload(falling.argsort(), x.device)
        rows = 0 if lstm.batch_first else 1
        if given is not None:
            given = given[0].index_select(1, there), given[1].index_select(1, there)
        packed = pack_padded_sequence(x.index_select(rows, there), lengths[falling], lstm.batch_first)
        packed, (h, c) = lstm(packed, given)
        y, _ = pad_packed_sequence(packed, lstm.batch_first)
        y, h, c = y.index_select(rows, back), h.index_select(1, back), c.index_select(1, back)
    return y, *h.unbind(0), *c.unbind(0)


def _by_direction(lstm: nn.LSTM, state: Tensor) -> Tensor:
    return torch.stack(torch.split(state, lstm.hidden_size, 1))


def sequence_lengths(lengths: Any, enforce_sorted: bool) -> Tensor:
    """What ``pack_padded_sequence`` takes, as int64 ``[batch]`` on the CPU.

    Raises:
        ValueError: a length below 1, or lengths that do not fall although they have to.
    """
    result = torch.as_tensor(lengths, dtype=torch.int64, device="cpu").contiguous()
    if bool((result < 1).any()):
        raise ValueError(f"pack_padded_sequence: expected lengths of at least 1, got {int(result.min())}")
    if enforce_sorted and bool((result[1:] > result[:-1]).any()):
        raise ValueError("pack_padded_sequence: expected falling lengths with enforce_sorted, got others")
    return result


def trim_steps(x: Tensor, lengths: Tensor, batch_first: bool) -> Tensor:
    """The steps that the longest sequence has.

    Raises:
        ValueError: the lengths are not one for each row, or one exceeds the padded steps.
    """
    time = 1 if batch_first else 0
    batch, steps = x.shape[1 - time], x.shape[time]
    longest = int(lengths.max()) if lengths.numel() else 0
    if lengths.shape != (batch,) or longest > steps:
        raise ValueError(
            f"pack_padded_sequence: expected lengths [{batch}] of at most {steps}, "
            f"got {list(lengths.shape)} up to {longest}"
        )
    return x.narrow(time, 0, longest)


def _bound(function: Any, node: fx.Node) -> dict[str, Any]:
    given = inspect.signature(function).bind(*node.args, **node.kwargs)
    given.apply_defaults()
    return given.arguments


def _is_call(node: fx.Node, function: Any) -> bool:
    # Tracing may have seen the function under a wrapper of the same name.
    return node.op == "call_function" and getattr(node.target, "__name__", None) == function.__name__


def _is_item(node: fx.Node, *keys: int) -> bool:
    return node.op == "call_function" and node.target is operator.getitem and node.args[1] in keys


def why_not(node: fx.Node, module: nn.LSTM) -> str | None:
    """Why the call of an LSTM stays as it is; None if it can be split into layers."""
    active = getattr(module, "active", None)  # a layer of dynprune.nn
    if active is not None and not all(bool(mask.all()) for mask in active().values()):
        return "an active set of its own"
    if module.proj_size:
        return "projections (proj_size)"
    source = tables.source_of(node)
    packed = _is_call(source, pack_padded_sequence)
    if not packed and len(source.meta.get("shape") or ()) != 3:
        return "an input that is neither [batch, steps, features] nor packed by pack_padded_sequence"
    for part in node.users:
        if not _is_item(part, 0, 1):
            return "its result is used whole"
        if part.args[1] == 1 and not all(_is_item(state, 0, 1) for state in part.users):
            return "its states are used whole"
        if part.args[1] == 0 and packed:
            for user in part.users:
                plain = _is_call(user, pad_packed_sequence) and all(_is_item(u, 0, 1) for u in user.users)
                if not plain or _bound(pad_packed_sequence, user)["padding_value"] != 0.0:
                    return "its packed result is not unpacked by pad_packed_sequence with zeros"
                if _bound(pad_packed_sequence, user)["total_length"] is not None:
                    return "its packed result is unpacked with total_length"
    return None


def split_lstms(traced: fx.GraphModule) -> bool:
    """Rewrite the calls of LSTMs as one node per layer; False if there is none.

    Needs the shapes of the values, and leaves those of the new ones to be found.
    """
    modules = tables.visible_modules(traced)
    found = [
        node for node in traced.graph.nodes
        if node.op == "call_module" and isinstance(modules[str(node.target)], nn.LSTM)
    ]  # fmt: skip
    for node in found:
        _part_states(traced.graph, node)
    changed = False
    # The last first: the states that it is given may be those of another, which are picked apart by then.
    for node in reversed(found):
        module = modules[str(node.target)]
        assert isinstance(module, nn.LSTM)
        if why_not(node, module) is None:
            _split(traced, node, module)
            changed = True
    if changed:
        traced.graph.eliminate_dead_code()
        traced.graph.lint()
        traced.recompile()
    return changed


def _part_states(graph: fx.Graph, node: fx.Node) -> None:
    """The initial states of a call as two values, ``lstm(x, (h, c))``, or ``lstm(x)`` without any."""
    states: Any = node.kwargs.get("hx", node.args[1] if len(node.args) == 2 else None)
    if isinstance(states, fx.Node):
        with graph.inserting_before(node):
            states = tuple(graph.call_function(operator.getitem, (states, kind)) for kind in (0, 1))
    node.args = node.args[:1] if states is None else (node.args[0], tuple(states))
    node.kwargs = {}


def _split(traced: fx.GraphModule, node: fx.Node, module: nn.LSTM) -> None:
    graph, source = traced.graph, node.args[0]
    assert isinstance(source, fx.Node)
    lengths: fx.Node | None = None
    batch_first = module.batch_first
    ways = 2 if module.bidirectional else 1
    initial: Any = node.args[1] if len(node.args) == 2 else ()
    states: list[list[fx.Node]] = [[], []]  # hidden, cell; layer by layer, direction by direction
    with graph.inserting_before(node):
        x: Any = source
        if _is_call(source, pack_padded_sequence):
            given = _bound(pack_padded_sequence, source)
            batch_first = bool(given["batch_first"])
            lengths = graph.call_function(sequence_lengths, (given["lengths"], given["enforce_sorted"]))
            x = graph.call_function(trim_steps, (given["input"], lengths, batch_first))
        for layer in range(module.num_layers):
            name = f"{str(node.target).replace('.', '_')}_l{layer}"
            while hasattr(traced, name):
                name += "_"
            traced.add_module(name, LSTMLayer(module, layer, batch_first))
            begin = [_of_layer(graph, state, layer * ways, ways) for state in initial]
            more = (lengths, *begin) if begin or lengths is not None else ()
            call = graph.call_module(name, (x, *more))
            call.meta["name"] = f"{node.target}.l{layer}"
            x = graph.call_function(operator.getitem, (call, 0))
            for kind in (0, 1):
                first = 1 + kind * ways
                states[kind] += [
                    graph.call_function(operator.getitem, (call, first + way)) for way in range(ways)
                ]
    for part in list(node.users):
        if part.args[1] == 1:
            for state in list(part.users):
                _replace_state(graph, state, states[0 if state.args[1] == 0 else 1])
        elif lengths is None:
            part.replace_all_uses_with(x)
        else:
            for pad in list(part.users):
                _replace_padded(graph, pad, x, lengths, batch_first)


def _of_layer(graph: fx.Graph, state: fx.Node, first: int, ways: int) -> fx.Node:
    """``[batch, hidden * directions]`` of one layer from ``[layers * directions, batch, hidden]``."""
    parts = [graph.call_function(operator.getitem, (state, first + way)) for way in range(ways)]
    return parts[0] if ways == 1 else graph.call_function(torch.cat, (parts, 1))


def _replace_state(graph: fx.Graph, state: fx.Node, parts: list[fx.Node]) -> None:
    """``h_n`` ``[layers * directions, batch, hidden]`` by the states of its parts."""
    for user in list(state.users):
        index: Any = user.args[1] if user.target is operator.getitem else None
        if isinstance(index, tuple) and all(part == slice(None) for part in index[1:]):
            index = index[0]
        if isinstance(index, int) and -len(parts) <= index < len(parts):
            user.replace_all_uses_with(parts[index])
    if state.users:
        with graph.inserting_before(state):
            state.replace_all_uses_with(graph.call_function(torch.stack, (parts,)))


def _replace_padded(graph: fx.Graph, pad: fx.Node, y: fx.Node, lengths: fx.Node, batch_first: bool) -> None:
    wanted = bool(_bound(pad_packed_sequence, pad)["batch_first"])
    for item in list(pad.users):
        if item.args[1] == 1:
            item.replace_all_uses_with(lengths)
        elif wanted == batch_first:
            item.replace_all_uses_with(y)
        else:
            with graph.inserting_before(item):
                item.replace_all_uses_with(graph.call_method("transpose", (y, 0, 1)))
