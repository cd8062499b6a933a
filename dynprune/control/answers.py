"""What a model answers, how clearly, and whether pruning changed it."""

from __future__ import annotations

import dataclasses
from typing import Any

import torch
from torch import Tensor
from torch.utils import _pytree as pytree


def answers_of(output: Any) -> Tensor | None:
    """The first floating tensor with rows of an output: its largest value along the last dimension, or the
    sign of a single one, is the answer; None if there is none."""
    for value in pytree.tree_leaves(output):
        if isinstance(value, Tensor) and value.is_floating_point() and value.dim() > 0:
            return value
    return None


def margins(scores: Tensor) -> Tensor:
    """How far the answer of each row is ahead of the next one ``[rows]``; of several answers the closest.

    Args:
        scores: ``[rows, ..., classes]``, or ``[rows]`` or ``[rows, ..., 1]`` whose sign is the answer.
    """
    if scores.dim() < 2 or scores.shape[-1] == 1:
        ahead = scores.abs().flatten(1 if scores.dim() > 1 else 0)
        ahead = ahead if ahead.dim() > 1 else ahead[:, None]
    else:
        best = scores.topk(2, dim=-1).values
        ahead = (best[..., 0] - best[..., 1]).flatten(1) if scores.dim() > 2 else (best[:, :1] - best[:, 1:])
    # A row with NaN has no clear answer.
    return ahead.amin(1).nan_to_num(nan=0.0).double()


@dataclasses.dataclass(frozen=True)
class Compared:
    """Rows that were answered by all units and by the active ones; each ``[rows]``.

    Attributes:
        margin: of the pruned answer.
        loss: how much of that margin the dense scores take away; above the margin, the answer changes.
        changed: whether it does.
    """

    margin: Tensor
    loss: Tensor
    changed: Tensor


def compare(dense: Tensor, pruned: Tensor) -> Compared:
    """Compare dense scores with pruned ones of the same rows; shapes as for :func:`margins`."""
    if dense.dim() < 2 or dense.shape[-1] == 1:
        sign = torch.where(pruned > 0, 1.0, -1.0)
        ahead, left, changed = pruned.abs(), sign * dense, (dense > 0) != (pruned > 0)
    else:
        answer = pruned.argmax(-1, keepdim=True)
        ahead, left = (_lead(scores, answer) for scores in (pruned, dense))
        changed = (dense.argmax(-1, keepdim=True) != answer).squeeze(-1)
    rows = dense.shape[0]
    ahead, left = ahead.reshape(rows, -1).double(), left.reshape(rows, -1).double()
    margin = ahead.amin(1).nan_to_num(nan=0.0)
    # The answer that comes closest to changing decides for its row.
    worst = (-left).amax(1).nan_to_num(nan=torch.inf)
    return Compared(margin, margin + worst, changed.reshape(rows, -1).any(1))


def _lead(scores: Tensor, answer: Tensor) -> Tensor:
    """How far the class ``answer`` is ahead of all others."""
    others = scores.scatter(-1, answer, -torch.inf)
    return scores.gather(-1, answer).squeeze(-1) - others.amax(-1)
