"""The ends of what may happen: all pruned or nothing, one unit, constant inputs, swinging traffic."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn

import dynprune
from tests.models.masked import Reader, masked_dense, relative_error
from tests.models.traffic import EVERYTHING, UNITS, Traffic, two_halves

READERS = [Reader("2", "0")]


def settled(config: dynprune.Config, model: nn.Module, inputs: list[Tensor]) -> dynprune.AcceleratedModel:
    fast = dynprune.accelerate(model, inputs[0], config)
    with torch.no_grad():
        for x in inputs:
            fast(x)
    return fast


def test_everything_that_may_go_is_pruned_but_for_the_floor() -> None:
    traffic = Traffic()
    batches = [traffic.both(16) for _ in range(40)]
    config = dynprune.Config(
        1e6, 1e6, min_active=1, evidence=64, drift_threshold=torch.inf, canary_interval=4
    )
    fast = settled(config, two_halves(), batches)
    assert fast.active()["0"].sum() == 1
    x = traffic.both(40)
    fast.freeze()
    assert relative_error(fast(x), masked_dense(two_halves(), fast, READERS, x)) < 1e-5


def test_with_thresholds_of_zero_nothing_is_pruned() -> None:
    traffic = Traffic()
    fast = settled(dynprune.Config(0.0, 0.0, evidence=64), two_halves(), [traffic.low(16) for _ in range(80)])
    assert fast.stats()["flips"] == 0 and fast.active()["0"].all()


def test_no_unit_at_all() -> None:
    """A group whose every unit is pruned answers with its constants."""
    traffic, model = Traffic(), two_halves()
    fast = dynprune.accelerate(model, traffic.both(4))
    fast.calibrate([traffic.both(64)])
    fast.freeze()
    fast.set_active("0", ~EVERYTHING)
    last = model[2]
    assert isinstance(last, nn.Linear)
    with torch.no_grad():
        expected = last(fast.constants()["0"].float()).expand(5, -1)
        assert relative_error(fast(traffic.both(5)), expected.double()) < 1e-5


def test_a_group_of_one_unit() -> None:
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(4, 1), nn.ReLU(), nn.Linear(1, 2)).eval()
    inputs = [torch.randn(16, 4) for _ in range(60)]
    fast = settled(dynprune.Config(0.9, 0.95, evidence=64), model, inputs)
    assert fast.active()["0"].all(), "its score is its layer's mean, and the floor keeps it"
    fast.set_active("0", torch.tensor([False]))
    fast.freeze()
    assert relative_error(fast(inputs[0]), masked_dense(model, fast, READERS, inputs[0])) < 1e-5


@pytest.mark.parametrize("criterion", ["contribution", "mean_abs", "budget"])
def test_constant_inputs(criterion: str) -> None:
    """No unit varies: by contribution nothing can be told apart and nothing flips; answers stay."""
    model = two_halves()
    x = Traffic().both(1).expand(16, -1)
    fast = settled(dynprune.Config(evidence=64, criterion=criterion), model, [x] * 80)
    with torch.no_grad():
        assert relative_error(fast(x), model(x).double()) < 1e-4
    if criterion == "contribution":
        assert fast.stats()["flips"] == 0


@pytest.mark.parametrize("thresholds", [(0.05, 0.1), (0.2, 0.3), (0.4, 0.5)])
@pytest.mark.parametrize("period", [8, 16, 17])
def test_traffic_that_swings_at_the_canaries_period(thresholds: tuple[float, float], period: int) -> None:
    """One batch in each period is of the other kind. Canary batches are drawn at random within theirs, so
    both kinds are seen; and what is pruned does not swing with the traffic."""
    traffic, model = Traffic(), two_halves()
    batches = [traffic.low(16) if n % period else traffic.high(16) for n in range(800)]
    fast = settled(dynprune.Config(*thresholds, canary_interval=16, drift_interval=4), model, batches)
    assert fast.stats()["flips"] <= 2 * UNITS, "no more than two flips of a unit in 800 batches"
    assert (fast.usage()["0"].var > 0).all(), "canary rows saw both kinds"


@pytest.mark.parametrize("period", [16, 17])
def test_a_guard_holds_while_traffic_swings(period: int) -> None:
    traffic, model = Traffic(), two_halves()
    config = dynprune.Config(0.2, 0.3, max_divergence=0.02)
    fast = dynprune.accelerate(model, traffic.both(16), config)
    changed = []
    with torch.no_grad():
        for n in range(800):
            x = traffic.low(16) if n % period else traffic.high(16)
            changed.append((fast(x).argmax(1) != model(x).argmax(1)).double().mean().item())
    assert max(sum(changed[first : first + 100]) for first in range(700)) / 100 <= 0.026
