"""Whose live usage the drift detector looks at: the layers where summing it is cheapest."""

from __future__ import annotations

import math

from dynprune.lowering.ir import LayerSite, LSTMSite, Program
from dynprune.plan.build import usage_name

_SHARE = 0.5  # of all units


def watched_usage(program: Program) -> frozenset[str]:
    """The names of usage sums that live rows are to give.

    Sums cost a pass over a layer's outputs, and the early layers of a CNN have most of those: many pixels,
    few units. Layers are taken from the fewest outputs per unit on, until they have half of the units;
    those with as many as the last one are in as well.
    """
    sizes: dict[str, tuple[int, int]] = {}  # name -> outputs of each unit per row, units
    for node, index in program.site_of.items():
        site = program.sites[index]
        shape = node.meta.get("shape")
        if isinstance(site, LayerSite):
            name = usage_name(program, index, site)
            if name is not None:
                each = math.prod(shape) // max(1, shape[0] * site.units) if shape else 1
                sizes[name] = max(each, sizes.get(name, (0, 0))[0]), site.units
        elif isinstance(site, LSTMSite):
            steps = math.prod((node.meta.get("in_shape") or (1, 1))[1:-1])
            sizes |= {group: (steps, program.groups[group].units) for group in site.groups}
    wanted = _SHARE * sum(units for _, units in sizes.values())
    largest = taken = 0
    for each, units in sorted(sizes.values()):
        if taken >= wanted:
            break
        largest, taken = each, taken + units
    return frozenset(name for name, (each, _) in sizes.items() if each <= largest)
