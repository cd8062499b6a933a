"""Where the active units lie in tensors of a size that never changes, as a captured graph needs them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import torch
from torch import Tensor

from dynprune.lowering.ir import Group, Layout
from dynprune.ops.devices import upload

# Kernels load whole vectors: numbers of units are rounded up to this. Those in between have weights of zero.
COUNT_ALIGN = 16


def rounded_up(units: int) -> int:
    """``units`` as a kernel counts them."""
    return -(-units // COUNT_ALIGN) * COUNT_ALIGN


class Slots:
    """A layout at full capacity: each group has room for all its units, the active ones first.

    Args:
        layout: of a compact tensor.
        groups: name -> group.
    """

    def __init__(self, layout: Layout, groups: Mapping[str, Group]) -> None:
        self.layout = layout
        self.sizes = [rounded_up(groups[name].units) for name in layout.groups]
        self.width = sum(self.sizes)

    def places(self, active: Mapping[str, Tensor]) -> Tensor:
        """Int64 ``[active units * spatial]`` on the host: where each element of the compact tensor lies."""
        begin, parts = 0, []
        for name, size in zip(self.layout.groups, self.sizes, strict=True):
            parts.append(begin + torch.arange(int(active[name].sum())))
            begin += size
        units = torch.cat(parts)
        return (self.width * torch.arange(self.layout.spatial)[:, None] + units).flatten()

    def occupied(self, active: Mapping[str, Tensor]) -> Tensor:
        """Bool ``[width]`` on the host: whether an active unit lies there."""
        there = torch.zeros(self.width, dtype=torch.bool)
        units = self.places(active)
        there[units[units < self.width]] = True
        return there


def first_active(mask: Tensor, size: int) -> Tensor:
    """The active units of ``mask`` in order, then zeros: int64 ``[size]`` on the host."""
    units = torch.zeros(size, dtype=torch.int64)
    chosen = mask.nonzero().flatten()
    units[: len(chosen)] = chosen
    return units


class Counts:
    """How many units of each group there are, rounded up: int32 ``[1]`` each, at fixed addresses."""

    def __init__(self, groups: Mapping[str, Group], like: Tensor) -> None:
        self._all = like.new_zeros(len(groups), dtype=torch.int32)
        self._index = {name: i for i, name in enumerate(groups)}

    def of(self, name: str) -> Tensor:
        """That of one group."""
        i = self._index[name]
        return self._all[i : i + 1]

    def of_all(self, names: Sequence[str]) -> Tensor:
        """Those of groups that follow each other, such as the directions of an LSTM ``[groups]``."""
        first = self._index[names[0]]
        assert [self._index[name] for name in names] == list(range(first, first + len(names)))
        return self._all[first : first + len(names)]

    def load(self, active: Mapping[str, Tensor]) -> None:
        """Write those of a choice."""
        if self._index:
            counts = [rounded_up(int(active[name].sum())) for name in self._index]
            self._all.copy_(upload(torch.tensor(counts, dtype=torch.int32), self._all.device))


def put(buffer: Tensor, values: Tensor, places: Tensor, dim: int) -> None:
    """Write ``values`` at ``places`` (of the host) along ``dim``, and zero elsewhere."""
    buffer.zero_()
    buffer.index_copy_(dim, upload(places, buffer.device), values.to(buffer.dtype))
