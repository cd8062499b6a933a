"""Least-squares stand-ins against numpy, and in a serving model."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from torch import Tensor, nn

import dynprune
from dynprune.control.prediction import RunningProducts, predict_pruned


def moments(values: Tensor, *, batches: int = 1, window: int = 10**12) -> RunningProducts:
    running = RunningProducts(values.shape[1], window)
    for part in values.double().chunk(batches):
        running.add(part.sum(0), part.T @ part, len(part), len(part))
    return running


def test_prediction_is_that_of_least_squares() -> None:
    torch.manual_seed(0)
    values = torch.randn(400, 9) @ torch.randn(9, 9) + torch.randn(9)
    active = torch.tensor([1, 0, 1, 1, 0, 1, 0, 1, 1], dtype=torch.bool)
    got = predict_pruned(moments(values, batches=4), active)
    assert got.mixing is not None
    assert not got.mixing[active].any()
    assert not got.mixing[:, ~active].any()
    design = np.column_stack([values[:, active].numpy(), np.ones(400)])
    expected, *_ = np.linalg.lstsq(design, values[:, ~active].numpy(), rcond=None)
    predicted = design @ expected
    ours = got.constants[~active] + values[:, active] @ got.mixing[~active][:, active].T
    # The ridge keeps a little off the best fit; the error may not grow by more than a hundredth.
    error = np.square(values[:, ~active].numpy() - predicted).mean()
    assert np.square(values[:, ~active].numpy() - ours.numpy()).mean() <= 1.01 * error
    assert error < 0.9 * values[:, ~active].var(0).mean()


@pytest.mark.parametrize("active", [[True] * 3, [False] * 3], ids=["all", "none"])
def test_without_pruned_or_active_units_the_means_stay(active: list[bool]) -> None:
    values = torch.tensor([[1.0, 2.0, 3.0], [3.0, 2.0, 1.0]])
    got = predict_pruned(moments(values), torch.tensor(active))
    assert got.mixing is None
    assert got.constants.tolist() == [2.0, 2.0, 2.0]


def test_constant_units_are_no_trouble() -> None:
    values = torch.ones(50, 4)
    got = predict_pruned(moments(values), torch.tensor([True, True, False, False]))
    assert torch.cat([got.constants, torch.zeros(1)]).isfinite().all()
    mixing = torch.zeros(4, 4) if got.mixing is None else got.mixing
    torch.testing.assert_close(got.constants[2:] + mixing[2:] @ values[0], torch.ones(2))


def test_values_that_are_not_finite_never_enter() -> None:
    running = moments(torch.ones(5, 2))
    before = running.products.clone()
    bad = torch.tensor([[float("nan"), 1.0], [1.0, 1.0]], dtype=torch.float64)
    running.add(bad.sum(0), bad, 2, 2)
    assert torch.equal(running.products, before)
    assert running.count == 5


def test_a_unit_that_repeats_another_is_pruned_without_loss() -> None:
    """Its mean would be a poor stand-in; the copy that stays is an exact one."""
    torch.manual_seed(0)
    first = nn.Conv2d(2, 16, 3, padding=1)
    with torch.no_grad():
        first.weight[8:], first.bias[8:] = 0.5 * first.weight[:8], 0.5 * first.bias[:8]  # type: ignore[index]
    model = nn.Sequential(first, nn.ReLU(), nn.Conv2d(16, 4, 3, padding=1)).eval()
    x = torch.randn(64, 2, 6, 6)
    mask = torch.arange(16) < 8
    errors = {}
    for compensation in ("mean", "lstsq"):
        fast = dynprune.accelerate(model, x, dynprune.Config(compensation=compensation))
        fast.calibrate(x)
        fast.set_active("0", mask)
        fast.freeze()
        with torch.no_grad():
            errors[compensation] = (fast(x) - model(x)).abs().max().item()
        assert bool(fast.mixing()) == (compensation == "lstsq")
    assert errors["lstsq"] < 0.02 * errors["mean"]


def test_predictions_follow_the_choice() -> None:
    """Reactivating a unit takes its prediction out again."""
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(6, 20), nn.ReLU(), nn.Linear(20, 3)).eval()
    x = torch.randn(300, 6)
    fast = dynprune.accelerate(model, x, dynprune.Config(compensation="lstsq"))
    fast.calibrate(x)
    fast.set_active("0", torch.arange(20) % 2 == 0)
    assert fast.mixing()["0"].any()
    fast.set_active("0", torch.ones(20, dtype=torch.bool))
    assert not fast.mixing()
    with torch.no_grad():
        torch.testing.assert_close(fast(x), model(x))
