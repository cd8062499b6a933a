"""Building plans: an entry for every site, and taking over what stays the same from the plan before."""

from __future__ import annotations

import dataclasses
from collections.abc import Hashable, Mapping
from typing import Any

import torch
from torch import Tensor, nn

from dynprune.lowering.ir import (
    ExpandSite,
    LayerSite,
    Layout,
    LSTMSite,
    NormSite,
    Program,
    UsageSite,
)
from dynprune.ops.devices import Ready, fetch, upload
from dynprune.plan.conv2d import conv2d_bias, conv2d_entry
from dynprune.plan.entries import (
    Conv2dEntry,
    Entry,
    ExpandEntry,
    LinearEntry,
    LSTMEntry,
    NormEntry,
    UsageEntry,
    tensors_of,
)
from dynprune.plan.inputs import Inputs, picked, rows_of
from dynprune.plan.linear import linear_bias, linear_entry
from dynprune.plan.lstm import lstm_bias, lstm_entry
from dynprune.plan.plan import Key, Plan
from dynprune.plan.substitute import Substitute


def _fingerprint(t: Tensor | None) -> bytes | None:
    return None if t is None else t.numpy(force=True).tobytes()


class PlanBuilder:
    """Builds plans for one program.

    Args:
        program: of the model.
        products: whether sums of products are wanted at every read point.
        input_major: whether linear layers keep their weight a second time, for few rows.
        packed: whether weights are laid out for the CPU's kernels, where those take them; else they are
            compact masters, ``[n, in]`` and ``[n, in, kh, kw]``, as always on a GPU.
    """

    def __init__(
        self,
        program: Program,
        *,
        products: bool = False,
        input_major: bool = False,
        packed: bool = True,
    ) -> None:
        self.program = program
        self.products = products
        self.input_major = input_major
        self.packed = packed
        self.device = program.device

    def build(
        self,
        active: Mapping[str, Tensor],
        substitutes: Mapping[str, Substitute],
        previous: Plan | None = None,
    ) -> Plan:
        """The plan for ``active`` (group -> bool ``[units]``) and ``substitutes`` (by read point).

        Entries that come out the same are taken over from ``previous``.
        """
        if previous is not None and previous.ready is not None:
            previous.ready.join()  # what is taken over may have been written by another stream
        entries: list[Entry] = []
        keys: list[Key] = []
        with torch.no_grad():
            for index in range(len(self.program.sites)):
                key = self._key(index, active, substitutes)
                if previous is not None and previous.keys[index] == key:
                    entry = previous.entries[index]
                else:
                    alike = previous is not None and previous.keys[index][0] == key[0]
                    old = previous.entries[index] if previous is not None and alike else None
                    entry = self._entry(index, active, substitutes, old)
                entries.append(entry)
                keys.append(key)
        tensors = [t for entry in entries for t in tensors_of(entry) if t.is_cuda]
        ready = Ready(tensors) if tensors else None
        return Plan(tuple(entries), dict(active), dict(substitutes), tuple(keys), ready=ready)

    def _input_layout(self, index: int) -> tuple[Layout | None, int | None]:
        site = self.program.sites[index]
        if isinstance(site, (LayerSite, LSTMSite, ExpandSite)):
            if site.read is None:
                return (site.follows if isinstance(site, LayerSite) else None), None
            return self.program.reads[site.read].layout, site.read
        return site.layout, None

    def _key(self, index: int, active: Mapping[str, Tensor], substitutes: Mapping[str, Substitute]) -> Key:
        """What an entry's weights depend on, and what its bias does beyond that."""
        site = self.program.sites[index]
        layout, read = self._input_layout(index)
        weights: list[Hashable] = []
        constants: list[Hashable] = []
        if isinstance(site, LayerSite):
            weights.append(_fingerprint(active[site.group] if site.group else None))
        if layout is not None:
            weights.append(_fingerprint(layout.join(active)))
        recurrent = site.recurrent if isinstance(site, LSTMSite) else ()
        for point in (read, *recurrent):
            if point is None:
                continue
            inputs = self.inputs_of(point, active, substitutes)
            pruned = inputs.pruned
            mixing = None if pruned is None or inputs.substitute is None else inputs.substitute.mixing
            weights += [_fingerprint(inputs.active), _fingerprint(mixing)]
            constants.append(_fingerprint(pruned))
        return tuple(weights), tuple(constants)

    def inputs_of(
        self, read: int | None, active: Mapping[str, Tensor], substitutes: Mapping[str, Substitute]
    ) -> Inputs:
        """What is read at a read point; None: a full-width tensor."""
        if read is None:
            return Inputs()
        point = self.program.reads[read]
        return Inputs(point.layout.join(active), substitutes[point.name], point.layout.spatial)

    def _measured(self, read: int | None) -> int | None:
        """The read point, if it takes a pass of its own to know its values."""
        if read is None or (self.program.reads[read].same_as_usage and not self.products):
            return None
        return read

    def _entry(
        self,
        index: int,
        active: Mapping[str, Tensor],
        substitutes: Mapping[str, Substitute],
        old: Entry | None,
    ) -> Entry:
        """The entry of a site; ``old`` has the same weights, only its bias is to be found anew."""
        site = self.program.sites[index]
        layout, read = self._input_layout(index)
        inputs = self.inputs_of(read, active, substitutes)
        common: dict[str, Any] = {"read": self._measured(read), "read_layout": layout}
        if isinstance(site, LayerSite):
            own = active[site.group] if site.group else None
            if site.follows is not None:
                own = site.follows.join(active)
            if old is not None:
                assert isinstance(old, (LinearEntry, Conv2dEntry))
                return dataclasses.replace(old, bias=_layer_bias(site, own, inputs))
            kind, slope = site.activation
            common |= {"activation": kind, "slope": slope, "group": usage_name(self.program, index, site)}
            common["packed"] = self.packed
            if isinstance(site.module, nn.Conv2d):
                return conv2d_entry(site, own, inputs, **common)
            return linear_entry(site, own, inputs, input_major=self.input_major, **common)
        if isinstance(site, LSTMSite):
            steps = self.steps_of(site, active, substitutes)
            if old is not None:
                assert isinstance(old, LSTMEntry)
                return dataclasses.replace(old, bias=lstm_bias(site, inputs, steps))
            measured = site.recurrent if self.products else ()
            return lstm_entry(site, inputs, steps, groups=site.groups, recurrent=measured, **common)
        assert layout is not None
        mask = layout.join(active)
        chosen = mask.nonzero().flatten()
        if isinstance(site, ExpandSite):
            substitute = substitutes[self.program.reads[site.read].name]
            mixing = None if substitute.mixing is None or bool(mask.all()) else substitute.mixing[:, chosen]
            return ExpandEntry(
                upload(chosen, self.device),
                upload(substitute.constants.clone(), self.device),
                None if mixing is None else upload(mixing, self.device),
                layout,
                self._measured(read),
            )
        if isinstance(site, NormSite):
            return norm_entry(site, chosen)
        assert isinstance(site, UsageSite)
        return UsageEntry(layout.name, layout)

    def steps_of(
        self, site: LSTMSite, active: Mapping[str, Tensor], substitutes: Mapping[str, Substitute]
    ) -> list[Inputs]:
        """What each direction of an LSTM layer reads of its own last step."""
        points = site.recurrent or (None,) * len(site.layer.suffixes)
        return [self.inputs_of(point, active, substitutes) for point in points]


