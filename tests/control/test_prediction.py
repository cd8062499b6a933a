"""Least-squares stand-ins against numpy, and in a serving model."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from torch import Tensor, nn

import dynprune
from dynprune.control.prediction import RunningProducts, predict_pruned, residual_variances


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


def test_residual_variances_are_those_of_regressions_on_all_others() -> None:
    torch.manual_seed(1)
    values = torch.randn(500, 6) @ torch.randn(6, 6) * torch.tensor([1.0, 2, 1, 3, 1, 1]) + 5
    values[:, 2] = values[:, 0] - values[:, 1]  # predicted by the others, as these are by it
    values = torch.cat([values, torch.full((500, 1), 7.0)], 1)  # never varies
    got = residual_variances(moments(values))
    for unit in range(7):
        others = [other for other in range(7) if other != unit]
        design = np.column_stack([values[:, others].numpy(), np.ones(500)])
        fit, *_ = np.linalg.lstsq(design, values[:, unit].numpy(), rcond=None)
        left = np.square(values[:, unit].numpy() - design @ fit).mean()
        # The ridge leaves up to about its own size, a thousandth of the mean variance.
        assert float(got[unit]) == pytest.approx(left, rel=0.05, abs=3e-3 * float(values.var(0).mean()))
    assert float(got[3]) > 0.1
    assert residual_variances(RunningProducts(3, 10)).isnan().all()


def test_residual_spares_what_nothing_predicts() -> None:
    """Of units that vary alike, by contribution none goes; by what the others leave the copies do."""
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(8, 16), nn.ReLU(), nn.Linear(16, 4)).eval()
    with torch.no_grad():
        model[0].weight[8:] = model[0].weight[:1] * torch.linspace(1, 1.1, 8)[:, None]
        model[0].bias.fill_(3.0)
        model[2].weight.fill_(0.3)
    x = torch.randn(512, 8)
    config = dynprune.Config(0.1, 0.2, criterion="residual", compensation="lstsq", min_active=1)
    fast = dynprune.accelerate(model, x, config)
    fast.calibrate(x)
    active = fast.active()["0"]
    assert not active[8:].any() and active[1:8].all()


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
