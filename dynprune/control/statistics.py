"""What is known of every group and read point, from rows with dense upstream layers."""

from __future__ import annotations

import copy
from collections.abc import Mapping

import torch
from torch import Tensor

from dynprune.control.prediction import RunningProducts, predict_pruned, residual_variances
from dynprune.control.usage import RunningMean, RunningUsage, UsageStats
from dynprune.lowering.ir import Program
from dynprune.plan.record import Record
from dynprune.plan.substitute import Substitute


class Statistics:
    """Usage of every group and means at every read point, from rows with dense upstream layers."""

    def __init__(self, program: Program, window: int) -> None:
        self.program = program
        self.window = window
        # A group of several layers has no one activation: its usage is that of its read points.
        alone = {n: g for n, g in program.groups.items() if g.usage_site is not None}
        self.usage = {n: RunningUsage(g.units, window) for n, g in alone.items()}
        units = [sum(program.groups[g].units for g in read.layout.groups) for read in program.reads]
        self.means = [RunningMean(n, window) for n in units]
        self.read_usage = {index: RunningUsage(units[index], window) for index in program.usage_reads}
        self.products = [RunningProducts(n, window) for n in units]
        self.rows = 0

    def with_record(self, record: Record, rows: int) -> Statistics:
        """These statistics and the record of ``rows`` rows of a dense run; nothing of this object changes.

        So an interrupt in the middle leaves whole statistics behind.
        """
        result = copy.copy(self)
        for name in ("usage", "means", "read_usage", "products"):
            running = getattr(self, name)
            copies = (
                {key: copy.copy(value) for key, value in running.items()}
                if isinstance(running, dict)
                else [copy.copy(value) for value in running]
            )
            setattr(result, name, copies)
        result._add(record, rows)
        return result

    def _add(self, record: Record, rows: int) -> None:
        for name, usage in record.usage.items():
            if name in self.usage:
                self.usage[name].add(usage, rows)
        for index, usage in record.read_usage.items():
            self.read_usage[index].add(usage, rows)
        for index, (sums, positions) in record.reads.items():
            self.means[index].add(sums, positions, rows)
        for index, products in record.products.items():
            sums, positions = record.reads[index]
            self.products[index].add(sums, products, positions, rows)
        self.rows += rows

    def stats(self, name: str) -> UsageStats:
        """The usage of a group."""
        if name in self.usage:
            return self.usage[name].stats()
        return UsageStats.from_sums(torch.stack(self._parts(name)).sum(0))

    def reader_vars(self, name: str) -> list[Tensor]:
        """As ``GroupView.reader_vars``."""
        if name in self.usage:
            return []
        return [UsageStats.from_sums(part).var for part in self._parts(name)]

    def reader_residuals(self) -> dict[str, list[Tensor]]:
        """Group -> as ``GroupView.reader_residuals``; of the products that least squares measures."""
        result: dict[str, list[Tensor]] = {name: [] for name in self.program.groups}
        for read, products in zip(self.program.reads, self.products, strict=True):
            groups = read.layout.groups
            parts = torch.split(residual_variances(products), [self.program.groups[g].units for g in groups])
            for group, part in zip(groups, parts, strict=True):
                result[group].append(part)
        return result

    def _parts(self, name: str) -> list[Tensor]:
        """Usage sums ``[4, units]`` of a group of several layers, at each place where it is read."""
        result = []
        for index in self.program.groups[name].reads:
            groups = self.program.reads[index].layout.groups
            sizes = [self.program.groups[g].units for g in groups]
            split = torch.split(self.read_usage[index].sums, sizes, 1)
            result += [part for group, part in zip(groups, split, strict=True) if group == name]
        return result

    def substitutes(self, compensation: str, active: Mapping[str, Tensor]) -> dict[str, Substitute]:
        """Read point -> what is to stand in for the units of its group that are not ``active``."""
        result = {}
        for index, read in enumerate(self.program.reads):
            mask = read.layout.join(active)
            if compensation == "none":
                value = Substitute(torch.zeros(len(mask)))
            elif compensation == "lstsq":
                value = predict_pruned(self.products[index], mask)
            elif read.same_as_usage:
                means = {name: self.usage[name].stats().mean.float() for name in read.layout.groups}
                value = Substitute(read.layout.join(means))
            else:
                value = Substitute(self.means[index].mean().float())
            result[read.name] = value
        return result
