"""Pruning, return, canaries and control, on traffic whose right answer is known."""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.utils.flop_counter import FlopCounterMode

import dynprune
from dynprune import Config, ops
from dynprune.plan.entries import LinearEntry
from tests.models.masked import Reader, masked_dense, relative_error
from tests.models.networks import random_norms
from tests.models.traffic import EVERYTHING, INPUTS, LOW, UNITS, Traffic, two_halves

SOME = torch.arange(UNITS) % 9 == 0


def serving(model: nn.Module | None = None, **config: Any) -> dynprune.AcceleratedModel:
    config = {"evidence": 128, "canary_interval": 16, "drift_interval": 4, **config}
    return dynprune.accelerate(model or two_halves(), torch.zeros(2, INPUTS), Config(**config))


def settled(**config: Any) -> tuple[dynprune.AcceleratedModel, Traffic]:
    fast, traffic = serving(**config), Traffic()
    for _ in range(4):
        fast(traffic.low(32))
    return fast, traffic


def is_active(fast: dynprune.AcceleratedModel, mask: Tensor) -> bool:
    return torch.equal(fast.active()["0"], mask)


# Pruning and return ---------------------------------------------------------------------------------


@pytest.mark.parametrize("criterion", ["contribution", "own"])
def test_unused_units_are_pruned_after_the_evidence(criterion: str) -> None:
    chosen = criterion if criterion != "own" else lambda view: view.usage.var / view.usage.var.mean()
    fast, traffic = serving(criterion=chosen), Traffic()
    for _ in range(3):
        fast(traffic.low(32))
        assert is_active(fast, EVERYTHING) and fast.stats()["observing"]
    fast(traffic.low(32))
    assert is_active(fast, LOW)
    assert fast.stats()["flips"] == UNITS // 2 and not fast.stats()["observing"]
    x = traffic.low(40)
    torch.testing.assert_close(fast(x), fast.restore()(x))  # constants are exact: the units never vary


def test_mean_abs_is_absolute() -> None:
    model = two_halves()
    with torch.no_grad():
        model[0].bias.zero_()
    fast, traffic = serving(model, criterion="mean_abs"), Traffic()
    for _ in range(4):
        fast(traffic.low(32))
    assert is_active(fast, LOW)
    scaled = serving(model, criterion="mean_abs", prune_threshold=50, reactivate_threshold=50, min_active=5)
    for _ in range(4):
        scaled(traffic.low(32))
    assert int(scaled.active()["0"].sum()) == 5


def test_steady_traffic_has_no_flips_after_settling() -> None:
    fast, traffic = settled(canary_interval=2)
    for _ in range(150):
        fast(traffic.low(32))
    assert fast.stats()["flips"] == UNITS // 2
    assert is_active(fast, LOW)


def test_return_by_drift() -> None:
    fast, traffic = settled()
    for _ in range(24):  # the band of the drift detector
        fast(traffic.low(64))
    assert is_active(fast, LOW)
    for _ in range(8):
        fast(traffic.high(64))
    assert is_active(fast, ~LOW), "the other half is computed now"
    x = traffic.high(40)
    torch.testing.assert_close(fast(x), fast.restore()(x))


def test_return_by_canaries_alone() -> None:
    fast, traffic = settled(
        drift_threshold=math.inf, canary_interval=2, window=64, dwell=2, max_flips=1.0, canary_rows=8
    )
    for _ in range(8):
        fast(traffic.high(16))
    assert (fast.active()["0"] | LOW).all(), "all of the other half is back"
    for _ in range(160):
        fast(traffic.high(16))
    assert is_active(fast, ~LOW)
    x = traffic.high(40)
    assert relative_error(fast(x), fast.restore()(x).detach().double()) < 0.02


def test_a_cap_and_a_dwell_slow_the_return() -> None:
    slow = {"drift_threshold": math.inf, "canary_interval": 1, "window": 64}
    capped, traffic = settled(max_flips=2 / UNITS, dwell=0, **slow)
    before = capped.active()["0"]
    for _ in range(3):
        capped(traffic.both(16))
        now = capped.active()["0"]
        assert int((now != before).sum()) <= 2
        before = now
    assert capped.stats()["flips"] == UNITS // 2 + 6
    resting, traffic = settled(max_flips=1.0, dwell=5, **slow)
    for batch in range(1, 6):
        resting(traffic.both(16))
        assert resting.stats()["flips"] == UNITS // 2 + (UNITS // 2 if batch == 5 else 0)


