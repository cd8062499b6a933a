"""What a materialized model has beside standard modules."""

from __future__ import annotations

import math

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from dynprune.lowering.ir import Layout, LSTMSite
from dynprune.lowering.recurrent import run_lstm
from dynprune.plan.inputs import Inputs
from dynprune.plan.substitute import Substitute


class ExpandUnits(nn.Module):
    """Full width again: the active units among constants, in PyTorch's order of a flattened image.

    Args:
        kept: int64 ``[n]``, the units of the compact tensor; it has one at least of every group.
        mask: bool ``[units]``, the active ones.
        substitute: what stands in for the others.
        layout: of the compact tensor.
    """

    index: Tensor
    constants: Tensor
    mixing: Tensor | None
    real: Tensor | None

    def __init__(self, kept: Tensor, mask: Tensor, substitute: Substitute, layout: Layout) -> None:
        super().__init__()
        real = mask[kept]
        self.register_buffer("index", kept[real])
        self.register_buffer("constants", substitute.constants.clone())
        mixing = substitute.mixing
        self.register_buffer("mixing", None if mixing is None else mixing[:, kept[real]])
        self.register_buffer("real", None if bool(real.all()) else real.nonzero().flatten())
        self.kept = len(kept)
        self.dim = layout.dim
        self.spatial = layout.spatial

    def forward(self, x: Tensor) -> Tensor:
        """``[batch, active ...]`` to ``[batch, units ...]``."""
        units = len(self.constants)
        if self.spatial > 1:
            x = x.view(x.shape[0], self.kept, self.spatial)
        view, full = [1] * x.dim(), list(x.shape)
        dim = 1 if self.spatial > 1 else self.dim
        if self.real is not None:
            x = x.index_select(dim, self.real)
        view[dim] = full[dim] = units
        constants = self.constants.to(x.dtype).view(view).expand(full)
        if self.mixing is not None:
            constants = constants + (x.movedim(dim, -1) @ self.mixing.to(x.dtype).T).movedim(-1, dim)
        y = constants.index_copy(dim, self.index, x)
        return y.flatten(1) if self.spatial > 1 else y


def with_ones_channel(x: Tensor) -> Tensor:
    """``[batch, n, ...]`` with one more channel of ones: it carries constants per tap."""
    return F.pad(x, (*[0, 0] * (x.dim() - 2), 0, 1), value=1.0)


class PickChannels(nn.Module):
    """The channels ``index`` ``[n]`` of an image or a sequence."""

    index: Tensor

    def __init__(self, index: Tensor) -> None:
        super().__init__()
        self.register_buffer("index", index)

    def forward(self, x: Tensor) -> Tensor:
        """``[batch, channels, ...]`` to ``[batch, n, ...]``."""
        return x.index_select(1, self.index)


class StartInputs(nn.Module):
    """Initial states of pruned units as inputs of the first step, less their shares of active units.

    Args:
        own: what stands in for the pruned units of one direction from the second step on.
        units: of the direction.
    """

    gone: Tensor
    shares: Tensor

    def __init__(self, own: Inputs, units: int) -> None:
        super().__init__()
        active = torch.ones(units, dtype=torch.bool) if own.active is None else own.active
        mixing = None if own.substitute is None else own.substitute.mixing
        gone = (~active).nonzero().flatten()
        self.width = len(gone)
        self.register_buffer("gone", gone)
        self.register_buffer("shares", None if mixing is None or not bool(active.any()) else mixing[gone])

    def forward(self, state: Tensor, steps: int, at: Tensor) -> Tensor:
        """``[batch, steps, pruned]`` from states ``[batch, units]``; a row's first step is ``at``."""
        rest = state.index_select(1, self.gone)
        if self.shares is not None:
            rest = rest - state @ self.shares.to(state.dtype).T
        inputs = state.new_zeros(len(state), steps, self.width)
        inputs[torch.arange(len(state)), at] = rest
        return inputs


