"""An LSTM in plain steps whose pruned units are replaced where its own layers and steps read them."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.utils.rnn import PackedSequence, pack_padded_sequence, pad_packed_sequence


class MaskedLSTM(nn.Module):
    """Called as ``nn.LSTM``; its outputs hold what pruned units would have been.

    Given initial states are replaced where they come from pruned units of another LSTM. A pruned unit of this
    one has the state that it is given before its first step; with ``mixing`` None, zero.

    Args:
        lstm: in float64.
        name: its qualified name.
        active, constants, mixing: of the accelerated model; ``mixing`` None puts zeros for pruned units.
    """

    def __init__(
        self,
        lstm: nn.LSTM,
        name: str,
        active: Mapping[str, Tensor],
        constants: Mapping[str, Tensor],
        mixing: Mapping[str, Tensor] | None,
    ) -> None:
        super().__init__()
        self.lstm, self.name = lstm, name
        self.active, self.constants, self.mixing = active, constants, mixing

    def _replace(self, x: Tensor, groups: list[str], key: str) -> Tensor:
        if groups[0] not in self.active:  # units that reach an output are never pruned
            return x
        mask = torch.cat([self.active[group] for group in groups])
        if self.mixing is None:
            return torch.where(mask, x, 0.0)
        stand_in = self.constants[key].double().expand_as(x)
        if key in self.mixing:
            stand_in = stand_in + x @ self.mixing[key].double().T
        return torch.where(mask, x, stand_in)

    def _given(self, states: Tensor, layer: int, kind: str) -> Tensor:
        """``[batch, hidden * directions]`` of one layer, as it reads them."""
        ways = 2 if self.lstm.bidirectional else 1
        x = torch.cat(list(states[layer * ways : (layer + 1) * ways]), 1)
        end = f":{self.name}.l{layer}.{kind}"
        for key in self.constants:
            if key.endswith(end):
                x = self._replace(x, key.removesuffix(end).split("+"), key)
        return x

    def forward(self, input: Any, hx: tuple[Tensor, Tensor] | None = None) -> Any:
        lengths = None
        x = input
        if isinstance(input, PackedSequence):
            x, lengths = pad_packed_sequence(input)
        elif self.lstm.batch_first:
            x = input.transpose(0, 1)
        if lengths is None:
            lengths = torch.full((x.shape[1],), x.shape[0])
        ways = ("", "_reverse") if self.lstm.bidirectional else ("",)
        hidden, cell = [], []
        for layer in range(self.lstm.num_layers):
            groups = [f"{self.name}.l{layer}{way}" for way in ways]
            if layer > 0:
                before = [f"{self.name}.l{layer - 1}{way}" for way in ways]
                x = self._replace(x, before, f"{'+'.join(before)}:{self.name}.l{layer}")
            size = (x.shape[1], self.lstm.hidden_size * len(ways))
            h, c = x.new_zeros(size), x.new_zeros(size)
            if hx is not None:
                h, c = self._given(hx[0], layer, "hidden"), self._given(hx[1], layer, "cell")
                if self.mixing is None:
                    h = self._replace(h, groups, "")
            begin = zip(h.chunk(len(ways), 1), c.chunk(len(ways), 1), strict=True)
            parts = [
                self._direction(x, lengths, group, way, *start)
                for group, way, start in zip(groups, ways, begin, strict=True)
            ]
            x = torch.cat([y for y, _, _ in parts], 2)
            hidden += [h for _, h, _ in parts]
            cell += [c for _, _, c in parts]
        h, c = torch.stack(hidden), torch.stack(cell)
        if not isinstance(input, PackedSequence):
            return (x.transpose(0, 1) if self.lstm.batch_first else x), (h, c)
        return pack_padded_sequence(x, lengths, enforce_sorted=False), (h, c)

    def _direction(
        self, x: Tensor, lengths: Tensor, group: str, way: str, first_h: Tensor, first_c: Tensor
    ) -> tuple[Tensor, Tensor, Tensor]:
        suffix = group.rpartition(".")[2]
        w_ih, w_hh = getattr(self.lstm, f"weight_ih_{suffix}"), getattr(self.lstm, f"weight_hh_{suffix}")
        bias = x.new_zeros(len(w_ih))
        if self.lstm.bias:
            bias = getattr(self.lstm, f"bias_ih_{suffix}") + getattr(self.lstm, f"bias_hh_{suffix}")
        steps, batch, _ = x.shape
        y = x.new_zeros(steps, batch, self.lstm.hidden_size)
        last_h, last_c = torch.empty_like(first_h), torch.empty_like(first_c)
        for row in range(batch):
            h, c = first_h[row], first_c[row]
            times = range(int(lengths[row]))
            for count, t in enumerate(reversed(times) if way else times):
                seen = self._replace(h, [group], f"{group}:recurrent") if count else h
                i, f, g, o = (w_ih @ x[t, row] + w_hh @ seen + bias).chunk(4)
                c = f.sigmoid() * c + i.sigmoid() * g.tanh()
                h = o.sigmoid() * c.tanh()
                y[t, row] = h
            last_h[row], last_c[row] = h, c
        return y, last_h, last_c
