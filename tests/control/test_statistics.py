"""Usage, criteria, drift and guard against values worked out by other means."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn

import dynprune
from dynprune.control.criteria import GroupView, contribution, mean_abs
from dynprune.control.drift import DriftDetector
from dynprune.control.guard import Guard, changed_answers
from dynprune.control.usage import RunningMean, RunningUsage, UsageStats
from dynprune.lowering.ir import Layout
from dynprune.ops.reference import usage_sums
from dynprune.plan.entries import read
from dynprune.plan.record import Record

SETTINGS = settings(max_examples=60, deadline=None, derandomize=True)


# Usage ----------------------------------------------------------------------------------------------


@SETTINGS
@given(st.lists(st.integers(1, 20), min_size=1, max_size=6), st.integers(1, 9), st.integers(0, 99))
def test_running_usage_is_a_decayed_sum(sizes: list[int], units: int, seed: int) -> None:
    rng = np.random.default_rng(seed)
    window, running = 16, RunningUsage(units, 16)
    values, weights = [], []
    for rows in sizes:
        weights = [w * 0.5 ** (rows / window) for w in weights] + [1.0]
        values.append(rng.normal(size=(rows, units)))
        running.add(usage_sums(torch.from_numpy(values[-1]), 1), rows)
    a = np.concatenate(values)
    w = np.repeat(weights, sizes)
    stats = running.stats()
    mean = np.average(a, axis=0, weights=w)
    np.testing.assert_allclose(stats.count, w.sum(), rtol=1e-12)
    np.testing.assert_allclose(stats.mean, mean, atol=1e-12)
    np.testing.assert_allclose(stats.mean_abs, np.average(np.abs(a), axis=0, weights=w), atol=1e-12)
    np.testing.assert_allclose(stats.var, np.average((a - mean) ** 2, axis=0, weights=w), atol=1e-9)


def test_an_unseen_unit_has_zeros() -> None:
    assert all(not value.any() for value in vars(RunningUsage(5, 8).stats()).values())
    assert not RunningMean(5, 8).mean().any()


def test_running_mean_leaves_out_nan() -> None:
    mean = RunningMean(3, 10)
    mean.add(torch.tensor([4.0, math.nan, 8.0]).double(), 4, 10)
    mean.add(torch.tensor([1.0, 6.0, math.inf]).double(), 2, 10)
    assert mean.mean().tolist() == pytest.approx([(2 + 1) / (2 + 2), 3, 2])


@pytest.mark.parametrize(("mean", "padding"), [(1000.0, 0), (0.5, 2)])
def test_usage_of_what_a_read_point_sees(mean: float, padding: int) -> None:
    """In float32, with a mean far above the deviation or with padding, and a unit that is not finite."""
    torch.manual_seed(0)
    x = torch.randn(6, 9, 4) * 0.01 + torch.tensor([0.0, 1.0, mean, 2.0])
    x[6 - padding :] = 0
    x[0, 0, 3] = float("nan")
    record = Record(usage=True, reads=True, usage_reads={3})
    positions = 9 * (6 - padding)
    for index in (2, 3):
        read(record, index, x, Layout(("g",), 2), positions)
    assert list(record.reads) == [2, 3] and list(record.read_usage) == [3]
    usage = UsageStats.from_sums(record.read_usage[3])
    inside = x[: 6 - padding].double().flatten(0, 1)
    assert usage.count.tolist() == [positions, positions, positions, 0]
    for got, expected in (
        (usage.mean_abs, inside.abs().mean(0)),
        (usage.mean, inside.mean(0)),
        (usage.var, inside.var(0, correction=0)),
    ):
        torch.testing.assert_close(got[:3], expected[:3], rtol=1e-3, atol=1e-6)


# Criteria -------------------------------------------------------------------------------------------


def view(var: list[float], *norms: list[float]) -> GroupView:
    v = torch.tensor(var).double()
    return GroupView("g", UsageStats(v.sqrt() + 1, v, v, v + 1), [torch.tensor(n).double() for n in norms])


def test_contribution_by_hand() -> None:
    assert contribution(view([1, 2, 3], [6, 3, 0])).tolist() == pytest.approx([1.5, 1.5, 0])
    # two readers: the larger share counts; one that nothing reaches decides nothing
    assert contribution(view([1, 1], [1, 3], [9, 1])).tolist() == pytest.approx([1.8, 1.5])
    assert contribution(view([1, 1], [1, 3], [0, 0])).tolist() == pytest.approx([0.5, 1.5])
    assert contribution(view([0, 0], [1, 3])).isnan().all()


def test_mean_abs_by_hand() -> None:
    assert mean_abs(view([1, 4], [1, 1])).tolist() == [2, 3]


def scores_of(model: nn.Module, x: Tensor) -> dict[str, Tensor]:
    seen = {}

    def spy(view: GroupView) -> Tensor:
        seen[view.name] = contribution(view)
        return torch.ones_like(seen[view.name])

    fast = dynprune.accelerate(model.eval(), x, dynprune.Config(criterion=spy, window=10**9))
    fast.calibrate(x)
    return seen


@SETTINGS
@given(st.floats(0.01, 100), st.integers(0, 20))
def test_contribution_does_not_see_the_scale_of_layers(scale: float, seed: int) -> None:
    torch.manual_seed(seed)
    model = nn.Sequential(nn.Linear(5, 12), nn.ReLU(), nn.Linear(12, 9), nn.ReLU(), nn.Linear(9, 2))
    x = torch.randn(50, 5)
    before = scores_of(model, x)
    with torch.no_grad():
        model[0].weight.mul_(scale), model[0].bias.mul_(scale)
        model[2].weight.mul_(3 / scale)
        model[2].bias.mul_(3)
        model[4].weight.div_(7)
    after = scores_of(model, x)
    assert before.keys() == after.keys() == {"0", "2"}
    for name in before:
        torch.testing.assert_close(after[name], before[name], rtol=1e-3, atol=1e-5)


def test_contribution_of_a_model_by_hand() -> None:
    """Batch norm counts in the reader's weights, pixels of a flattened image belong to their channel."""
    torch.manual_seed(0)
    model = nn.Sequential(
        nn.Conv2d(2, 6, 3), nn.ReLU(), nn.Conv2d(6, 5, 2, bias=False), nn.BatchNorm2d(5), nn.Tanh(),
        nn.Flatten(), nn.Linear(20, 3),
    ).eval()  # fmt: skip
    model[3].running_var.uniform_(0.1, 4)
    x = torch.randn(30, 2, 5, 5)
    seen = scores_of(model, x)
    with torch.no_grad():
        first = model[:2](x).double().transpose(0, 1).flatten(1)
        second = model[:5](x).double().transpose(0, 1).flatten(1)
        scale = model[3].running_var.double() + model[3].eps
        norms = {
            "0": (model[2].weight.double().square() / scale.view(-1, 1, 1, 1)).sum((0, 2, 3)),
            "2": model[6].weight.double().square().view(3, 5, 4).sum((0, 2)),
        }
    for name, hidden in (("0", first), ("2", second)):
        share = hidden.var(1, correction=0) * norms[name]
        torch.testing.assert_close(seen[name], share / share.mean(), rtol=1e-3, atol=1e-5)