class CompactLSTM(nn.Module):
    """One layer of an LSTM on the kept units of its directions, by an ``nn.LSTM``.

    That has the same number of units in both directions: the smaller one gets idle units, whose weights
    are zero. The constants of pruned units enter the gates from the second step on; one more unit, which
    is zero before the first step and tanh(1) behind every step, carries them in its recurrent weights.

    Given initial states of pruned units, less what shares of active ones stand in for, are more inputs, which
    are zero behind the first step.

    Args:
        site: of the layer.
        inputs: what it reads, and the columns of that which are there, int64 ``[n]``.
        steps: of each direction, what stands in for pruned units, and the units it keeps, int64 ``[n]``.
        starts: whether given initial states of pruned units count.
    """

    chosen: Tensor | None

    def __init__(
        self,
        site: LSTMSite,
        inputs: tuple[Inputs, Tensor | None],
        steps: list[tuple[Inputs, Tensor]],
        *,
        starts: bool,
    ) -> None:
        super().__init__()
        layer, (reads, columns) = site.layer, inputs
        self.sizes = [len(kept) for _, kept in steps]
        carried = [own.pruned is not None and bool(own.pruned.any()) for own, _ in steps]
        width = max(self.sizes) + any(carried)
        dtype = layer.weights(0)[0].dtype
        self.units = layer.hidden_size
        self.starts = [StartInputs(own, self.units) for own, _ in steps] if starts else []
        for way, start in enumerate(self.starts):
            self.add_module(f"start_{way}", start)
        depth = layer.lstm.input_size if columns is None else len(columns)
        depth += sum(start.width for start in self.starts)
        self.lstm = nn.LSTM(
            depth, width, batch_first=layer.batch_first, bidirectional=len(steps) == 2, dtype=dtype
        )  # fmt: skip
        with torch.no_grad():
            for parameter in self.lstm.parameters():
                parameter.zero_()
            for way, (own, kept) in enumerate(steps):
                self._fill(way, layer.weights(way), reads, columns, own, kept)
        for way, (_, kept) in enumerate(steps):
            self.register_buffer(f"kept_{way}", kept)
        chosen = torch.cat([way * width + torch.arange(size) for way, size in enumerate(self.sizes)])
        self.register_buffer("chosen", None if len(chosen) == width * len(steps) else chosen)

    def _fill(
        self,
        way: int,
        weights: tuple[Tensor, Tensor, Tensor],
        reads: Inputs,
        columns: Tensor | None,
        own: Inputs,
        kept: Tensor,
    ) -> None:
        name = ("l0", "l0_reverse")[way]
        into_ih, into_hh = (getattr(self.lstm, f"weight_{part}_{name}") for part in ("ih", "hh"))
        width, n = into_hh.shape[1], len(kept)
        weight_ih, weight_hh, bias = weights
        if reads.pruned is not None:
            bias = bias + weight_ih @ reads.pruned.to(bias.dtype)
        weight_ih, constant = reads.mixed(weight_ih), own.pruned
        if columns is not None and reads.active is not None:
            weight_ih = weight_ih[:, columns] * reads.active[columns]
        hh = own.mixed(weight_hh)[:, kept]
        if own.active is not None:
            hh = hh * own.active[kept]
        depth = weight_ih.shape[1]
        into_ih.view(4, width, -1)[:, :n, :depth] = weight_ih.view(4, -1, depth)[:, kept]
        if self.starts:
            depth += sum(start.width for start in self.starts[:way])
            start = self.starts[way]
            given = weight_hh[:, start.gone].view(4, self.units, start.width)[:, kept]
            into_ih.view(4, width, -1)[:, :n, depth : depth + start.width] = given
        into_hh.view(4, width, -1)[:, :n, :n] = hh.view(4, -1, n)[:, kept]
        into_bias = getattr(self.lstm, f"bias_ih_{name}").view(4, width)
        into_bias[:, :n] = bias.view(4, -1)[:, kept]
        if constant is not None and bool(constant.any()):
            shares = (weight_hh @ constant.to(bias.dtype)).view(4, -1)[:, kept]
            into_hh.view(4, width, -1)[:, :n, -1] = shares / math.tanh(1.0)
            into_bias[:, -1] = torch.tensor([50.0, -50.0, 50.0, 50.0])  # gates open, the forget gate shut

    def forward(
        self,
        x: Tensor,
        lengths: Tensor | None = None,
        hidden: Tensor | None = None,
        cell: Tensor | None = None,
    ) -> tuple[Tensor, ...]:
        """As :func:`~dynprune.lowering.recurrent.run_lstm`, on kept units; given states are those of all."""
        if hidden is not None and self.starts:
            x = self._with_starts(x, lengths, hidden)
        y, *states = run_lstm(self.lstm, x, lengths, self._kept(hidden), self._kept(cell))
        if self.chosen is not None:
            y = y.index_select(2, self.chosen)
        return y, *(s[:, :size] for s, size in zip(states, self.sizes * 2, strict=True))

    def _kept(self, state: Tensor | None) -> Tensor | None:
        """``[batch, width * directions]`` of full-width states: those of kept units, then zeros."""
        if state is None:
            return None
        width = self.lstm.hidden_size
        parts = [
            F.pad(part.index_select(1, getattr(self, f"kept_{way}")), (0, width - size))
            for way, (part, size) in enumerate(
                zip(torch.split(state, self.units, 1), self.sizes, strict=True)
            )
        ]
        return torch.cat(parts, 1)

    def _with_starts(self, x: Tensor, lengths: Tensor | None, hidden: Tensor) -> Tensor:
        """The input with the states of pruned units at each row's first step, in both directions' order."""
        time = 1 if self.lstm.batch_first else 0
        steps = x.shape[time]
        ends = torch.full((len(hidden),), steps) if lengths is None else lengths
        firsts = (torch.zeros_like(ends), ends - 1)
        parts = zip(self.starts, torch.split(hidden, self.units, 1), firsts, strict=False)
        more = [start(part, steps, at) for start, part, at in parts]
        return torch.cat([x, *(m if time else m.transpose(0, 1) for m in more)], 2)
