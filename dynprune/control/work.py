"""How much a model computes, and how often it can afford a look at what it computes."""

from __future__ import annotations

import math
from collections.abc import Mapping

from torch import nn

from dynprune.lowering.ir import LayerSite, LSTMSite, Program
from dynprune.plan.plan import Plan

# Requests of fewer multiply-adds by all units have fewer canaries and comparisons of the drift detector, down
# to a stated part: what surrounds these in Python takes as long as some ten million multiply-adds.
_ENOUGH = 1.5e8
_FEWEST = 64


def multiply_adds(program: Program) -> dict[int, float]:
    """Call site -> multiply-adds per row of all its units, at the size of the example."""
    macs = dict.fromkeys(range(len(program.sites)), 0.0)
    for node, index in program.site_of.items():
        site = program.sites[index]
        if isinstance(site, LayerSite):
            shape = node.meta["shape"]
            image = isinstance(site.module, nn.Conv2d)
            positions = math.prod(shape[2:] if image else shape[1:-1])
            macs[index] = float(site.module.weight.numel() * positions)
        elif isinstance(site, LSTMSite):
            steps = math.prod((node.meta.get("in_shape") or (1, 1))[1:-1])
            macs[index] = float(sum(p.numel() for p in site.layer.lstm.parameters()) * steps)
    return macs


def share_of_work(plan: Plan, work: Mapping[int, float]) -> float:
    """The part of ``work``, multiply-adds by call site, that a plan computes."""
    total = sum(work.values())
    computed = 0.0
    for index, entry in enumerate(plan.entries):
        macs, dense = getattr(entry, "macs", 1), getattr(entry, "dense_operations", 1)
        computed += work[index] * (macs / dense if dense else 1.0)
    return computed / total if total else 1.0


def rarity(multiply_adds: float) -> int:
    """One in so many of the looks that a large request gets is for a request of ``multiply_adds``."""
    if multiply_adds >= _ENOUGH:
        return 1
    return min(_FEWEST, math.ceil(_ENOUGH / max(multiply_adds, 1.0)))
