"""Entries of LSTM layers."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor

from dynprune import ops
from dynprune.lowering.ir import LSTMSite
from dynprune.ops import lstm_reference, reference
from dynprune.ops.devices import upload
from dynprune.ops.reference import wide
from dynprune.plan.entries import LSTMEntry, Starts
from dynprune.plan.inputs import Inputs, compacted, rows_of, runs_native, runs_on_gpu


def lstm_entry(site: LSTMSite, inputs: Inputs, steps: Sequence[Inputs], **common: Any) -> LSTMEntry:
    """The entry of one layer; ``steps`` is what each direction reads of its own last step."""
    layer = site.layer
    packed, macs, dense = [], 0, 0
    op: Callable[..., tuple[Tensor, Tensor, Tensor]] = lstm_reference.lstm
    for way, own in enumerate(steps):
        weight_ih, weight_hh, _ = layer.weights(way)
        native = runs_native(weight_ih) and weight_ih.dtype == torch.float32
        if native:
            op = torch.ops.dynprune.lstm.default
        elif runs_on_gpu("lstm", weight_ih):
            op = _send_lengths
        packed.append(pack_direction(weight_ih, weight_hh, inputs, own))
        columns, units = inputs.columns(), layer.hidden_size
        depth = weight_ih.shape[1] if columns is None else len(columns)
        active = units if own.active is None else int(own.active.sum())
        dense += 4 * units * (weight_ih.shape[1] + units)
        macs += 4 * active * (depth + active)
    return LSTMEntry(
        op=op,
        starts=starts_of(site, steps),
        weight=packed,
        bias=lstm_bias(site, inputs, steps),
        batch_first=layer.batch_first,
        macs=macs,
        dense_operations=dense,
        **common,
    )


def _send_lengths(
    x: Tensor, weight: list[Tensor], bias: list[Tensor], lengths: Tensor | None, *states: Any, **options: Any
) -> tuple[Tensor, Tensor, Tensor]:
    """The op on a GPU, with lengths of the host."""
    there = None if lengths is None else upload(lengths, x.device)
    result: tuple[Tensor, Tensor, Tensor] = torch.ops.dynprune.lstm.default(
        x, weight, bias, there, *states, **options
    )
    return result


def starts_of(site: LSTMSite, steps: Sequence[Inputs]) -> Starts | None:
    """How given initial states enter a layer; None where all its units are active."""
    rows = [rows_of(own.active) for own in steps]
    if all(units is None for units in rows):
        return None
    everything = torch.arange(site.layer.hidden_size)
    return starts_with(site, [everything if own is None else own for own in rows])


def starts_with(site: LSTMSite, kept: Sequence[Tensor]) -> Starts:
    """How given initial states enter the units ``kept`` of each direction, int64 ``[n]`` of the host."""
    units = site.layer.hidden_size
    weights = [site.layer.weights(way)[1] for way in range(len(kept))]
    native = runs_native(weights[0]) or runs_on_gpu("linear", weights[0])
    gates = [(units * torch.arange(4)[:, None] + own).flatten() for own in kept]
    return Starts(
        op=torch.ops.dynprune.linear.default if native else reference.linear,
        kept=upload(torch.cat([way * units + own for way, own in enumerate(kept)]), weights[0].device),
        weight=weights,
        gates=[upload(rows, weights[0].device) for rows in gates],
    )


def lstm_bias(site: LSTMSite, inputs: Inputs, steps: Sequence[Inputs]) -> list[Tensor]:
    """The biases of each direction ``[2, 4, active]``."""
    return [direction_bias(*site.layer.weights(way), inputs, own) for way, own in enumerate(steps)]


def pack_direction(weight_ih: Tensor, weight_hh: Tensor, inputs: Inputs, own: Inputs) -> Tensor:
    """The packed weight of one direction, as the op takes it there."""
    return packed_gates(*compact_gates(weight_ih, weight_hh, inputs, own))


def compact_gates(weight_ih: Tensor, weight_hh: Tensor, inputs: Inputs, own: Inputs) -> tuple[Tensor, Tensor]:
    """``[4 * active, in]`` and ``[4 * active, active]``, gates in PyTorch's order."""
    units, kept = weight_hh.shape[1], rows_of(own.active)
    rows = None if kept is None else (units * torch.arange(4)[:, None] + kept).flatten()
    return (
        compacted(inputs.mixed(weight_ih), None, rows, inputs.columns()),
        compacted(own.mixed(weight_hh), None, rows, kept),
    )


def packed_gates(weight_ih: Tensor, weight_hh: Tensor) -> Tensor:
    """Compact weights as the op takes them where they lie."""
    by_unit = weight_ih.is_cuda and ops.on_cuda.get("lstm") == "cuda"
    return (lstm_reference.pack_lstm_rows if by_unit else ops.pack_lstm)(weight_ih, weight_hh)


def direction_bias(weight_ih: Tensor, weight_hh: Tensor, bias: Tensor, inputs: Inputs, own: Inputs) -> Tensor:
    """``[2, 4, active]``: what the missing inputs and units add, at the first step and at all others.

    A missing unit's constant enters from the second step on; at the first its initial state does.
    """
    pruned, gone = inputs.pruned, own.pruned
    if weight_ih.is_cuda:  # what the kernels add is float32, beside weights of half the width too
        weight_ih, weight_hh, bias = wide(weight_ih), wide(weight_hh), wide(bias)
    if pruned is not None:
        bias = bias + weight_ih @ upload(pruned.to(weight_ih.dtype), weight_ih.device)
    later = bias if gone is None else bias + weight_hh @ upload(gone.to(weight_hh.dtype), weight_hh.device)
    both = torch.stack([bias, later]).view(2, 4, -1)
    rows = rows_of(own.active)
    return both if rows is None else both.index_select(2, upload(rows, both.device))