def test_no_group_falls_below_min_active() -> None:
    fast, traffic = serving(prune_threshold=100, reactivate_threshold=100, min_active=7), Traffic()
    for _ in range(20):
        fast(traffic.low(64))
    assert int(fast.active()["0"].sum()) == 7


# Canaries -------------------------------------------------------------------------------------------


def test_canary_rows_are_dense_and_the_others_are_not() -> None:
    fast, traffic = serving(canary_interval=1, canary_rows=5, evidence=10**9), Traffic()
    fast.set_active("0", SOME)
    x = traffic.both(32)
    dense, got = fast.restore()(x), fast(x)
    fast.freeze()
    pruned = fast(x)
    is_dense = torch.isclose(got, dense, rtol=1e-5, atol=1e-5).all(1)
    is_pruned = torch.isclose(got, pruned, rtol=1e-5, atol=1e-5).all(1)
    assert int(is_dense.sum()) == 5
    assert torch.equal(is_dense, ~is_pruned)
    assert fast.stats()["canary_rows"] == 5


def canary_batches(seed: int, interval: int, count: int, rows: int) -> list[int]:
    fast, traffic = serving(canary_interval=interval, seed=seed, evidence=10**9), Traffic()
    fast.set_active("0", SOME)
    seen, chosen = 0, []
    for batch in range(count):
        fast(traffic.both(rows))
        now = fast.stats()["canary_rows"]
        chosen += [batch] if now > seen else []
        seen = now
    return chosen


