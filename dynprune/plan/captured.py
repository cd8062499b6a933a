"""A plan on buffers that stay where they are: a captured graph runs on it, and goes on when units flip.

Every tensor has room for all units, the active ones first; how many those are stands in device memory, where
the kernels read it. What lies behind them is whatever was there, also NaN: no kernel reads it, and where a
reader cannot go by one number of inputs, it is taken for zero.
"""

from __future__ import annotations

import dataclasses
import functools
import operator
from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch import Tensor, nn

from dynprune.lowering.convolution import conv_padding, is_depthwise
from dynprune.lowering.ir import ExpandSite, LayerSite, Layout, LSTMSite, NormSite, Site
from dynprune.ops import lstm_reference, reference
from dynprune.ops.devices import upload
from dynprune.plan.build import PlanBuilder, usage_name
from dynprune.plan.captured_entries import (
    CapturedEntry,
    CapturedExpand,
    Load,
    by_pixel,
    pick_units,
    picked_rows,
)
from dynprune.plan.conv2d import border_masks
from dynprune.plan.entries import (
    Conv2dEntry,
    Entry,
    ExpandEntry,
    LinearEntry,
    LSTMEntry,
    NormEntry,
    UsageEntry,
)
from dynprune.plan.inputs import write_weight, zeros_for_tensor_cores
from dynprune.plan.lstm import compact_gates, packed_gates, starts_with
from dynprune.plan.plan import Plan
from dynprune.plan.slots import Counts, Slots, first_active, put, rounded_up

_NOT_FINITE_AT_ZERO = {operator.truediv, operator.pow, torch.div, torch.pow, torch.true_divide, "div", "pow"}


