"""How often batches carry canary rows and are looked at."""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch
from torch import nn

import dynprune
from dynprune.control.canaries import Canaries, Looks
from dynprune.control.work import rarity

MILLION = 10**6


@pytest.mark.parametrize(
    ("rows", "work", "interval"),
    [
        (1, math.inf, 128),
        (8, math.inf, 128),
        (16, math.inf, 64),
        (33, math.inf, 32),
        (64, math.inf, 16),
        (100, math.inf, 16),
        (64, 2.5 * MILLION, 16),
        (64, MILLION, 48),
        (1, 20 * MILLION, 128),
        (1, 10 * MILLION, 240),
        (64, 1000, 1024),
        (1, 1, 1024),
    ],
)
def test_small_batches_and_small_models_have_fewer_canaries(rows: int, work: float, interval: int) -> None:
    canaries = Canaries(0, None, 8, work=work)
    assert canaries.interval_of(rows) == interval
    chosen = [ticket for ticket in range(20 * interval) if canaries.has(ticket, rows)]
    assert [ticket // interval for ticket in chosen] == list(range(20)), "one in each run"
    assert len({ticket % interval for ticket in chosen}) > 5, "at random"
    if rows <= 64:
        assert sum(len(canaries.choose(t, rows)) for t in chosen) <= rows * 20 * interval / 128


@pytest.mark.parametrize(
    ("share", "rarer"), [(1.0, 1), (0.5, 1), (0.49, 2), (0.32, 3), (0.25, 3), (0.1, 4), (0.0, 4)]
)
def test_canaries_beside_a_plan_that_computes_little_are_rarer(share: float, rarer: int) -> None:
    canaries = Canaries(0, None, 8).beside(share)
    assert canaries.interval_of(64) == 16 * rarer
    assert canaries.interval_of(1) == 128 * rarer
    assert canaries.beside(1.0).interval_of(64) == 16, "and back"


@pytest.mark.parametrize(
    ("config", "rarer"), [({}, 4), ({"max_divergence": 0.1}, 1), ({"canary_interval": 7}, 1)]
)
def test_a_published_plan_makes_canaries_rarer(config: dict[str, Any], rarer: int) -> None:
    model = nn.Sequential(nn.Linear(4, 64), nn.ReLU(), nn.Linear(64, 2)).eval()
    fast = dynprune.accelerate(model, torch.randn(4, 4), dynprune.Config(**config))
    before = fast._controller.canaries.interval_of(64)
    fast.set_active("0", torch.arange(64) < 6)
    assert fast._controller.canaries.interval_of(64) == rarer * before
    fast.set_active("0", torch.ones(64, dtype=torch.bool))
    assert fast._controller.canaries.interval_of(64) == before


def test_a_stated_interval_holds_for_all_batches() -> None:
    assert {Canaries(0, 5, 8, work=1).beside(0.1).interval_of(rows) for rows in (1, 16, 64)} == {5}
    assert {Looks(0, 3, 1).interval_of(rows) for rows in (1, 16, 64)} == {3}


@pytest.mark.parametrize(
    ("rows", "work", "looks"), [(64, math.inf, 400), (1, math.inf, 400), (1, 40 * MILLION, 100), (1, 1, 6)]
)
def test_the_drift_detector_looks_less_often_at_less_work(rows: int, work: float, looks: int) -> None:
    found = Looks(0, None, work)
    assert sum(found.has(ticket, rows) for ticket in range(1600)) == pytest.approx(looks, abs=1)


def test_rarity_falls_with_work() -> None:
    counts = [rarity(work) for work in (0, 1, 1e6, 3e6, 1e8, 1.5e8, 1e12)]
    assert counts == sorted(counts, reverse=True)
    assert counts[0] == 64 and counts[-2:] == [1, 1]


@pytest.mark.parametrize(
    ("config", "interval"), [({}, 1024), ({"max_divergence": 0.1}, 4), ({"criterion": "budget"}, 16)]
)
def test_a_guard_and_a_budget_need_their_canaries(config: dict[str, Any], interval: int) -> None:
    model = nn.Sequential(nn.Linear(4, 8), nn.ReLU(), nn.Linear(8, 2)).eval()
    fast = dynprune.accelerate(model, torch.randn(4, 4), dynprune.Config(**config))
    assert fast._controller.canaries.interval_of(64) == interval
