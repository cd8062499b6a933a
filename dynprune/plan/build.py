"""Building plans: packing weights, folding what stands in for pruned units into the layers that read them."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Hashable, Mapping
from typing import Any

import torch
from torch import Tensor, nn

from dynprune import ops
from dynprune.lowering.analyse import conv_padding
from dynprune.lowering.ir import (
    ActivationSite,
    ExpandSite,
    LayerSite,
    Layout,
    NormSite,
    Program,
)
from dynprune.ops import reference
from dynprune.plan.entries import (
    ActivationEntry,
    Conv2dEntry,
    Entry,
    ExpandEntry,
    LinearEntry,
    NormEntry,
)
from dynprune.plan.plan import Plan
from dynprune.plan.substitute import Substitute


@dataclasses.dataclass(frozen=True)
class Inputs:
    """What a layer reads: columns of its weight, and what stands in for the missing ones.

    ``active`` is None where the input is full width and has no pruned units.
    """

    active: Tensor | None = None  # bool [units of the group read]
    substitute: Substitute | None = None
    spatial: int = 1

    @property
    def pruned(self) -> Tensor | None:
        """The constants with zeros at active units ``[units]``; None if nothing is missing."""
        if self.active is None or self.substitute is None or bool(self.active.all()):
            return None
        return torch.where(self.active, 0.0, self.substitute.constants)

    def mixed(self, weight: Tensor) -> Tensor:
        """``weight`` ``[out, in, ...]`` with the shares of pruned units added to the active ones.

        The columns of pruned units are left as they were.
        """
        mixing = None if self.substitute is None else self.substitute.mixing
        if mixing is None or self.active is None or bool(self.active.all()) or not bool(self.active.any()):
            return weight
        gone, kept = (~self.active).nonzero().flatten(), self.active.nonzero().flatten()
        by_unit = weight.reshape(weight.shape[0], len(self.active), -1)  # pixels or taps last
        shares = mixing[gone[:, None], kept].to(weight.dtype)
        added = torch.einsum("npt,pa->nat", by_unit[:, gone], shares)
        return by_unit.index_add(1, kept, added).view_as(weight)

    def columns(self) -> Tensor | None:
        """Columns of the weight, in the order of the compact input; None: all, in their order."""
        if self.active is None:
            return None
        units = self.active.nonzero().flatten()
        if self.spatial == 1:
            return None if len(units) == len(self.active) else units
        pixels = torch.arange(self.spatial)
        return (units[None, :] * self.spatial + pixels[:, None]).flatten()


def _rows(active: Tensor | None) -> Tensor | None:
    if active is None or bool(active.all()):
        return None
    return active.nonzero().flatten()


def _native(weight: Tensor) -> bool:
    return ops.native is not None and weight.dtype == torch.float32


def linear_entry(site: LayerSite, active: Tensor | None, inputs: Inputs, **common: Any) -> LinearEntry:
    """The entry of a linear layer; ``active`` None computes every unit."""
    weight = site.module.weight.detach()
    scale, bias = site.fold()
    rows, columns = _rows(active), inputs.columns()
    bias = linear_bias(weight, scale, bias, rows, inputs)
    op: Callable[..., Tensor]
    if _native(weight):
        op = torch.ops.dynprune.linear.default
        packed = ops.pack_linear(inputs.mixed(weight), rows, columns, scale)
    else:
        op = reference.linear
        packed = _compact(inputs.mixed(weight), scale, rows, columns)
    units, depth = len(bias), weight.shape[1] if columns is None else len(columns)
    return LinearEntry(
        op=op,
        weight=packed,
        bias=bias,
        macs=units * depth,
        dense_operations=weight.shape[0] * weight.shape[1],
        **common,
    )


def linear_bias(
    weight: Tensor, scale: Tensor | None, bias: Tensor, rows: Tensor | None, inputs: Inputs
) -> Tensor:
    """``b + W[:, pruned] @ constants`` over the rows computed ``[active]``."""
    pruned = inputs.pruned
    if pruned is not None and bool(pruned.any()):
        missing = pruned.to(weight.dtype).repeat_interleave(inputs.spatial)
        taken = weight @ missing
        bias = bias + (taken if scale is None else taken * scale)
    return bias if rows is None else bias.index_select(0, rows)


def conv2d_entry(site: LayerSite, active: Tensor | None, inputs: Inputs, **common: Any) -> Conv2dEntry:
    """The entry of a convolution; ``active`` None computes every unit."""
    module = site.module
    assert isinstance(module, nn.Conv2d)
    weight = module.weight.detach()
    scale, bias = site.fold()
    rows, columns = _rows(active), inputs.columns()
    padding = conv_padding(module)
    assert padding is not None
    bias = conv2d_bias(module, scale, bias, rows, inputs)
    op: Callable[..., Tensor]
    if _native(weight):
        op = torch.ops.dynprune.conv2d.default
        packed = ops.pack_conv2d(inputs.mixed(weight), rows, columns, scale)
    else:
        op = reference.conv2d
        packed = reference.pack_conv2d(inputs.mixed(weight), rows, columns, scale)
    units, channels = bias.shape[-1], weight.shape[1] if columns is None else len(columns)
    taps = weight.shape[2] * weight.shape[3]
    return Conv2dEntry(
        op=op,
        weight=packed,
        bias=bias,
        stride=list(module.stride),
        padding=padding,
        dilation=list(module.dilation),
        macs=units * channels * taps,
        dense_operations=weight.shape[0] * weight.shape[1] * taps,
        **common,
    )


def conv2d_bias(
    module: nn.Conv2d, scale: Tensor | None, bias: Tensor, rows: Tensor | None, inputs: Inputs
) -> Tensor:
    """Bias ``[active]``, or the border table ``[low, high, low, high, active]``.

    Zero padding means that outside the image a pruned unit's constant is absent: the bias depends on
    the taps the border cuts off, whatever the size of the image.
    """
    weight, pruned = module.weight.detach(), inputs.pruned
    if rows is not None:
        bias = bias.index_select(0, rows)
    if pruned is None or not bool(pruned.any()):
        return bias
    gone = pruned.nonzero().flatten()
    chosen = weight if rows is None else weight.index_select(0, rows)
    taps = torch.einsum("ocij,c->oij", chosen.index_select(1, gone).double(), pruned[gone].double())
    if scale is not None:
        taps = taps * (scale if rows is None else scale[rows]).double()[:, None, None]
    table = border_table(taps, conv_padding(module) or [0, 0], list(module.dilation))
    full = table + bias.double()
    return (full.flatten() if table.dim() == 1 else full).to(weight.dtype)


def border_table(taps: Tensor, padding: list[int], dilation: list[int]) -> Tensor:
    """Sums of ``taps`` ``[n, kh, kw]`` over what is left when a border cuts some off.

    Returns:
        ``[low_h, high_h, low_w, high_w, n]``, indexed by the number of taps cut off at each end;
        ``[n]`` without padding.
    """
    if padding == [0, 0]:
        return taps.sum((1, 2))
    sums = torch.nn.functional.pad(taps, (1, 0, 1, 0)).cumsum(1).cumsum(2)
    spans = []
    for axis in (0, 1):
        kernel = taps.shape[1 + axis]
        most = min(kernel, -(-padding[axis] // dilation[axis]))
        low = torch.arange(most + 1)[:, None].expand(most + 1, most + 1)
        high = (kernel - torch.arange(most + 1)[None, :]).expand(most + 1, most + 1)
        spans.append((low, torch.maximum(high, low)))
    (low_h, high_h), (low_w, high_w) = spans

    def at(h: Tensor, w: Tensor) -> Tensor:
        return sums[:, h[:, :, None, None], w[None, None, :, :]]

    table = at(high_h, high_w) - at(low_h, high_w) - at(high_h, low_w) + at(low_h, low_w)
    return table.permute(1, 2, 3, 4, 0)


def _compact(weight: Tensor, scale: Tensor | None, rows: Tensor | None, columns: Tensor | None) -> Tensor:
    if scale is not None:
        weight = weight * scale[:, None]
    if rows is not None:
        weight = weight.index_select(0, rows)
    return weight if columns is None else weight.index_select(1, columns)


def _fingerprint(t: Tensor | None) -> bytes | None:
    return None if t is None else t.numpy(force=True).tobytes()


class PlanBuilder:
    """Builds plans for one program.

    Args:
        program: of the model.
        products: whether sums of products are wanted at every read point.
    """

    def __init__(self, program: Program, *, products: bool = False) -> None:
        self.program = program
        self.products = products

    def build(
        self,
        active: Mapping[str, Tensor],
        substitutes: Mapping[str, Substitute],
        previous: Plan | None = None,
    ) -> Plan:
        """The plan for ``active`` (group -> bool ``[units]``) and ``substitutes`` (by read point).

        Entries that come out the same are taken over from ``previous``.
        """
        entries: list[Entry] = []
        keys: list[tuple[Hashable, ...]] = []
        with torch.no_grad():
            for index in range(len(self.program.sites)):
                old = None if previous is None else previous.entries[index]
                key = self._key(index, active, substitutes)
                if previous is None or previous.keys[index] != key:
                    old_key = None if previous is None else previous.keys[index]
                    entry = self._entry(index, active, substitutes, old, old_key, key)
                else:
                    assert old is not None
                    entry = old
                entries.append(entry)
                keys.append(key)
        return Plan(tuple(entries), dict(active), dict(substitutes), tuple(keys))

    def _input_layout(self, index: int) -> tuple[Layout | None, int | None]:
        site = self.program.sites[index]
        if isinstance(site, (LayerSite, ExpandSite)):
            if site.read is None:
                return None, None
            return self.program.reads[site.read].layout, site.read
        return site.layout, None

    def _key(
        self, index: int, active: Mapping[str, Tensor], substitutes: Mapping[str, Substitute]
    ) -> tuple[Hashable, ...]:
        """(units computed, units read, mixing, constants of the pruned): equal keys, equal entries."""
        site = self.program.sites[index]
        layout, read = self._input_layout(index)
        own = active[site.group] if isinstance(site, LayerSite) and site.group else None
        mask = None if layout is None else active[layout.group]
        pruned = mixing = None
        if read is not None and mask is not None and not bool(mask.all()):
            substitute = substitutes[self.program.reads[read].name]
            mixing = substitute.mixing
            pruned = torch.where(mask, 0.0, substitute.constants)
        return _fingerprint(own), _fingerprint(mask), _fingerprint(mixing), _fingerprint(pruned)

    def _entry(
        self,
        index: int,
        active: Mapping[str, Tensor],
        substitutes: Mapping[str, Substitute],
        old: Entry | None,
        old_key: tuple[Hashable, ...] | None,
        key: tuple[Hashable, ...],
    ) -> Entry:
        site = self.program.sites[index]
        layout, read = self._input_layout(index)
        mask = None if layout is None else active[layout.group]
        substitute = None if read is None else substitutes[self.program.reads[read].name]
        known = read is not None and self.program.reads[read].same_as_usage and not self.products
        measured = None if known else read
        if isinstance(site, LayerSite):
            own = active[site.group] if site.group else None
            inputs = Inputs(mask, substitute, 1 if layout is None else layout.spatial)
            if old_key is not None and old_key[:3] == key[:3]:
                assert isinstance(old, (LinearEntry, Conv2dEntry))
                return dataclasses.replace(old, bias=self._bias(site, own, inputs))
            usage_group = None
            if site.group and self.program.groups[site.group].usage_site == index:
                usage_group = site.group
            make = conv2d_entry if isinstance(site.module, nn.Conv2d) else linear_entry
            return make(
                site,
                own,
                inputs,
                activation=site.activation.kind,
                slope=site.activation.slope,
                group=usage_group,
                read=measured,
                read_layout=layout,
            )
        assert layout is not None and mask is not None
        chosen = mask.nonzero().flatten()
        if isinstance(site, ExpandSite):
            assert substitute is not None
            mixing = None if substitute.mixing is None or bool(mask.all()) else substitute.mixing[:, chosen]
            return ExpandEntry(chosen, substitute.constants.clone(), mixing, layout, measured)
        if isinstance(site, NormSite):
            return norm_entry(site, chosen)
        assert isinstance(site, ActivationSite)
        return ActivationEntry(site.activation.kind, site.activation.slope, layout.group, layout)

    def _bias(self, site: LayerSite, own: Tensor | None, inputs: Inputs) -> Tensor:
        scale, bias = site.fold()
        if isinstance(site.module, nn.Conv2d):
            return conv2d_bias(site.module, scale, bias, _rows(own), inputs)
        return linear_bias(site.module.weight.detach(), scale, bias, _rows(own), inputs)


def norm_entry(site: NormSite, chosen: Tensor) -> NormEntry:
    """The entry of a batch norm on the active units ``chosen`` ``[active]``."""
    module = site.module
    assert module.running_mean is not None and module.running_var is not None
    return NormEntry(
        module.running_mean[chosen],
        module.running_var[chosen],
        None if module.weight is None else module.weight.detach()[chosen],
        None if module.bias is None else module.bias.detach()[chosen],
        module.eps,
    )