class CapturedPlan:
    """The entries of a program on buffers of full capacity; for the program it is a plan like others.

    Args:
        builder: of the program's plans.
        plan: whose choice is loaded first.
    """

    ready = None

    def __init__(self, builder: PlanBuilder, plan: Plan) -> None:
        self.program = builder.program
        self._device = builder.device
        self._compact = PlanBuilder(self.program, packed=False)
        self._mixes = builder.products
        # Numbers of units are rounded up: what is between, of weights of zero, may be 0 / 0.
        self._divides = any(node.target in _NOT_FINITE_AT_ZERO for node in self.program.traced.graph.nodes)
        self._loaded: Plan | None = None
        first = self._plain(plan)
        like = next((e.bias for e in first.entries if isinstance(e, (LinearEntry, Conv2dEntry))), None)
        self._like = torch.zeros(0, device=self._device) if like is None else like
        self.counts = Counts(self.program.groups, self._like)
        sites = zip(self.program.sites, first.entries, strict=True)
        self.entries = tuple(self._entry(index, site, entry) for index, (site, entry) in enumerate(sites))
        self.load(plan)

    def load(self, plan: Plan, *, anew: bool = False) -> None:
        """Write another choice into the buffers, in the order of the current stream; nothing waits.

        ``anew``: the model's weights have changed.
        """
        if plan.ready is not None:
            plan.ready.join()
        if anew:
            self._loaded = None
        plain, before = self._plain(plan), self._loaded
        with torch.inference_mode(False), torch.no_grad():
            for index, (captured, entry) in enumerate(zip(self.entries, plain.entries, strict=True)):
                if before is None or before.entries[index] is not entry:
                    captured.reload(entry, plain)
            self.counts.load(plan.active)
        self._loaded = plain

    def _plain(self, plan: Plan) -> Plan:
        """The plan on compact masters, which it has on a GPU already."""
        if self._device.type == "cuda":
            return plan
        return self._compact.build(plan.active, plan.substitutes, self._loaded)

    def operations(self, plan: Plan) -> tuple[int, int]:
        """Multiply-adds of the forward that was captured: under ``plan``, and dense."""
        taken = dense = 0
        for captured, entry in zip(self.entries, plan.entries, strict=True):
            if isinstance(entry, (LinearEntry, Conv2dEntry, LSTMEntry)):
                taken += captured.positions * entry.macs
                dense += captured.positions * entry.dense_operations
        return taken, dense

    def usage(self, usage: Mapping[str, Tensor], plan: Plan) -> dict[str, Tensor]:
        """Usage ``[4, capacity]`` as kernels summed it, of the active units ``[4, active]`` alone."""
        found = {}
        for name, layout in self._summed():
            if name in usage:
                places = Slots(layout, self.program.groups).places(plan.active)
                found[name] = usage[name].index_select(1, upload(places, self._device))
        return found

    def _summed(self) -> list[tuple[str, Layout]]:
        """Under which names usage is summed, and how the units lie in it."""
        result: list[tuple[str, Layout]] = []
        for index, site in enumerate(self.program.sites):
            if isinstance(site, LayerSite) and site.group is not None:
                name = usage_name(self.program, index, site)
                if name is not None:
                    result.append((name, site.follows or Layout((site.group,), 1)))
            elif isinstance(site, LSTMSite):
                result += [(name, Layout((name,), 1)) for name in site.groups]
        return result

    # Entries --------------------------------------------------------------------------------------

    def _entry(self, index: int, site: Site, entry: Entry) -> CapturedEntry:
        with torch.inference_mode(False), torch.no_grad():
            if isinstance(entry, LinearEntry) and isinstance(site, LayerSite):
                return self._linear(site, entry)
            if isinstance(entry, Conv2dEntry) and isinstance(site, LayerSite):
                return self._conv2d(site, entry)
            if isinstance(entry, LSTMEntry) and isinstance(site, LSTMSite):
                return self._lstm(site, entry)
            if isinstance(entry, NormEntry) and isinstance(site, NormSite):
                return self._norm(site, entry)
            if isinstance(entry, ExpandEntry) and isinstance(site, ExpandSite):
                return self._expand(site, entry)
            assert isinstance(entry, UsageEntry)
            return CapturedEntry(entry, lambda entry, plan: None)

    def _slots(self, read: int | None) -> Slots | None:
        """How what is read at a read point lies; None: at full width."""
        return None if read is None else Slots(self.program.reads[read].layout, self.program.groups)

    def _inputs(self, slots: Slots | None) -> tuple[Slots | None, dict[str, Tensor]]:
        """The slots if they have to be cleared before they are read, and the count that says otherwise."""
        if slots is None:
            return None, {}
        if len(slots.layout.groups) == 1:
            count = {"depth_count": self.counts.of(slots.layout.groups[0])}
            return (slots if self._divides else None), count
        return slots, {}

    def _outputs(self, site: LayerSite) -> tuple[int, dict[str, Tensor]]:
        """Room for the units of a layer, and their count where they may be pruned."""
        if site.group is None:
            return site.units, {}
        return rounded_up(site.units), {"unit_count": self.counts.of(site.group)}

    def _linear(self, site: LayerSite, entry: LinearEntry) -> CapturedEntry:
        slots = self._slots(site.read)
        cleared, depth = self._inputs(slots)
        units, count = self._outputs(site)
        spatial = 1 if slots is None else slots.layout.spatial
        width = entry.weight.shape[1] if slots is None else slots.width * spatial
        weight = zeros_for_tensor_cores(entry.weight, units, width)
        bias = entry.bias.new_zeros(units)
        op: Callable[..., Tensor] = entry.op
        if spatial > 1:
            # The active units of a flattened image are the first ones of each pixel, not the first of all.
            convolve = reference.conv2d if op is reference.linear else torch.ops.dynprune.conv2d.default
            op = functools.partial(by_pixel, convolve, spatial)
        run = dataclasses.replace(
            entry, op=functools.partial(op, **depth, **count), weight=weight, bias=bias, input_major=None
        )
        return CapturedEntry(run, _writes(weight, bias, slots), cleared, bias)

    def _conv2d(self, site: LayerSite, entry: Conv2dEntry) -> CapturedEntry:
        if site.module.groups != 1:
            return self._depthwise(site, entry) if is_depthwise(site.module) else self._groups(site, entry)
        assert isinstance(site.module, nn.Conv2d)
        slots = self._slots(site.read)
        cleared, depth = self._inputs(slots)
        units, count = self._outputs(site)
        channels, kernel = (entry.weight.shape[1] if slots is None else slots.width), entry.weight.shape[2:]
        weight = zeros_for_tensor_cores(entry.weight, units, channels)
        bias = entry.bias.new_zeros(units)
        padding = tuple(conv_padding(site.module) or (0, 0))
        if slots is not None and any(padding):
            zones = border_masks(tuple(kernel), padding, site.module.dilation).shape[1:]
            bias = entry.bias.new_zeros((*zones, units))
        run = dataclasses.replace(
            entry, op=functools.partial(entry.op, **depth, **count), weight=weight, bias=bias
        )
        return CapturedEntry(run, _writes(weight, bias, slots), cleared, bias)

    def _depthwise(self, site: LayerSite, entry: Conv2dEntry) -> CapturedEntry:
        """Channels of a compact input follow its units; those of a full-width one are picked."""
        groups = self.program.groups
        layout = site.follows or (None if site.group is None else Layout((site.group,), 1))
        slots = None if layout is None else Slots(layout, groups)
        units = site.units if slots is None else slots.width
        weight = entry.weight.new_zeros((units, *entry.weight.shape[1:]))
        bias = entry.bias.new_zeros(units)
        channels: Tensor | None = None
        if site.group is not None and site.follows is None:
            channels = bias.new_zeros(units, dtype=torch.int64)
        run = dataclasses.replace(entry, weight=weight, bias=bias, groups=units, input_indices=channels)

        def load(entry: Conv2dEntry, plan: Plan) -> None:
            places = torch.arange(site.units) if slots is None else slots.places(plan.active)
            put(weight, entry.weight, places, 0)
            put(bias, entry.bias, places, 0)
            if channels is not None and site.group is not None:
                channels.copy_(upload(first_active(plan.active[site.group], units), channels.device))

        return CapturedEntry(run, load)

    def _groups(self, site: LayerSite, entry: Conv2dEntry) -> CapturedEntry:
        """All units of a convolution in groups are computed, and the active ones picked."""
        weight, bias = torch.zeros_like(entry.weight), entry.bias.new_zeros(site.units)
        run = dataclasses.replace(entry, weight=weight, bias=bias, indices=None)
        chosen: Tensor | None = None
        if site.group is not None:
            chosen = bias.new_zeros(rounded_up(site.units), dtype=torch.int64)
            run = dataclasses.replace(run, op=functools.partial(pick_units, entry.op, chosen))

        def load(entry: Conv2dEntry, plan: Plan) -> None:
            weight.copy_(entry.weight)
            bias.copy_(entry.bias)
            if chosen is not None and site.group is not None:
                chosen.copy_(upload(first_active(plan.active[site.group], len(chosen)), chosen.device))

        return CapturedEntry(run, load)

    def _lstm(self, site: LSTMSite, entry: LSTMEntry) -> CapturedEntry:
        slots = self._slots(site.read)
        cleared, depth = self._inputs(slots)
        hidden = site.layer.hidden_size
        units = rounded_up(hidden) if site.groups else hidden
        features = site.layer.lstm.input_size if slots is None else slots.width
        like, ways = site.layer.weights(0)[0], range(len(entry.bias))
        packed = packed_gates(like.new_zeros((4 * units, features)), like.new_zeros((4 * units, units)))
        weight = [torch.zeros_like(packed) for _ in ways]
        bias = [b.new_zeros((2, 4, units)) for b in entry.bias]
        starts = (
            starts_with(site, [torch.zeros(units, dtype=torch.int64) for _ in ways]) if site.groups else None
        )
        if starts is not None and not like.is_cuda:
            starts = dataclasses.replace(starts, op=picked_rows)
        op: Any = entry.op if like.is_cuda else lstm_reference.lstm
        counts = {"unit_counts": self.counts.of_all(site.groups)} if site.groups else {}
        run = dataclasses.replace(
            entry, op=functools.partial(op, **depth, **counts), weight=weight, bias=bias, starts=starts
        )

        def load(entry: LSTMEntry, plan: Plan) -> None:
            inputs = self._compact.inputs_of(site.read, plan.active, plan.substitutes)
            steps = self._compact.steps_of(site, plan.active, plan.substitutes)
            if starts is not None:
                kept = [first_active(plan.active[name], units) for name in site.groups]
                fresh = starts_with(site, kept)
                starts.kept.copy_(fresh.kept)
                for buffer, rows in zip(starts.gates, fresh.gates, strict=True):
                    buffer.copy_(rows)
            for way, own in enumerate(steps):
                from_input, from_state = compact_gates(*site.layer.weights(way)[:2], inputs, own)
                n = from_state.shape[1]
                gates = like.new_zeros((4, units, features)), like.new_zeros((4, units, units))
                places = torch.arange(features) if slots is None else slots.places(plan.active)
                put(gates[0][:, :n], from_input.view(4, n, from_input.shape[1]), places, 2)
                gates[1][:, :n, :n] = from_state.view(4, n, n)
                weight[way].copy_(packed_gates(*(g.flatten(0, 1) for g in gates)))
                bias[way].zero_()
                bias[way][:, :, :n] = entry.bias[way]

        return CapturedEntry(run, load, cleared, like)

    def _norm(self, site: NormSite, entry: NormEntry) -> CapturedEntry:
        slots = Slots(site.layout, self.program.groups)
        run = dataclasses.replace(
            entry,
            mean=entry.mean.new_zeros(slots.width),
            var=entry.var.new_zeros(slots.width),
            weight=None if entry.weight is None else entry.weight.new_zeros(slots.width),
            bias=None if entry.bias is None else entry.bias.new_zeros(slots.width),
        )

        def load(entry: NormEntry, plan: Plan) -> None:
            places = slots.places(plan.active)
            for name in ("mean", "var", "weight", "bias"):
                values = getattr(entry, name)
                if values is not None:
                    put(getattr(run, name), values, places, 0)

        return CapturedEntry(run, load)

    def _expand(self, site: ExpandSite, entry: ExpandEntry) -> CapturedEntry:
        slots = self._slots(site.read)
        assert slots is not None
        units, like = entry.constants.shape[0], entry.constants
        run = CapturedExpand(
            place=like.new_zeros(units, dtype=torch.int64),
            active=like.new_zeros(units, dtype=torch.bool),
            constants=like.new_zeros(units),
            mixing=like.new_zeros((units, slots.width)) if self._mixes else None,
            there=like.new_zeros(slots.width, dtype=torch.bool),
            layout=slots.layout,
        )

        def load(entry: ExpandEntry, plan: Plan) -> None:
            mask = slots.layout.join(plan.active)
            places = dataclasses.replace(slots.layout, spatial=1)
            lies = Slots(places, self.program.groups).places(plan.active)
            where = torch.zeros(units, dtype=torch.int64)
            where[mask] = lies
            for buffer, values in (
                (run.place, where),
                (run.active, mask),
                (run.there, slots.occupied(plan.active)),
            ):
                buffer.copy_(upload(values, buffer.device))
            run.constants.copy_(entry.constants)
            if run.mixing is not None:
                run.mixing.zero_()
                if entry.mixing is not None:
                    put(run.mixing, entry.mixing, lies, 1)

        return CapturedEntry(run, load)


def _writes(weight: Tensor, bias: Tensor, slots: Slots | None) -> Load:
    """What writes a layer's compact weight and bias into buffers, whose inputs lie as ``slots`` say."""

    def load(entry: LinearEntry | Conv2dEntry, plan: Plan) -> None:
        weight.zero_()
        bias.zero_()
        bias[..., : entry.bias.shape[-1]] = entry.bias
        places = None if slots is None else upload(slots.places(plan.active), weight.device)
        write_weight(weight, entry.weight, input_slots=places)

    return load