# Drift ----------------------------------------------------------------------------------------------


class Noise:
    """Units that move together and alone, a batch of which varies as a whole too."""

    def __init__(self, seed: int) -> None:
        self.generator = torch.Generator().manual_seed(seed)
        self.mixing = torch.randn(10, 40, generator=self.generator)

    def usage(self, rows: int, shift: float = 0.0) -> dict[str, Tensor]:
        x = torch.randn(rows, 10, generator=self.generator)
        a = torch.relu(x @ self.mixing + shift)
        return {"a": usage_sums(a[:, :30], 1), "b": usage_sums(a[:, 30:], 1)}


@pytest.mark.parametrize("rows", [1, 17, 64, 256])
@pytest.mark.parametrize("seed", range(3))
def test_steady_traffic_raises_no_alarm(seed: int, rows: int) -> None:
    detector, noise = DriftDetector(4.0), Noise(seed)
    blocks = 500 if rows >= 64 else 60
    for _ in range(blocks * max(1, 64 // rows)):
        assert not detector.add(noise.usage(rows), rows)


@pytest.mark.parametrize("seed", range(5))
@pytest.mark.parametrize("settled_blocks", [10, 200])
def test_a_shift_raises_the_alarm_within_two_blocks(seed: int, settled_blocks: int) -> None:
    detector, noise = DriftDetector(4.0), Noise(seed)
    for _ in range(settled_blocks):
        assert not detector.add(noise.usage(64), 64)
    assert any(detector.add(noise.usage(64, shift=2.0), 64) for _ in range(2))


def test_no_alarm_while_the_band_is_made_nor_from_repeated_input() -> None:
    detector, noise = DriftDetector(4.0), Noise(0)
    assert not any(detector.add(noise.usage(64, shift=3.0 * i), 64) for i in range(8))
    detector.reset()
    same = noise.usage(64)
    assert not any(detector.add(same, 64) for _ in range(300))


def test_nothing_to_compare_is_no_alarm() -> None:
    detector = DriftDetector(4.0)
    for _ in range(20):
        assert not detector.add({}, 64)
        assert not detector.add({"a": torch.zeros(4, 3).double()}, 0)
        assert not detector.add({"a": torch.zeros(4, 0).double()}, 64)


# Guard ----------------------------------------------------------------------------------------------

WILSON = {  # from the closed form; the first two stand in Newcombe (1998), table I
    (81, 263): (0.2553, 0.3662),
    (15, 148): (0.0624, 0.1605),
    (0, 20): (0.0, 0.1611),
    (1, 29): (0.0061, 0.1718),
    (50, 100): (0.4038, 0.5962),
}


@pytest.mark.parametrize("case", WILSON, ids=str)
def test_the_interval_is_wilsons(case: tuple[int, int]) -> None:
    guard = Guard(0.99)
    guard.add(*case)
    assert guard.interval() == pytest.approx(WILSON[case], abs=6e-5)


def test_the_guard_halves_and_recovers() -> None:
    guard = Guard(0.1)
    assert guard.interval() == (0.0, 1.0)
    assert not guard.add(31, 31), "too few rows"
    assert guard.add(2, 2)
    assert guard.scale == 0.5 and guard.interval() == (0.0, 1.0)
    assert not guard.add(0, 32)
    assert guard.scale == 0.5, "the interval still reaches above the limit"
    assert not guard.add(0, 32)
    assert guard.scale == 0.625
    for _ in range(10):
        assert not guard.add(0, 64)
    assert guard.scale == 1.0
    assert guard.summary()["estimate"] == 0


def test_changed_answers() -> None:
    dense = torch.tensor([[1.0, 2.0, 0.0], [3.0, 1.0, 0.0], [0.0, 0.0, 1.0]])
    assert changed_answers(dense, dense * 2 - 5) == 0
    assert changed_answers(dense, dense[[1, 1, 2]]) == 1
    assert changed_answers(torch.tensor([1.0, -1.0, 2.0]), torch.tensor([0.5, 1.0, -2.0])) == 2
    assert changed_answers(torch.tensor([[1.0], [-1.0]]), torch.tensor([[-1.0], [-1.0]])) == 1
    tokens = torch.randn(4, 6, 3)
    other = tokens.clone()
    other[1, 2:4] *= -1
    assert changed_answers(tokens, other) == 1, "a row counts once"
