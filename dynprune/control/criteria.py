"""Criteria: from a group's usage to one score per unit."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable

import torch
from torch import Tensor

from dynprune.control.usage import UsageStats


@dataclasses.dataclass(frozen=True)
class GroupView:
    """What a criterion sees of a group.

    Attributes:
        name: of the group.
        usage: its statistics.
        reader_norms: for each read point ``||W[:, j]||^2`` of the layer that reads, over all its dense
            rows and taps ``[units]``; ones where the reader is not a layer.
    """

    name: str
    usage: UsageStats
    reader_norms: list[Tensor]


def mean_abs(view: GroupView) -> Tensor:
    """Mean |a|, absolute: the rule of the original idea."""
    return view.usage.mean_abs


def contribution(view: GroupView) -> Tensor:
    """``Var(a_j) * ||W_next[:, j]||^2`` over its mean in the layer; the largest of several readers.

    A unit at 0.05 contributes less than a twentieth of an average unit to the variance of what reads
    it, at any scale of the weights; the constant part is kept by compensation. NaN (no decision) where
    no unit contributes. After Mean Replacement Pruning (arXiv 2212.12651) and FLAP's WIFV.
    """
    result = torch.full_like(view.usage.var, float("nan"))
    for norms in view.reader_norms:
        share = view.usage.var * norms
        mean = share.mean()
        if mean > 0:
            result = torch.fmax(result, share / mean)
    return result


CRITERIA: dict[str, Callable[[GroupView], Tensor]] = {
    "mean_abs": mean_abs,
    "contribution": contribution,
}
