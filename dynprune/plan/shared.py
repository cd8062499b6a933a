"""The dense plan on the model's own weights: slower than on packed ones, but it holds no copy of them."""

from __future__ import annotations

import dataclasses
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

from dynprune.lowering.ir import LayerSite, LSTMSite, Program
from dynprune.lowering.recurrent import LSTMLayer, run_lstm
from dynprune.ops import reference
from dynprune.ops.devices import Ready
from dynprune.plan.entries import Conv2dEntry, Entry, LinearEntry, LSTMEntry, tensors_of
from dynprune.plan.plan import Plan


def share_weights(program: Program, dense: Plan) -> Plan:
    """The plan ``dense``, in which every unit is active, with PyTorch's ops on the model's weights."""
    pairs = zip(program.sites, dense.entries, strict=True)
    entries = tuple(_share(site, entry) for site, entry in pairs)
    # Not that of the packed entries, whose weights it would keep.
    tensors = [t for entry in entries for t in tensors_of(entry) if t.is_cuda]
    return dataclasses.replace(dense, entries=entries, ready=Ready(tensors) if tensors else None)


def _share(site: Any, entry: Entry) -> Entry:
    if isinstance(site, LayerSite):
        scale, _ = site.fold()
        weight = site.module.weight.detach()
        if isinstance(entry, LinearEntry):
            layout = entry.read_layout
            spatial = 1 if layout is None else layout.spatial
            op = partial(_linear, scale=scale, spatial=spatial)
            return dataclasses.replace(entry, weight=weight, input_major=None, op=op)
        assert isinstance(entry, Conv2dEntry) and isinstance(site.module, nn.Conv2d)
        groups = site.module.groups
        return dataclasses.replace(entry, weight=weight, groups=groups, op=partial(_conv2d, scale=scale))
    if isinstance(site, LSTMSite):
        assert isinstance(entry, LSTMEntry)
        return dataclasses.replace(entry, weight=[], op=partial(_lstm, site.layer))
    return entry


def _linear(
    x: Tensor, weight: Tensor, bias: Tensor, *, scale: Tensor | None, spatial: int, **options: Any
) -> Tensor:
    if spatial > 1:  # units fastest, to PyTorch's order
        x = x.view(x.shape[0], spatial, -1).transpose(1, 2).flatten(1)
    if scale is None:
        return reference.linear(x, weight, bias, **options)
    return _finish(reference.linear(x, weight) * scale + bias, -1, x.dtype, **options)


def _conv2d(
    x: Tensor,
    weight: Tensor,
    bias: Tensor,
    *geometry: Any,
    scale: Tensor | None,
    indices: Tensor | None,
    input_indices: Tensor | None,
    **options: Any,
) -> Tensor:
    assert indices is None and input_indices is None  # every unit is active
    if scale is None:
        return reference.conv2d(x, weight, bias, *geometry, **options)
    y = reference.conv2d(x, weight, None, *geometry)
    return _finish(y * scale[:, None, None] + bias[:, None, None], 1, x.dtype, **options)


def _finish(
    y: Tensor,
    dim: int,
    dtype: torch.dtype,
    *,
    activation: str = "none",
    slope: float = 0.01,
    usage: Tensor | None = None,
) -> Tensor:
    y = reference.activate(y, activation, slope)
    if usage is not None:
        usage += reference.usage_sums(y, dim)
    return y.to(dtype)


def _lstm(
    layer: LSTMLayer,
    x: Tensor,
    weight: list[Tensor],
    bias: list[Tensor],
    lengths: Tensor | None = None,
    hidden: Tensor | None = None,
    cell: Tensor | None = None,
    *,
    batch_first: bool,
    usage: Tensor | None = None,
) -> tuple[Tensor, Tensor, Tensor]:
    ways = len(layer.suffixes)
    y, *states = run_lstm(layer.lstm, x, lengths, hidden, cell)
    if usage is not None:
        sums = reference.usage_sums(y, -1)
        if lengths is not None:  # padding is zeros, which only count
            sums[3] -= x.shape[0] * x.shape[1] - int(lengths.sum())
        usage += sums
    return y, torch.cat(states[:ways], 1), torch.cat(states[ways:], 1)
