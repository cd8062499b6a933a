"""The ranking over all layers, its costs, and the measured error that scales it."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn

import dynprune
from dynprune.control.budget import Budget, budget_scores, unit_costs
from dynprune.control.criteria import GroupView
from dynprune.control.usage import UsageStats


def view(name: str, var: list[float], norms: list[float]) -> GroupView:
    values = torch.tensor(var, dtype=torch.float64)
    zero, one = torch.zeros_like(values), torch.ones_like(values)
    return GroupView(name, UsageStats(one, zero, values, one), [torch.tensor(norms, dtype=torch.float64)])


def test_scores_add_up_shares_in_the_order_of_error_for_work() -> None:
    views = {"a": view("a", [1.0, 3.0], [1.0, 2.0]), "b": view("b", [2.0, 2.0, 0.0], [1.0, 3.0, 5.0])}
    # Shares: a 1/7, 6/7; b 1/4, 3/4, 0. Error for work with costs 1 and 10: b2 0, b0 0.025, b1 0.075, a0, a1.
    scores = budget_scores(views, {"a": 1.0, "b": 10.0}, 0.5)
    expected_b = torch.tensor([0.25, 1.0, 0.0], dtype=torch.float64) / 0.5
    expected_a = torch.tensor([1 + 1 / 7, 2.0], dtype=torch.float64) / 0.5
    torch.testing.assert_close(scores["b"], expected_b)
    torch.testing.assert_close(scores["a"], expected_a)
    assert budget_scores({}, {}, 0.1) == {}


def test_units_that_nobody_weighs_have_no_score() -> None:
    scores = budget_scores({"a": view("a", [0.0, 0.0], [1.0, 1.0])}, {"a": 1.0}, 0.1)
    assert scores["a"].isnan().all()


def test_costs_are_the_work_of_a_unit_and_of_its_readers() -> None:
    model = nn.Sequential(
        nn.Conv2d(3, 8, 3, padding=1), nn.ReLU(), nn.Conv2d(8, 4, 3, stride=2), nn.ReLU(), nn.Flatten(),
        nn.Linear(4 * 9, 5),
    ).eval()  # fmt: skip
    fast = dynprune.accelerate(model, torch.randn(2, 3, 8, 8))
    costs = unit_costs(fast._program)
    first, second, last = 3 * 8 * 9 * 64, 8 * 4 * 9 * 9, 36 * 5
    assert costs == {"0": first / 8 + second / 8, "2": second / 4 + last / 4}


def test_costs_of_an_lstm_count_its_steps_and_its_own_reading() -> None:
    class Tagger(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.lstm, self.head = nn.LSTM(5, 6, batch_first=True, bidirectional=True), nn.Linear(12, 2)

        def forward(self, x: Tensor) -> Tensor:
            return self.head(self.lstm(x)[0])  # type: ignore[no-any-return]

    fast = dynprune.accelerate(Tagger().eval(), torch.randn(2, 7, 5))
    costs = unit_costs(fast._program)
    assert set(costs) == {"lstm.l0", "lstm.l0_reverse"}
    assert costs["lstm.l0"] == costs["lstm.l0_reverse"] > 7 * 4 * (5 + 6)


@pytest.mark.parametrize("factor", [0.1, 3.0])
def test_the_measured_error_moves_the_scale(factor: float) -> None:
    g = torch.Generator().manual_seed(0)
    budget = Budget(0.02)
    before = budget.allowed
    moved = False
    for _ in range(20):
        dense = torch.randn(64, 10, generator=g) * 3 + 5
        noise = torch.randn(64, 10, generator=g) * 3 * (factor * 0.02) ** 0.5
        moved = budget.add(dense, dense + noise) or moved
        if not moved:
            assert budget.estimate() == pytest.approx(factor * 0.02, rel=0.5)
    assert moved and (budget.allowed > before) == (factor < 1)


def test_an_error_within_the_budget_changes_nothing() -> None:
    g = torch.Generator().manual_seed(1)
    budget = Budget(0.1)
    for _ in range(50):
        dense = torch.randn(64, 4, generator=g)
        assert not budget.add(dense, dense + torch.randn(64, 4, generator=g) * 0.08**0.5)
    assert budget.scale == 1.0 and budget.summary()["estimate"] == pytest.approx(0.08, rel=0.1)
    bad = torch.full((64, 4), float("nan"))
    assert not budget.add(bad, bad) and budget.estimate() == pytest.approx(0.08, rel=0.1)


@pytest.mark.parametrize("limit", [0.002, 0.02, 0.1])
def test_pruning_goes_as_far_as_the_budget(limit: float) -> None:
    """Served for a while, the true error of the output is within the budget, and most of it is used."""
    torch.manual_seed(0)
    model = nn.Sequential(
        nn.Linear(20, 96), nn.ReLU(), nn.Linear(96, 64), nn.ReLU(), nn.Linear(64, 10)
    ).eval()
    config = dynprune.Config(
        criterion="budget", error_budget=limit, canary_interval=2, canary_rows=16, evidence=256, dwell=0
    )
    fast = dynprune.accelerate(model, torch.randn(2, 20), config)
    g = torch.Generator().manual_seed(3)
    for _ in range(600):
        fast(torch.randn(64, 20, generator=g))
    summary = fast.stats()["output_error"]
    assert summary["limit"] == limit and set(summary) == {"estimate", "rows", "limit", "scale"}
    fast.freeze()
    x = torch.randn(4000, 20, generator=g)
    dense, pruned = model(x), fast(x)
    error = float((dense - pruned).square().sum() / (dense - dense.mean(0)).square().sum())
    assert 0.25 * limit < error < 1.4 * limit
    assert fast.stats()["active_fraction"] < 1
