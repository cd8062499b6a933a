"""Entries of LSTM layers."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor

from dynprune import ops
from dynprune.lowering.ir import LSTMSite
from dynprune.ops import lstm_reference, reference
from dynprune.plan.entries import LSTMEntry, Starts
from dynprune.plan.inputs import Inputs, rows_of, runs_native


def lstm_entry(site: LSTMSite, inputs: Inputs, steps: Sequence[Inputs], **common: Any) -> LSTMEntry:
    """The entry of one layer; ``steps`` is what each direction reads of its own last step."""
    layer = site.layer
    packed, macs, dense = [], 0, 0
    op: Callable[..., tuple[Tensor, Tensor, Tensor]] = lstm_reference.lstm
    for way, own in enumerate(steps):
        weight_ih, weight_hh, _ = layer.weights(way)
        if runs_native(weight_ih) and weight_ih.dtype == torch.float32:
            op = torch.ops.dynprune.lstm.default
        packed.append(pack_direction(weight_ih, weight_hh, inputs, own))
        depth, active = packed[-1].shape[1], layer.hidden_size
        dense += 4 * active * (weight_ih.shape[1] + active)
        if own.active is not None:
            active = int(own.active.sum())
        macs += 4 * active * depth
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


def starts_of(site: LSTMSite, steps: Sequence[Inputs]) -> Starts | None:
    """How given initial states enter a layer; None where all its units are active."""
    rows = [rows_of(own.active) for own in steps]
    if all(units is None for units in rows):
        return None
    units = site.layer.hidden_size
    everything = torch.arange(units)
    kept = [everything if own is None else own for own in rows]
    weights = [site.layer.weights(way)[1] for way in range(len(steps))]
    native = runs_native(weights[0])
    return Starts(
        op=torch.ops.dynprune.linear.default if native else reference.linear,
        kept=torch.cat([way * units + own for way, own in enumerate(kept)]),
        weight=weights,
        gates=[(units * torch.arange(4)[:, None] + own).flatten() for own in kept],
    )


def lstm_bias(site: LSTMSite, inputs: Inputs, steps: Sequence[Inputs]) -> list[Tensor]:
    """The biases of each direction ``[2, 4, active]``."""
    return [direction_bias(*site.layer.weights(way), inputs, own) for way, own in enumerate(steps)]


def pack_direction(weight_ih: Tensor, weight_hh: Tensor, inputs: Inputs, own: Inputs) -> Tensor:
    """The packed weight of one direction ``[panels, in + active, 64]``."""
    mixed = inputs.mixed(weight_ih), own.mixed(weight_hh)
    return ops.pack_lstm(*mixed, rows_of(own.active), inputs.columns())


def direction_bias(weight_ih: Tensor, weight_hh: Tensor, bias: Tensor, inputs: Inputs, own: Inputs) -> Tensor:
    """``[2, 4, active]``: what the missing inputs and units add, at the first step and at all others.

    A missing unit's constant enters from the second step on; at the first its initial state does.
    """
    pruned, gone = inputs.pruned, own.pruned
    if pruned is not None:
        bias = bias + weight_ih @ pruned.to(weight_ih.dtype)
    later = bias if gone is None else bias + weight_hh @ gone.to(weight_hh.dtype)
    both = torch.stack([bias, later]).view(2, 4, -1)
    rows = rows_of(own.active)
    return both if rows is None else both.index_select(2, rows)
