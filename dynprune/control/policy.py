"""Which units to compute: hysteresis, dwell, caps and floors. Pure functions of scores and state."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping

import torch
from torch import Tensor

_NEVER = -(2**62)


@dataclasses.dataclass
class GroupState:
    """The policy's view of one group; replaced, never changed in place.

    Attributes:
        active: bool ``[units]``, the policy's set.
        flipped: int64 ``[units]``, the batch of each unit's last flip.
    """

    active: Tensor
    flipped: Tensor

    @classmethod
    def all_active(cls, units: int) -> GroupState:
        """Every unit active, none ever flipped."""
        return cls(torch.ones(units, dtype=torch.bool), torch.full((units,), _NEVER, dtype=torch.int64))


@dataclasses.dataclass(frozen=True)
class Rules:
    """Thresholds and limits of one decision."""

    prune: float
    reactivate: float
    min_active: int
    dwell: int = 0
    max_flips: int | None = None  # over all groups


def decide(
    scores: Mapping[str, Tensor], states: Mapping[str, GroupState], rules: Rules, batch: int
) -> dict[str, GroupState]:
    """The next state of every group that has scores.

    A unit below ``rules.prune`` leaves and one above ``rules.reactivate`` returns, if its last flip is
    ``rules.dwell`` batches ago; in between, and where the score is NaN, nothing changes. Returns go
    first, the strongest first, then prunes, the weakest first, up to ``rules.max_flips``.
    """
    wanted: list[tuple[int, float, str, int]] = []  # (returns first, order, group, unit)
    for name, score in scores.items():
        state = states[name]
        free = (batch - state.flipped) >= rules.dwell
        returning = free & ~state.active & (score > rules.reactivate)
        leaving = free & state.active & (score < rules.prune)
        leaving = _keep_floor(leaving, state.active | returning, score, rules.min_active)
        wanted += [(0, -float(score[u]), name, u) for u in returning.nonzero().flatten().tolist()]
        wanted += [(1, float(score[u]), name, u) for u in leaving.nonzero().flatten().tolist()]
    wanted.sort()
    if rules.max_flips is not None:
        del wanted[rules.max_flips :]
    result = dict(states)
    for name in {name for _, _, name, _ in wanted}:
        units = torch.tensor([u for _, _, n, u in wanted if n == name])
        active, flipped = states[name].active.clone(), states[name].flipped.clone()
        active[units] = ~active[units]
        flipped[units] = batch
        result[name] = GroupState(active, flipped)
    return result


def _keep_floor(leaving: Tensor, active: Tensor, score: Tensor, floor: int) -> Tensor:
    """Keep the best-scoring leavers so that at least ``floor`` units stay (all of a smaller group)."""
    missing = min(floor, len(active)) - int((active & ~leaving).sum())
    if missing <= 0:
        return leaving
    ranked = torch.where(leaving, score, -torch.inf).argsort(descending=True)
    kept = leaving.clone()
    kept[ranked[:missing]] = False
    return kept
