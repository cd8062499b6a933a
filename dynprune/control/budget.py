"""The criterion ``"budget"``: prune as much as a stated output error allows, ranked across layers."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

from dynprune.control.criteria import GroupView
from dynprune.control.work import multiply_adds
from dynprune.lowering.ir import LayerSite, LSTMSite, Program

# A unit's score is the share of the budget that is spent on it and all that go before it.
PRUNE, REACTIVATE = 1.0, 1.5
_LEAST_ROWS = 128  # compared before the scale is changed
_WINDOW = 1024  # rows after which a comparison counts half
_LARGEST_STEP = 2.0  # of the scale, up or down
_AIM = 0.8  # share of the budget that is aimed at
_ENOUGH = 0.6  # share of the budget below which there is room for more


def unit_costs(program: Program) -> dict[str, float]:
    """Group -> multiply-adds per row that one of its units takes: its own, and of those that read it."""
    macs = multiply_adds(program)
    costs = dict.fromkeys(program.groups, 0.0)
    for index, site in enumerate(program.sites):
        if isinstance(site, LayerSite) and site.group is not None:
            costs[site.group] += macs[index] / program.groups[site.group].units
        elif isinstance(site, LSTMSite):
            for name in site.groups:
                costs[name] += macs[index] / sum(program.groups[n].units for n in site.groups)
    for read in program.reads:
        units = sum(program.groups[name].units for name in read.layout.groups)
        for name in set(read.layout.groups):
            costs[name] += macs[read.consumer] / units
    return costs


def budget_scores(
    views: Mapping[str, GroupView], costs: Mapping[str, float], budget: float
) -> dict[str, Tensor]:
    """Group -> score ``[units]``: of all units, in order of what each costs in error for the work it saves,
    the part of the budget that it and all before it take.

    The error of pruning a unit is its share of the variance that its layer hands on (as in
    ``contribution``; of several readers the largest). Shares of layers add up: an error is taken to reach
    the output as large as it arises.
    """
    shares: dict[str, Tensor] = {}
    for name, view in views.items():
        share = torch.full_like(view.usage.var, float("nan"))
        variances = view.reader_vars or [view.usage.var] * len(view.reader_norms)
        for var, norms in zip(variances, view.reader_norms, strict=True):
            part = var * norms
            if part.sum() > 0:
                share = torch.fmax(share, part / part.sum())
        shares[name] = share
    names = list(shares)
    if not names:
        return {}
    every = torch.cat([shares[name] for name in names])
    saved = torch.cat([torch.full_like(shares[name], max(costs[name], 1.0)) for name in names])
    order = (every / saved).argsort(stable=True)  # NaN comes last
    scores = torch.empty_like(every)
    scores[order] = every[order].cumsum(0) / budget
    parts = torch.split(scores, [len(shares[name]) for name in names])
    return dict(zip(names, parts, strict=True))


class Budget:
    """Scales the budget so that the measured error of the output is what was stated.

    The error is the mean square of what pruning changes in the output, as a share of the output's variance
    over the rows.

    Args:
        limit: of that error.
    """

    def __init__(self, limit: float) -> None:
        self.limit = limit
        self.scale = 1.0
        self._sums: Tensor | None = None  # of the outputs, and of their squares [2, values of a row]
        self.restart()

    def restart(self) -> None:
        """Another plan serves: what was measured says nothing about it."""
        self._error = 0.0
        self._rows = 0.0

    @property
    def allowed(self) -> float:
        """What the scores are relative to."""
        return self.limit * self.scale

    def add(self, dense: Tensor, pruned: Tensor) -> bool:
        """Add rows that ran both ways ``[rows, ...]``; True: another choice is due."""
        full, cut = dense.flatten(1).double(), pruned.flatten(1).double()
        good = (full.isfinite() & cut.isfinite()).all(1)
        full, cut = full[good], cut[good]
        rows = len(full)
        if rows == 0 or full.shape[1] == 0:
            return False
        keep = 0.5 ** (rows / _WINDOW)
        sums = torch.stack([full.sum(0), full.square().sum(0), torch.full_like(full[0], rows)])
        if self._sums is not None and self._sums.shape == sums.shape:
            sums = sums + keep * self._sums
        self._sums = sums
        self._error = keep * self._error + float((full - cut).square().sum())
        self._rows = keep * self._rows + rows
        if self._rows < _LEAST_ROWS:
            return False
        error = self.estimate()
        if _ENOUGH * self.limit <= error <= self.limit:
            return False
        step = math.sqrt(_AIM * self.limit / max(error, 1e-12))
        self.scale *= min(_LARGEST_STEP, max(1 / _LARGEST_STEP, step))
        self.restart()
        return True

    def estimate(self) -> float:
        """The error measured under the present plan; 0 where nothing was."""
        if self._rows == 0 or self._sums is None:
            return 0.0
        total, square, count = self._sums
        variance = (square / count - (total / count).square()).clamp(min=0).sum()
        return self._error / self._rows / max(float(variance), 1e-30)

    def summary(self) -> dict[str, float]:
        """The running estimate as plain data."""
        return {"estimate": self.estimate(), "rows": self._rows, "limit": self.limit, "scale": self.scale}

    def state(self) -> dict[str, Any]:
        """All of it, as plain tensors and numbers."""
        return {name: value for name, value in vars(self).items() if name != "limit"}

    def load(self, state: Mapping[str, Any]) -> None:
        """Adopt what :meth:`state` gave."""
        vars(self).update(state)
