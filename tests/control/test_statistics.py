"""Usage, criteria, drift and guard against values worked out by other means."""

from __future__ import annotations

import dataclasses
import math

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn

import dynprune
from dynprune.control.answers import Compared, compare, margins
from dynprune.control.criteria import GroupView, contribution, mean_abs
from dynprune.control.drift import DriftDetector
from dynprune.control.guard import LEAST_ROWS, Guard
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


def compared(rows: int, changed: int, *, margin: float = 1.0) -> Compared:
    """Rows of one margin, of which some lose more than that."""
    loss = torch.where(torch.arange(rows) < changed, 2 * margin, 0.0).double()
    full = torch.full((rows,), margin, dtype=torch.float64)
    return Compared(full, loss, loss > full)


def trusting(limit: float) -> Guard:
    """A guard that has seen enough to give every answer."""
    guard = Guard(limit)
    for _ in range(8):
        guard.add(torch.ones(LEAST_ROWS), compared(LEAST_ROWS, 0))
    assert guard.threshold <= 1.0
    return guard


@pytest.mark.parametrize("case", WILSON, ids=str)
def test_the_interval_is_wilsons(case: tuple[int, int]) -> None:
    guard = Guard(0.99)
    guard.threshold = 0.0
    guard.add(torch.ones(case[1]), compared(case[1], case[0]))
    assert guard.interval() == pytest.approx(WILSON[case], abs=6e-5)


def test_no_answer_is_given_before_enough_was_compared() -> None:
    guard = Guard(0.01)
    assert guard.verifying and guard.defers(torch.tensor([1e9])).all() and guard.interval() == (0.0, 1.0)
    guard.add(torch.ones(LEAST_ROWS - 1), compared(LEAST_ROWS - 1, 5))
    assert guard.verifying and guard.summary()["estimate"] == 0, "those rows were answered by all units"
    guard.add(torch.ones(1), compared(1, 0))
    assert not guard.verifying


def test_a_strict_limit_takes_more_rows_and_is_met() -> None:
    guard = Guard(0.001)
    guard.add(torch.ones(3636), compared(3636, 0))
    assert guard.verifying
    guard.add(torch.ones(1), compared(1, 0))
    assert not guard.verifying and not guard.defers(torch.tensor([1.0])).any()


@pytest.mark.parametrize("seed", range(3))
@pytest.mark.parametrize("limit", [0.01, 0.05])
@pytest.mark.parametrize("hard", [False, True])
def test_answers_below_the_threshold_are_those_that_change(seed: int, limit: float, hard: bool) -> None:
    """Margins of any size; losses of one size, or large where margins are small."""
    g = torch.Generator().manual_seed(seed)

    def rows(n: int) -> Compared:
        margin = torch.rand(n, generator=g, dtype=torch.float64) * 4
        loss = torch.randn(n, generator=g, dtype=torch.float64) * 0.3
        loss = torch.where(margin < 1, loss * 3, loss) if hard else loss
        return Compared(margin, loss, loss > margin)

    guard, given = Guard(limit), []
    for batch in range(200):
        some = rows(64)
        deferred = guard.defers(some.margin)
        if batch >= 30:
            given.append((some.changed & ~deferred, deferred))
        sample = torch.randperm(64, generator=g)[: 64 if guard.verifying else 8]
        chosen = Compared(some.margin[sample], some.loss[sample], some.changed[sample])
        guard.add(some.margin, chosen)
    changed = torch.cat([row for row, _ in given]).double().mean()
    deferred = torch.cat([row for _, row in given]).double().mean()
    assert changed <= 1.3 * limit
    assert deferred < 0.4, "most answers are given all the same"


def test_a_broken_limit_brings_everything_back() -> None:
    guard = trusting(0.05)
    verdict = guard.add(torch.ones(16), compared(16, 9))
    assert verdict.trouble and guard.verifying and guard.scale == 0.5 and guard.interval() == (0.0, 1.0)
    slowly = trusting(0.05)
    verdicts = [slowly.add(torch.ones(8), compared(8, 1)) for _ in range(400)]
    assert any(verdict.trouble for verdict in verdicts) or slowly.threshold > 1, "one in eight is too many"


def test_the_thresholds_follow_the_share_that_all_units_answer() -> None:
    guard = Guard(0.01)
    unclear, clear = compared(512, 256, margin=0.1), compared(512, 0)
    both = zip(dataclasses.astuple(unclear), dataclasses.astuple(clear), strict=True)
    mixed = Compared(*(torch.cat(pair) for pair in both))
    verdicts = [guard.add(mixed.margin, mixed) for _ in range(3)]
    assert guard.deferred > 0.3 and guard.scale < 1 and verdicts[-1].decide
    low = guard.scale
    guard.restart()
    for _ in range(60):
        guard.add(torch.ones(128), compared(128, 0))
    assert low < guard.scale <= 1 and guard.deferred == 0


def test_margins_and_what_all_units_take_of_them() -> None:
    pruned = torch.tensor([[1.0, 2.0, 0.5], [3.0, 1.0, 0.0], [0.0, 0.0, 1.0]])
    dense = torch.tensor([[1.5, 1.0, 0.0], [2.0, 1.0, 0.0], [0.0, 0.0, 1.0]])
    assert margins(pruned).tolist() == [1.0, 2.0, 1.0]
    result = compare(dense, pruned)
    assert result.margin.tolist() == [1.0, 2.0, 1.0]
    assert result.loss.tolist() == [1.5, 1.0, 0.0]
    assert result.changed.tolist() == [True, False, False]
    signs = compare(torch.tensor([1.0, -1.0, 2.0]), torch.tensor([0.5, 1.0, -2.0]))
    assert signs.changed.tolist() == [False, True, True] and signs.loss.tolist() == [-0.5, 2.0, 4.0]
    assert margins(torch.tensor([[1.0], [-3.0]])).tolist() == [1.0, 3.0]
    tokens = torch.randn(4, 6, 3)
    other = tokens.clone()
    other[1, 2:4] *= -1
    several = compare(tokens, other)
    assert several.changed.tolist() == [False, True, False, False], "a row counts once"
    assert several.margin.equal(margins(other)) and margins(other).shape == (4,)
    assert (several.loss > several.margin).equal(several.changed)
    bad = torch.tensor([[float("nan"), 1.0], [2.0, 1.0]])
    assert margins(bad)[0] == 0 and compare(bad, bad).loss[0] == float("inf")