@pytest.mark.parametrize(("interval", "rows"), [(4, 1), (4, 32), (7, 9)])
def test_one_batch_in_each_interval_is_a_canary(interval: int, rows: int) -> None:
    chosen = canary_batches(3, interval, 8 * interval, rows)
    assert [batch // interval for batch in chosen] == list(range(8))
    assert len({batch % interval for batch in chosen}) > 1, "at random"
    assert canary_batches(3, interval, 8 * interval, rows) == chosen
    assert canary_batches(4, interval, 8 * interval, rows) != chosen


def test_at_batch_1_the_whole_request_is_dense() -> None:
    fast, traffic = serving(canary_interval=1, evidence=10**9), Traffic()
    fast.set_active("0", SOME)
    for _ in range(5):
        x = traffic.both(1)
        torch.testing.assert_close(fast(x), fast.restore()(x))
    assert fast.stats()["canary_rows"] == 5


def test_batch_1_prunes_and_returns() -> None:
    fast, traffic = serving(evidence=64, canary_interval=2, drift_threshold=math.inf, window=64), Traffic()
    for _ in range(64):
        fast(traffic.low(1))
    assert is_active(fast, LOW)
    for _ in range(300):
        fast(traffic.both(1))
    assert is_active(fast, EVERYTHING)


@pytest.mark.parametrize("forced", [False, True])
def test_batch_0(forced: bool) -> None:
    fast = serving(canary_interval=1)
    if forced:
        fast.set_active("0", SOME)
    for _ in range(3):
        assert fast(torch.zeros(0, INPUTS)).shape == (0, 3)
    stats = fast.stats()
    assert (stats["batches"], stats["rows"], stats["canary_rows"], stats["operations"]) == (3, 0, 0, 0)


class Centred(nn.Module):
    """Its rows see each other."""

    def __init__(self) -> None:
        super().__init__()
        self.body = two_halves()

    def forward(self, x: Tensor) -> Tensor:
        h = self.body[1](self.body[0](x))
        return self.body[2](h - h.mean(0))


def test_a_model_that_mixes_rows_has_whole_batches_as_canaries() -> None:
    fast, traffic = serving(Centred().eval(), canary_interval=1, canary_rows=4, evidence=10**9), Traffic()
    assert "canaries: whole batches" in fast.explain()
    assert "canaries: a few rows of a batch" in serving().explain()
    fast.set_active("body.0", SOME)
    x = traffic.both(32)
    torch.testing.assert_close(fast(x), fast.restore()(x))
    assert fast.stats()["canary_rows"] == 32


# Control --------------------------------------------------------------------------------------------


def test_forced_sets_are_kept_exactly_and_given_back() -> None:
    fast, traffic = settled(canary_interval=2)
    mask = torch.arange(UNITS) == 63
    fast.set_active("0", mask)
    mask[:] = True  # the caller's tensor is the caller's
    for _ in range(60):
        fast(traffic.low(32))
        assert int(fast.active()["0"].sum()) == 1 and fast.active()["0"][63]
    fast.release("0")
    assert is_active(fast, LOW)


def test_a_frozen_model_is_a_pure_function() -> None:
    fast, traffic = settled(canary_interval=1)
    fast.freeze()
    before, usage = fast.stats(), fast.usage()["0"]
    x, y = traffic.both(33), None
    for _ in range(20):
        y, previous = fast(x), y
        assert previous is None or torch.equal(y, previous)
        fast(traffic.high(64))
    after = fast.stats()
    assert {k for k in after if after[k] != before[k]} == {
        "batches",
        "rows",
        "operations",
        "dense_operations",
    }
    assert all(map(torch.equal, vars(fast.usage()["0"]).values(), vars(usage).values()))
    assert is_active(fast, LOW)
    fast.unfreeze()
    for _ in range(100):
        fast(traffic.both(64))
    assert is_active(fast, EVERYTHING)


def test_calibrate_applies_the_policy_once() -> None:
    fast, traffic = serving(max_flips=1 / UNITS, dwell=1000), Traffic()
    fast.calibrate(traffic.low(20) for _ in range(3))
    assert is_active(fast, LOW)
    assert fast.usage()["0"].count[0] == pytest.approx(60, rel=0.02)
    fast.calibrate(traffic.high(64))
    assert is_active(fast, ~LOW)
    fast.calibrate([(traffic.low(64),), (traffic.high(64),)])
    assert is_active(fast, EVERYTHING)


def test_calibrate_measures_usage_and_constants() -> None:
    fast, traffic = serving(window=10**9), Traffic()
    x = traffic.both(100)
    fast.calibrate([x[:30], x[30:]])
    hidden = torch.relu(fast.restore()[0](x)).double()
    usage = fast.usage()["0"]
    torch.testing.assert_close(usage.mean_abs, hidden.abs().mean(0), rtol=1e-5, atol=1e-6)
    torch.testing.assert_close(usage.mean, hidden.mean(0), rtol=1e-5, atol=1e-6)
    torch.testing.assert_close(usage.var, hidden.var(0, correction=0), rtol=1e-4, atol=1e-6)
    assert usage.count.tolist() == pytest.approx([100.0] * UNITS, rel=1e-5)
    torch.testing.assert_close(fast.constants()["0"], hidden.mean(0).float(), rtol=1e-5, atol=1e-6)


def test_without_compensation_constants_are_zero() -> None:
    fast, traffic = serving(compensation="none"), Traffic()
    fast.calibrate(traffic.low(128))
    assert is_active(fast, LOW)
    assert not fast.constants()["0"].any()


def test_weights_changed_in_place_are_noticed() -> None:
    fast, traffic = settled()
    model = fast.restore()
    with torch.no_grad():
        model[2].weight.mul_(3)
    x = traffic.both(32)
    torch.testing.assert_close(fast(x), model(x))
    assert is_active(fast, EVERYTHING) and fast.stats()["observing"]
    model.load_state_dict(two_halves(7).state_dict())
    torch.testing.assert_close(fast(x), model(x))


def test_weights_changed_while_frozen_keep_the_choice() -> None:
    fast, traffic = settled()
    fast.freeze()
    model = fast.restore()
    with torch.no_grad():
        model[0].weight.mul_(-0.5)
    x = traffic.both(32)
    assert relative_error(fast(x), masked_dense(model, fast, [Reader("2", "0")], x)) <= 1e-5
    assert is_active(fast, LOW)


def test_calibrate_after_a_change_of_weights_stays_in_force() -> None:
    fast, traffic = serving(), Traffic()
    with torch.no_grad():
        fast.restore()[0].weight.mul_(2)
    x = traffic.low(128)
    fast.calibrate(x)
    fast(x)
    assert is_active(fast, LOW)
    hidden = torch.relu(fast.restore()[0](x)).mean(0)
    torch.testing.assert_close(fast.constants()["0"], hidden.detach(), rtol=1e-4, atol=1e-5)


def test_on_update_gets_every_published_choice() -> None:
    fast, traffic = serving(), Traffic()
    told: list[Tensor] = []
    fast.on_update(lambda choice: told.append(choice["0"]))
    for _ in range(4):
        fast(traffic.low(32))
    assert [t.tolist() for t in told] == [LOW.tolist()]
    fast.set_active("0", SOME)
    fast.release("0")
    assert [t.tolist() for t in told[1:]] == [SOME.tolist(), LOW.tolist()]
    told[-1].zero_()
    assert is_active(fast, LOW), "a choice is the callback's own"


def test_stats_of_a_known_network_are_exact() -> None:
    fast, traffic = settled(canary_interval=10**6, drift_threshold=math.inf)
    dense, pruned = INPUTS * UNITS + UNITS * 3, INPUTS * 32 + 32 * 3
    stats = fast.stats()
    assert set(stats) == {
        "batches", "rows", "canary_rows", "bad_batches", "unread_batches", "flips", "active_fraction",
        "operations", "dense_operations", "observing",
    }  # fmt: skip
    assert stats["operations"] == stats["dense_operations"] == 128 * dense
    fast.freeze()
    fast(traffic.low(10))
    after = fast.stats()
    assert after["operations"] - stats["operations"] == 10 * pruned
    assert after["dense_operations"] - stats["dense_operations"] == 10 * dense
    assert (after["batches"], after["rows"], after["canary_rows"]) == (5, 138, 0)
    assert after["active_fraction"] == 0.5


def test_operations_agree_with_torch() -> None:
    torch.manual_seed(0)
    model = nn.Sequential(
        nn.Conv2d(3, 20, 3, padding=1), nn.ReLU(), nn.Conv2d(20, 18, 3, stride=2), nn.GELU(), nn.MaxPool2d(2),
        nn.Flatten(), nn.Linear(72, 11), nn.Tanh(), nn.Linear(11, 4),
    ).eval()  # fmt: skip
    x = torch.randn(5, 3, 9, 9)
    fast = dynprune.accelerate(model, x)
    fast.freeze()
    for name, group in fast.groups.items():
        fast.set_active(name, torch.arange(group.units) % 3 > 0)
    fast(x)
    stats = fast.stats()
    for key, module in (("dense_operations", model), ("operations", fast.materialize(compensate=False))):
        with FlopCounterMode(display=False) as counter, torch.no_grad():
            module(x)
        assert stats[key] == counter.get_total_flops() / 2


def test_restore_gives_the_original_with_weights_intact() -> None:
    model = two_halves().train()
    before = {k: v.clone() for k, v in model.state_dict().items()}
    fast, traffic = serving(model), Traffic()
    for _ in range(20):
        fast(traffic.low(64))
    assert fast.restore() is model and model.training
    assert all(torch.equal(v, before[k]) for k, v in model.state_dict().items())
    model(traffic.low(4)).sum().backward()
    assert model[0].weight.grad is not None


# NaN, guard -----------------------------------------------------------------------------------------


@pytest.mark.parametrize("criterion", ["contribution", "mean_abs"])
@pytest.mark.parametrize("bad", [math.nan, math.inf])
def test_bad_values_never_enter_the_statistics(bad: float, criterion: str) -> None:
    fast, traffic = serving(criterion=criterion), Traffic()
    for _ in range(6):
        fast(torch.full((64, INPUTS), bad))
    assert is_active(fast, EVERYTHING), "nothing was seen"
    clean = serving(window=10**9)
    for batch in range(6):
        x = traffic.low(32)
        x[3, 3] = bad if batch < 2 else 0.0
        clean(x)
    usage = clean.usage()["0"]
    assert all(value.isfinite().all() for value in vars(usage).values())
    assert fast.stats()["bad_batches"] > 0 and clean.stats()["bad_batches"] == 2
    assert clean.constants()["0"].isfinite().all()
    assert is_active(clean, LOW)


def test_the_guard_lowers_the_thresholds() -> None:
    def run(limit: float | None) -> dynprune.AcceleratedModel:
        fast, traffic = (
            serving(
                max_divergence=limit, prune_threshold=1.5, reactivate_threshold=1.6, canary_interval=2, seed=1
            ),
            Traffic(),
        )
        for _ in range(200):
            fast(traffic.both(32))
        return fast

    free, guarded = run(None), run(0.02)
    assert free.stats()["active_fraction"] < 0.9, "the thresholds would prune much"
    divergence = guarded.stats()["divergence"]
    assert divergence["threshold_scale"] < 1
    assert guarded.stats()["active_fraction"] > free.stats()["active_fraction"]
    x = Traffic(5).both(2000)
    guarded.freeze()
    changed = (guarded(x).argmax(1) != guarded.restore()(x).argmax(1)).double().mean()
    assert changed <= 0.04


def test_the_guard_leaves_harmless_pruning_alone() -> None:
    fast, traffic = settled(max_divergence=0.01, canary_interval=2)
    for _ in range(60):
        fast(traffic.low(32))
    stats = fast.stats()
    assert is_active(fast, LOW)
    assert stats["divergence"]["threshold_scale"] == 1 and stats["divergence"]["estimate"] == 0
    # rows that run twice are paid for, but a dense model would have run them once
    assert stats["dense_operations"] == stats["rows"] * (INPUTS * UNITS + UNITS * 3)


# Dtypes ---------------------------------------------------------------------------------------------


@pytest.mark.parametrize("rows", [1, 8, 9])
def test_small_inputs_are_left_out_where_rows_are_few(rows: int) -> None:
    model, threshold = two_halves(), 1.5
    fast = serving(model, input_threshold=threshold)

    def left_out(x: Tensor) -> Tensor:
        return torch.where((x.abs() <= threshold).all(0), 0.0, x) if rows <= 8 else x

    x = Traffic().both(rows)
    with torch.no_grad():
        expected = model[2](left_out(model[1](model[0](left_out(x)))))
        torch.testing.assert_close(fast(x), model(x), msg="all that is observed is exact")
        fast.freeze()
        torch.testing.assert_close(fast(x), expected)


def test_canary_rows_leave_no_inputs_out() -> None:
    fast, traffic = settled(input_threshold=0.5, canary_interval=1)
    fast.set_active("0", LOW)
    x = traffic.low(1)
    torch.testing.assert_close(fast(x), fast.restore()(x))
    fast.freeze()
    assert not torch.allclose(fast(x), fast.restore()(x))


def test_weights_kept_a_second_time_give_the_same() -> None:
    torch.manual_seed(0)
    model = nn.Sequential(
        nn.Linear(300, 400), nn.ReLU(), nn.Linear(400, 300), nn.ReLU(), nn.Linear(300, 3)
    ).eval()
    plain, twice = (
        dynprune.accelerate(model, torch.randn(1, 300), Config(input_major=value)) for value in (False, True)
    )
    entries = twice._controller.plan.entries
    kept = [entry.input_major is not None for entry in entries if isinstance(entry, LinearEntry)]
    assert kept == ([True, True, False] if ops.native is not None else [False] * 3)
    for fast in (plain, twice):
        fast.set_active("0", torch.arange(400) % 3 > 0)
        fast.freeze()
    for rows in (1, 5, 9):
        x = torch.randn(rows, 300)
        torch.testing.assert_close(twice(x), plain(x))


def test_float64_model() -> None:
    model, traffic = two_halves().double(), Traffic()
    fast = dynprune.accelerate(model, torch.zeros(2, INPUTS).double(), Config(evidence=128))
    for _ in range(4):
        fast(traffic.low(32).double())
    assert is_active(fast, LOW)
    x = traffic.both(20).double()
    fast.freeze()
    assert fast(x).dtype == torch.float64
    assert relative_error(fast(x), masked_dense(model, fast, [Reader("2", "0")], x)) <= 1e-12
    assert relative_error(fast.materialize()(x), masked_dense(model, fast, [Reader("2", "0")], x)) <= 1e-12


@pytest.mark.parametrize(("dtype", "tolerance"), [(torch.bfloat16, 3e-2), (torch.float64, 1e-6)])
def test_computing_in_another_dtype(dtype: torch.dtype, tolerance: float) -> None:
    model = two_halves()
    before = {k: v.clone() for k, v in model.state_dict().items()}
    fast, traffic = serving(model, dtype=dtype), Traffic()
    for _ in range(4):
        assert fast(traffic.low(32)).dtype == torch.float32
    assert is_active(fast, LOW)
    fast.calibrate(traffic.low(128))
    fast.freeze()
    x = traffic.both(20)
    expected = masked_dense(model, fast, [Reader("2", "0")], x)
    assert relative_error(fast(x), expected) <= tolerance
    assert all(
        torch.equal(v, before[k]) and v.dtype == before[k].dtype for k, v in model.state_dict().items()
    )
    assert fast.restore() is model


LARGE = {
    "linear": (
        lambda: nn.Sequential(nn.Linear(20, 700), nn.BatchNorm1d(700), nn.ReLU(), nn.Linear(700, 1500),
                              nn.Tanh(), nn.Linear(1500, 3)),
        (20,),
    ),
    "convolution": (
        lambda: nn.Sequential(
            nn.Conv2d(3, 20, 3, padding=1), nn.BatchNorm2d(20), nn.ReLU(), nn.Conv2d(20, 20, 3, groups=20),
            nn.ReLU(), nn.Conv2d(20, 30, 3, groups=2), nn.GELU(), nn.Flatten(), nn.Linear(30 * 16, 2300),
            nn.ReLU(), nn.Linear(2300, 3),
        ),
        (3, 8, 8),
    ),
}  # fmt: skip


@pytest.mark.parametrize("name", LARGE)
def test_large_models_hold_no_packed_dense_plan_beside_a_pruned_one(name: str) -> None:
    torch.manual_seed(0)
    make, shape = LARGE[name]
    model = random_norms(make())
    x = torch.randn(16, *shape)
    fast = dynprune.accelerate(model, x)
    packed = fast._controller.dense_plan
    first, group = next(iter(fast.groups.items()))
    fast.set_active(first, torch.rand(group.units) < 0.5)
    shared = fast._controller.dense_plan
    parameters = {p.data_ptr() for p in model.parameters()}
    for site, entry in zip(fast._program.sites, shared.entries, strict=True):
        assert not hasattr(entry, "weight") or entry.weight.data_ptr() in parameters, site.name
    # Both see the same, and give the same.
    records = [fast._controller.dense_record() for _ in range(2)]
    outputs = [fast._server.run(plan, r, x) for plan, r in zip((packed, shared), records, strict=True)]
    torch.testing.assert_close(*outputs, rtol=1e-4, atol=1e-5)
    for group_name in records[0].usage:
        torch.testing.assert_close(*(r.usage[group_name] for r in records), rtol=1e-4, atol=1e-3)
    for index in records[0].reads:
        torch.testing.assert_close(*(r.reads[index][0] for r in records), rtol=1e-4, atol=1e-3)
    assert records[0].operations == records[1].operations
    fast.release(first)
    assert fast._controller.plan.dense
    assert fast._controller.dense_plan.entries[0].weight.data_ptr() not in parameters
    torch.testing.assert_close(fast(x), model(x), rtol=1e-4, atol=1e-5)


def test_a_group_forced_during_the_first_decision_is_decided_on_when_released() -> None:
    fast = dynprune.accelerate(two_halves(), torch.zeros(2, INPUTS), Config(evidence=128))
    fast.set_active("0", torch.ones(UNITS, dtype=torch.bool))
    traffic = Traffic(0)
    for _ in range(8):
        fast(traffic.low(32))
    assert not fast.stats()["observing"] and fast.active()["0"].all()
    fast.release("0")
    assert torch.equal(fast.active()["0"], LOW)


def test_operations_that_were_counted_once_are_those_of_every_call() -> None:
    """A call whose input has a known shape runs without being counted; another shape or plan is counted."""
    torch.manual_seed(0)
    model = nn.Sequential(
        nn.Conv2d(3, 8, 3), nn.ReLU(), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(8, 4)
    ).eval()
    fast = dynprune.accelerate(model, torch.randn(4, 3, 12, 12))
    fast.freeze()

    def check(rows: int, size: int, active: int) -> None:
        before = fast.stats()["operations"]
        fast(torch.randn(rows, 3, size, size))
        assert fast.stats()["operations"] - before == rows * ((size - 2) ** 2 * 27 + 4) * active

    for active in (8, 3):
        fast.set_active("0", torch.arange(8) < active)
        for rows, size in ((4, 12), (4, 12), (2, 12), (4, 9), (4, 12), (4, 9)):
            check(rows, size, active)
    expected = 2 * 8 * sum(r * ((s - 2) ** 2 * 27 + 4) for r, s in [(4, 12)] * 3 + [(2, 12)] + [(4, 9)] * 2)
    assert fast.stats()["dense_operations"] == expected
