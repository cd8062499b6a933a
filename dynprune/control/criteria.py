"""Criteria: from a group's usage to one score per unit."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable

import torch
from torch import Tensor

from dynprune.control.usage import UsageStats

# Units that vary by less than so much of the activations' size in their layer vary by float32's rounding.
_ROUNDING = 1e-6


@dataclasses.dataclass(frozen=True)
class GroupView:
    """What a criterion sees of a group.

    Attributes:
        name: of the group.
        usage: its statistics. A group of several layers (a residual sum) has no one activation: its
            usage is what its read points see, all of them together.
        reader_norms: for each read point ``||W[:, j]||^2`` of the layer that reads, over all its dense
            rows and taps ``[units]``; ones where the reader is not a layer. One that reads the group
            twice, in a concatenation, counts as two.
        reader_vars: for each of them the variance of what is read ``[units]``, in a group of several
            layers; empty otherwise, where the variance is that of the usage.
        reader_residuals: for each of them the variance of what is read that the other units there do not
            predict ``[units]``, with ``compensation="lstsq"``; empty otherwise.
    """

    name: str
    usage: UsageStats
    reader_norms: list[Tensor]
    reader_vars: list[Tensor] = dataclasses.field(default_factory=list)
    reader_residuals: list[Tensor] = dataclasses.field(default_factory=list)


def mean_abs(view: GroupView) -> Tensor:
    """Mean |a|, absolute: the rule of the original idea."""
    return view.usage.mean_abs


def contribution(view: GroupView) -> Tensor:
    """``Var(a_j) * ||W_next[:, j]||^2`` over its mean in the layer; the largest of several readers.

    A unit at 0.05 contributes less than a twentieth of an average unit to the variance of what reads
    it, at any scale of the weights; the constant part is kept by compensation. NaN (no decision) where
    no unit varies by more than rounding. After Mean Replacement Pruning (arXiv 2212.12651) and FLAP's WIFV.
    """
    result = torch.full_like(view.usage.var, float("nan"))
    variances = view.reader_vars or [view.usage.var] * len(view.reader_norms)
    rounding = (_ROUNDING * view.usage.mean_abs).square().mean()
    for var, norms in zip(variances, view.reader_norms, strict=True):
        share = torch.where(var > rounding, var, 0.0) * norms
        mean = share.mean()
        if mean > 0:
            result = torch.fmax(result, share / mean)
    return result


def residual(view: GroupView) -> Tensor:
    """As :func:`contribution`, of the variance of each unit that the others do not predict.

    That is what least squares cannot make up for: a unit that varies much, but goes along with others, is
    pruned before one of its own. Removing a unit costs ``||W[:, j]||^2 / (C^-1)[j, j]`` for the covariance C,
    after Optimal Brain Surgeon (Hassibi and Stork 1993).
    """
    result = torch.full_like(view.usage.var, float("nan"))
    for var, norms in zip(view.reader_residuals, view.reader_norms, strict=True):
        share = var * norms
        mean = share.mean()
        if mean > 0:
            result = torch.fmax(result, share / mean)
    return result


# Those that look at one group at a time; "budget" ranks all units together, see control/budget.py.
CRITERIA: dict[str, Callable[[GroupView], Tensor]] = {
    "mean_abs": mean_abs,
    "contribution": contribution,
    "residual": residual,
}
