"""A drop-in for ``torch.nn.LSTM``."""

from __future__ import annotations

import dataclasses
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.utils.rnn import PackedSequence, pack_padded_sequence, pad_packed_sequence

from dynprune.plan.inputs import Inputs
from dynprune.plan.lstm import direction_bias, pack_direction
from dynprune.plan.substitute import Substitute


@dataclasses.dataclass(frozen=True)
class _Choice:
    """The active units of one direction of one layer, and what the others give ``[hidden]``."""

    mask: Tensor
    constants: Tensor
    cells: Tensor

    @property
    def substitute(self) -> Substitute:
        return Substitute(self.constants)


@dataclasses.dataclass(frozen=True)
class _Built:
    """One layer ready to run; ``gone`` holds the recurrent weights of pruned units' initial states."""

    weight: list[Tensor]  # of each direction, packed
    bias: list[Tensor]  # of each direction [2, 4, active]
    gone: list[Tensor]  # of each direction [4 * active, pruned]


class LSTM(nn.LSTM):
    """``nn.LSTM`` that computes its active hidden units only, on the compiled kernel.

    Arguments, shapes, states and parameters are those of ``nn.LSTM``, also with a ``PackedSequence``.
    In training mode, where a gradient is needed, and in other dtypes than float32 it is the dense
    layer. Each direction of each layer has an active set of its own, named ``"l0"``, ``"l0_reverse"``,
    ``"l1"``, ...

    Raises:
        ValueError: ``proj_size`` is not 0.
    """

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        if self.proj_size:
            raise ValueError(f"LSTM: expected proj_size 0, got {self.proj_size}; projections have no kernel")
        self._choices = {name: self._everything() for name in self.directions}
        self._built: tuple[Any, list[_Built]] | None = None

    @classmethod
    def from_dense(cls, module: nn.LSTM) -> LSTM:
        """A layer that shares the parameters of ``module``.

        Raises:
            ValueError: ``module`` is not an ``nn.LSTM``, or has projections.
        """
        if not isinstance(module, nn.LSTM):
            raise ValueError(f"LSTM.from_dense: expected nn.LSTM, got {type(module).__name__}")
        new = cls(
            module.input_size, module.hidden_size, module.num_layers, module.bias, module.batch_first,
            module.dropout, module.bidirectional, module.proj_size, device="meta",
        )  # fmt: skip
        for name, parameter in module.named_parameters():
            setattr(new, name, parameter)
        return new.train(module.training)

    @property
    def directions(self) -> list[str]:
        """Names of the active sets, layer by layer."""
        suffixes = ("", "_reverse") if self.bidirectional else ("",)
        return [f"l{layer}{suffix}" for layer in range(self.num_layers) for suffix in suffixes]

    def _everything(self) -> _Choice:
        zeros = torch.zeros(self.hidden_size)
        return _Choice(torch.ones(self.hidden_size, dtype=torch.bool), zeros, zeros)

    def set_active(
        self, name: str, mask: Tensor, constants: Tensor | None = None, cells: Tensor | None = None
    ) -> None:
        """Compute the units of ``mask`` (bool ``[hidden]``) of one direction only.

        Args:
            name: one of :attr:`directions`.
            mask: the active set.
            constants: ``[hidden]``, what the others give at every step (or 0), to the next step too.
            cells: ``[hidden]``, what they return as their last cell state (or 0).

        Raises:
            ValueError: the name is unknown, or a tensor is not as above.
        """
        if name not in self._choices:
            raise ValueError(f"set_active: expected one of {', '.join(self.directions)}, got {name!r}")
        if not isinstance(mask, Tensor) or mask.dtype != torch.bool or mask.shape != (self.hidden_size,):
            got = f"{mask.dtype} {list(mask.shape)}" if isinstance(mask, Tensor) else type(mask).__name__
            raise ValueError(f"set_active: expected a BoolTensor [{self.hidden_size}], got {got}")
        values = []
        for what, value in (("constants", constants), ("cells", cells)):
            if value is not None and value.shape != (self.hidden_size,):
                raise ValueError(f"set_active: expected {what} [{self.hidden_size}], got {list(value.shape)}")
            values.append(torch.zeros(self.hidden_size) if value is None else value.detach().float().clone())
        self._choices = {**self._choices, name: _Choice(mask.clone(), *values)}
        self._built = None

    def active(self) -> dict[str, Tensor]:
        """Direction -> its active set, bool ``[hidden]``."""
        return {name: choice.mask.clone() for name, choice in self._choices.items()}

    def forward(self, input: Any, hx: tuple[Tensor, Tensor] | None = None) -> Any:
        """As ``nn.LSTM``: a tensor (2-D without a batch) or a ``PackedSequence``, and initial states."""
        data = input.data if isinstance(input, PackedSequence) else input
        needs_grad = torch.is_grad_enabled() and (
            data.requires_grad or any(p.requires_grad for p in self.parameters())
        )
        if self.training or needs_grad or data.dtype != torch.float32 or data.device.type != "cpu":
            return super().forward(input, hx)
        if isinstance(input, PackedSequence):
            self._check_packed(input, hx)
            return self._run_packed(input, hx)
        if input.dim() not in (2, 3):
            raise ValueError(f"LSTM: expected an input of 2 or 3 dimensions, got {input.dim()}")
        if input.shape[-1] != self.input_size:
            raise ValueError(f"LSTM: expected {self.input_size} features, got {input.shape[-1]}")
        batched = input.dim() == 3
        batch_dim = 0 if self.batch_first else 1
        x = input if batched else input.unsqueeze(batch_dim)
        if hx is not None and not batched:
            hx = (hx[0].unsqueeze(1), hx[1].unsqueeze(1))
        self._check_states(hx, x.shape[batch_dim])
        y, h, c = self._run(x, None, hx, self.batch_first)
        if batched:
            return y, (h, c)
        return y.squeeze(batch_dim), (h.squeeze(1), c.squeeze(1))

    def _check_packed(self, input: PackedSequence, hx: tuple[Tensor, Tensor] | None) -> None:
        """Raise ValueError where a packed input or its states do not fit."""
        if input.data.dim() != 2 or input.data.shape[1] != self.input_size:
            got = list(input.data.shape)
            raise ValueError(f"LSTM: expected packed data [n, {self.input_size}], got {got}")
        self._check_states(hx, int(input.batch_sizes[0]))

    def _check_states(self, hx: tuple[Tensor, Tensor] | None, batch: int) -> None:
        for name, state in zip(("hidden", "cell"), hx or (), strict=False):
            expected = [len(self.directions), batch, self.hidden_size]
            if list(state.shape) != expected:
                raise ValueError(f"LSTM: expected a {name} state {expected}, got {list(state.shape)}")

    def _run_packed(self, packed: PackedSequence, hx: tuple[Tensor, Tensor] | None) -> Any:
        # Rows stay in the packed order, the longest first; states go there and back.
        x, lengths = pad_packed_sequence(PackedSequence(packed.data, packed.batch_sizes))
        if hx is not None and packed.sorted_indices is not None:
            hx = (hx[0].index_select(1, packed.sorted_indices), hx[1].index_select(1, packed.sorted_indices))
        y, h, c = self._run(x, lengths, hx, batch_first=False)
        data = pack_padded_sequence(y, lengths).data
        if packed.unsorted_indices is not None:
            h, c = (s.index_select(1, packed.unsorted_indices) for s in (h, c))
        return (
            PackedSequence(data, packed.batch_sizes, packed.sorted_indices, packed.unsorted_indices),
            (h, c),
        )

    def _run(
        self, x: Tensor, lengths: Tensor | None, hx: tuple[Tensor, Tensor] | None, batch_first: bool
    ) -> tuple[Tensor, Tensor, Tensor]:
        """All layers on a padded batch; outputs at full width."""
        ways = 2 if self.bidirectional else 1
        last: list[Tensor] = []
        for layer, built in enumerate(self._layers()):
            names = self.directions[layer * ways : (layer + 1) * ways]
            kept = [self._choices[name].mask.nonzero().flatten() for name in names]
            hidden = cell = first = None
            if hx is not None:
                h0, c0 = (s[layer * ways : (layer + 1) * ways] for s in hx)
                hidden = torch.cat([h0[i].index_select(1, k) for i, k in enumerate(kept)], 1)
                cell = torch.cat([c0[i].index_select(1, k) for i, k in enumerate(kept)], 1)
                if any(w.shape[1] for w in built.gone):
                    shares = [h0[i][:, ~self._choices[n].mask] @ built.gone[i].T for i, n in enumerate(names)]
                    first = torch.cat(shares, 1)
            x, h, c = torch.ops.dynprune.lstm(
                x, built.weight, built.bias, lengths, hidden, cell, batch_first=batch_first, first=first
            )
            sizes = [len(k) for k in kept]
            for i, (own_h, own_c) in enumerate(zip(h.split(sizes, 1), c.split(sizes, 1), strict=True)):
                choice = self._choices[names[i]]
                last.append(_widen(own_h, choice.mask, choice.constants))
                last.append(_widen(own_c, choice.mask, choice.cells))
        mask = torch.cat([self._choices[name].mask for name in names])
        y = _widen(x, mask, torch.cat([self._choices[name].constants for name in names]))
        if lengths is not None and not bool(mask.all()):
            time = torch.arange(y.shape[1 if batch_first else 0])
            padding = time[None, :] >= lengths[:, None]
            y[padding if batch_first else padding.T] = 0.0
        return y, torch.stack(last[0::2]), torch.stack(last[1::2])

    def _layers(self) -> list[_Built]:
        parameters = list(self.parameters())
        state = [(p.data_ptr(), None if p.is_inference() else p._version) for p in parameters]
        if self._built is None or self._built[0] != state:
            with torch.inference_mode(False), torch.no_grad():
                self._built = (state, self._build())
        return self._built[1]

    def _build(self) -> list[_Built]:
        layers, ways = [], 2 if self.bidirectional else 1
        inputs = Inputs()
        for layer in range(self.num_layers):
            names = self.directions[layer * ways : (layer + 1) * ways]
            parts = [self._build_direction(name, inputs) for name in names]
            layers.append(_Built(*(list(part) for part in zip(*parts, strict=True))))
            mask = torch.cat([self._choices[name].mask for name in names])
            constants = torch.cat([self._choices[name].constants for name in names])
            inputs = Inputs(mask, Substitute(constants))
        return layers

    def _build_direction(self, name: str, inputs: Inputs) -> tuple[Tensor, Tensor, Tensor]:
        mask, own = self._choices[name].mask, Inputs(self._choices[name].mask, self._choices[name].substitute)
        weight_ih, weight_hh = (getattr(self, f"weight_{p}_{name}").detach() for p in ("ih", "hh"))
        bias = weight_ih.new_zeros(4 * self.hidden_size)
        if self.bias:
            bias = getattr(self, f"bias_ih_{name}").detach() + getattr(self, f"bias_hh_{name}").detach()
        gone = weight_hh.view(4, self.hidden_size, -1)[:, mask][:, :, ~mask].flatten(0, 1)
        packed = pack_direction(weight_ih, weight_hh, inputs, own)
        return packed, direction_bias(weight_ih, weight_hh, bias, inputs, own), gone


def _widen(x: Tensor, mask: Tensor, constants: Tensor) -> Tensor:
    """``[..., active]`` to ``[..., units]``, constants at the others."""
    if bool(mask.all()):
        return x
    full = constants.to(x.dtype).expand(*x.shape[:-1], len(mask)).contiguous()
    return full.index_copy(x.dim() - 1, mask.nonzero().flatten(), x)
