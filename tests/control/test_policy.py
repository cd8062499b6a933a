"""The policy, as a pure function of scores and state."""

from __future__ import annotations

import math

import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from dynprune.control.policy import GroupState, Rules, decide

RULES = Rules(prune=0.05, reactivate=0.10, min_active=1)
SETTINGS = settings(max_examples=150, deadline=None, derandomize=True)

scores_of = st.floats(0, 1) | st.sampled_from([0.0, 0.05, 0.10, math.nan, math.inf])


@st.composite
def groups(draw: st.DrawFn) -> tuple[Tensor, Tensor]:
    """Scores and an active set of one group."""
    units = draw(st.integers(1, 40))
    scores = draw(st.lists(scores_of, min_size=units, max_size=units))
    active = draw(st.lists(st.booleans(), min_size=units, max_size=units))
    return torch.tensor(scores, dtype=torch.float64), torch.tensor(active)


def after(scores: Tensor, active: Tensor, rules: Rules = RULES, batch: int = 0) -> Tensor:
    state = GroupState(active, torch.full((len(active),), -(2**62)))
    return decide({"g": scores}, {"g": state}, rules, batch)["g"].active


@SETTINGS
@given(groups())
def test_only_scores_beyond_the_thresholds_flip(group: tuple[Tensor, Tensor]) -> None:
    scores, active = group
    now = after(scores, active)
    flipped = now != active
    assert (scores[flipped & active] < RULES.prune).all()
    assert (scores[flipped & ~active] > RULES.reactivate).all()
    assert not flipped[scores.isnan()].any()


@SETTINGS
@given(st.lists(st.floats(0.05, 0.10), min_size=1, max_size=60), st.booleans())
def test_a_score_that_moves_between_the_thresholds_never_flips(walk: list[float], start: bool) -> None:
    states = {"g": GroupState(torch.tensor([start, True]), torch.full((2,), -(2**62)))}
    for batch, score in enumerate(walk):
        states = decide({"g": torch.tensor([score, 1.0], dtype=torch.float64)}, states, RULES, batch)
    assert states["g"].active.tolist() == [start, True]
    assert (states["g"].flipped < 0).all()


@SETTINGS
@given(groups(), st.integers(1, 45))
def test_a_decision_never_goes_below_the_floor(group: tuple[Tensor, Tensor], floor: int) -> None:
    scores, active = group
    now = after(scores, active, Rules(0.05, 0.10, floor))
    assert int(now.sum()) >= min(floor, int(active.sum()))
    left = active & ~now
    kept = active & now & (scores < 0.05)
    if left.any() and kept.any():
        assert scores[kept].min() >= scores[left].max(), "the best-scoring stay"


@SETTINGS
@given(groups(), groups(), st.integers(1, 20))
def test_the_cap_holds_over_all_groups_and_returns_go_first(
    first: tuple[Tensor, Tensor], second: tuple[Tensor, Tensor], cap: int
) -> None:
    scores = {"a": first[0], "b": second[0]}
    states = {
        name: GroupState(active, torch.full((len(active),), -(2**62)))
        for name, active in (("a", first[1]), ("b", second[1]))
    }
    free = decide(scores, states, RULES, 0)
    capped = decide(scores, states, Rules(0.05, 0.10, 1, max_flips=cap), 0)
    wanted = {n: free[n].active != states[n].active for n in states}
    done = {n: capped[n].active != states[n].active for n in states}
    assert sum(int(d.sum()) for d in done.values()) == min(cap, sum(int(w.sum()) for w in wanted.values()))
    assert all(bool((wanted[n] | ~done[n]).all()) for n in states)
    skipped_return = any(bool((wanted[n] & ~done[n] & ~states[n].active).any()) for n in states)
    pruned = any(bool((done[n] & states[n].active).any()) for n in states)
    assert not (skipped_return and pruned)


def test_the_strongest_return_and_the_weakest_leave_first() -> None:
    scores = torch.tensor([0.2, 0.9, 0.5, 0.04, 0.01, 0.3]).double()
    active = torch.tensor([False, False, False, True, True, True])
    for cap, expected in ((1, [1]), (2, [1, 2]), (3, [0, 1, 2]), (4, [0, 1, 2, 4]), (9, [0, 1, 2, 3, 4])):
        now = after(scores, active, Rules(0.05, 0.10, 1, max_flips=cap))
        assert (now != active).nonzero().flatten().tolist() == expected


def test_dwell() -> None:
    states = {"g": GroupState.all_active(3)}
    rules = Rules(0.05, 0.10, 1, dwell=5)
    low, high = torch.tensor([0.0, 1.0, 1.0]).double(), torch.ones(3).double()
    states = decide({"g": low}, states, rules, 10)
    assert states["g"].active.tolist() == [False, True, True]
    for batch in range(11, 15):
        states = decide({"g": high}, states, rules, batch)
        assert not states["g"].active[0]
    states = decide({"g": high}, states, rules, 15)
    assert states["g"].active.all()
    assert states["g"].flipped[0] == 15


def test_states_are_replaced_not_changed() -> None:
    state = GroupState.all_active(4)
    decide({"g": torch.zeros(4).double()}, {"g": state}, RULES, 3)
    assert state.active.all() and (state.flipped < 0).all()