def usage_name(program: Program, index: int, site: LayerSite) -> str | None:
    """Under which name the epilogue of a layer, the site ``index``, sums its outputs; None: not at all."""
    if site.group is None:
        return None
    if program.groups[site.group].usage_site == index:
        return site.group
    # Its group's usage is taken further on, from dense rows; what comes out here serves the drift
    # detector, on all rows.
    return f"{site.name}:output"


def _layer_bias(site: LayerSite, own: Tensor | None, inputs: Inputs) -> Tensor:
    scale, bias = site.fold()
    if isinstance(site.module, nn.Conv2d):
        return conv2d_bias(site.module, scale, bias, rows_of(own), inputs)
    return linear_bias(site.module.weight.detach(), scale, bias, rows_of(own), inputs)


def squared_columns(program: Program, read: int) -> Tensor | None:
    """``||W[:, j]||^2`` of the layer behind a read point, over its dense rows and taps.

    Float64 ``[units * spatial]`` on the host, in the order of its weight; None where it is no layer.
    """
    square = _squared_columns(program, read)
    return None if square is None else fetch(square)


def _squared_columns(program: Program, read: int) -> Tensor | None:
    site = program.sites[program.reads[read].consumer]
    if isinstance(site, LayerSite):
        square = site.module.weight.detach().double().square().flatten(1)
        scale, _ = site.fold()
        if scale is not None:
            square = square * scale.double().square()[:, None]
        # A convolution has one column per tap, a linear layer one per pixel of a flattened image.
        return square.sum(0)
    if isinstance(site, LSTMSite):
        if read in site.recurrent:
            return site.layer.weights(site.recurrent.index(read))[1].double().square().sum(0)
        ways = range(len(site.layer.suffixes))
        return torch.stack([site.layer.weights(way)[0].double().square().sum(0) for way in ways]).sum(0)
    return None


def norm_entry(site: NormSite, chosen: Tensor) -> NormEntry:
    """The entry of a batch norm on the active units ``chosen`` ``[active]``."""
    module = site.module
    assert module.running_mean is not None and module.running_var is not None
    return NormEntry(
        picked(module.running_mean, chosen),
        picked(module.running_var, chosen),
        None if module.weight is None else picked(module.weight.detach(), chosen),
        None if module.bias is None else picked(module.bias.detach(), chosen),
        module.eps,
    )
