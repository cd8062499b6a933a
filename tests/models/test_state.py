"""Keeping and handing on an accelerated model: state_dict, deepcopy, pickle, shared memory, interrupts."""

from __future__ import annotations

import copy
import io
import pickle
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import dynprune
from tests.models.traffic import CLASSES, INPUTS, UNITS, Traffic, two_halves


def adapted(**options: Any) -> dynprune.AcceleratedModel:
    """Pruned by its traffic, and still adapting."""
    config = dynprune.Config(evidence=64, canary_interval=2, dwell=0, **options)
    fast, traffic = dynprune.accelerate(two_halves(), torch.randn(2, INPUTS), config), Traffic()
    for _ in range(40):
        fast(traffic.low(32))
    assert fast.stats()["active_fraction"] < 0.9
    return fast


def assert_alike(left: dynprune.AcceleratedModel, right: dynprune.AcceleratedModel) -> None:
    """The same choice, constants, usage and counts, the same answers, and the same way on from there."""
    ours, theirs = left.active(), right.active()
    assert all(ours[name].equal(theirs[name]) for name in ours)
    assert all(left.constants()[name].equal(value) for name, value in right.constants().items())
    for name, usage in left.usage().items():
        assert all(
            torch.equal(a, b)
            for a, b in zip(vars(usage).values(), vars(right.usage()[name]).values(), strict=True)
        )
    assert left.stats() == right.stats()
    x = Traffic(7).both(50)
    frozen = [copy.deepcopy(model) for model in (left, right)]
    for model in frozen:
        model.freeze()
    assert frozen[0](x).equal(frozen[1](x))


OPTIONS: list[dict[str, Any]] = [
    {},
    {"compensation": "lstsq"},
    {"max_divergence": 0.2},
    {"criterion": "mean_abs", "prune_threshold": 0.3, "reactivate_threshold": 0.4},
]


@pytest.mark.parametrize("options", OPTIONS, ids=str)
def test_state_dict_into_a_model_accelerated_elsewhere(options: dict[str, Any]) -> None:
    fast = adapted(**options)
    fast.set_active("0", torch.arange(UNITS) % 3 == 0)
    stored = io.BytesIO()
    torch.save(fast.state_dict(), stored)
    stored.seek(0)
    other = dynprune.accelerate(two_halves(seed=5), torch.randn(2, INPUTS), fast.config)
    other.load_state_dict(torch.load(stored, weights_only=True))
    assert_alike(fast, other)
    fast.release("0")
    other.release("0")
    traffics = Traffic(3), Traffic(3)
    for _ in range(60):
        for model, traffic in zip((fast, other), traffics, strict=True):
            model(traffic.high(32))
    assert fast.stats()["rows"] == other.stats()["rows"]


def test_state_dict_as_a_part_of_a_larger_module() -> None:
    fast = adapted()
    larger, other = (
        nn.ModuleDict({"part": part})
        for part in (fast, dynprune.accelerate(two_halves(seed=9), torch.randn(2, INPUTS), fast.config))
    )
    other.load_state_dict(larger.state_dict())
    x = Traffic(1).low(9)
    part = other["part"]
    assert isinstance(part, dynprune.AcceleratedModel)
    fast.freeze()
    part(x[:0])
    part.freeze()
    assert part(x).equal(fast(x))


def test_the_dense_weights_of_a_state_dict_are_the_model_s() -> None:
    model = two_halves()
    fast = dynprune.accelerate(model, torch.randn(2, INPUTS))
    weights = {k: v for k, v in fast.state_dict().items() if isinstance(v, Tensor)}
    assert sorted(k.removeprefix("dense.") for k in weights) == sorted(model.state_dict())


def test_a_state_of_another_model_is_refused() -> None:
    wide = nn.Sequential(nn.Linear(INPUTS, 2 * UNITS), nn.ReLU(), nn.Linear(2 * UNITS, CLASSES)).eval()
    other = dynprune.accelerate(wide, torch.randn(2, INPUTS))
    fast = adapted()
    before = fast.active()["0"]
    fast.set_extra_state(other.get_extra_state())
    with pytest.raises(ValueError, match=r"load_state_dict: expected a state of groups .*64.*, got .*128"):
        fast(torch.randn(2, INPUTS))
    assert fast.active()["0"].equal(before)
    fast.set_extra_state({k: v for k, v in fast.get_extra_state().items() if k not in ("counts", "batch")})
    with pytest.raises(
        ValueError, match=r"load_state_dict: expected a state with .*, got one without batch, counts"
    ):
        fast(torch.randn(2, INPUTS))
    fast.set_extra_state({})
    with pytest.raises(ValueError, match="load_state_dict: expected a state of version 1, got None"):
        fast(torch.randn(2, INPUTS))


def test_a_state_of_before_there_was_a_count() -> None:
    fast, x = dynprune.accelerate(two_halves(), torch.randn(4, INPUTS)), torch.randn(4, INPUTS)
    fast(x)
    state = fast.get_extra_state()
    state["counts"] = {name: n for name, n in state["counts"].items() if name != "unread_batches"}
    fast.set_extra_state(state)
    fast(x)
    assert (fast.stats()["batches"], fast.stats()["unread_batches"]) == (2, 0)


@pytest.mark.parametrize("options", OPTIONS, ids=str)
@pytest.mark.parametrize("way", ["deepcopy", "pickle"])
def test_copies(way: str, options: dict[str, Any]) -> None:
    fast = adapted(**options)
    again = copy.deepcopy(fast) if way == "deepcopy" else pickle.loads(pickle.dumps(fast))
    assert_alike(fast, again)
    assert again.dense.get_parameter("0.weight") is not fast.dense.get_parameter("0.weight")
    counts = fast.stats()
    again.set_active("0", torch.zeros(UNITS, dtype=torch.bool))
    for _ in range(20):
        again(Traffic().high(32))
    assert fast.stats() == counts, "they share nothing that changes"


def test_shared_memory_freezes_for_good() -> None:
    fast = adapted()
    x, expected = Traffic(2).low(5), fast.active()["0"]
    assert fast.share_memory() is fast
    assert all(p.is_shared() for p in fast.restore().parameters())
    for adapt in (
        fast.unfreeze,
        lambda: fast.calibrate(x),
        lambda: fast.set_active("0", expected),
        lambda: fast.release("0"),
    ):
        with pytest.raises(ValueError, match="expected a model of this process alone"):
            adapt()
    before = fast(x)
    for _ in range(50):
        fast(Traffic().high(32))
    assert fast.active()["0"].equal(expected) and fast(x).equal(before)
    handed = pickle.loads(pickle.dumps(fast))
    assert handed(x).equal(before)
    with pytest.raises(ValueError, match="unfreeze: expected a model of this process alone"):
        handed.unfreeze()


@pytest.mark.parametrize("error", [KeyboardInterrupt, RuntimeError])
@pytest.mark.parametrize("place", ["statistics", "build", "decide"])
def test_an_interrupt_leaves_a_whole_model(
    monkeypatch: pytest.MonkeyPatch, place: str, error: type[BaseException]
) -> None:
    """Whatever is cut off, the choice is one that was published, and serving and adapting go on."""
    fast, traffic = adapted(), Traffic(4)
    controller = fast._controller
    published: list[dict[str, Tensor]] = [fast.active()]
    fast.on_update(published.append)
    owner, name = {
        "statistics": (type(next(iter(controller.statistics.usage.values()))), "add"),
        "build": (type(controller.builder), "build"),
        "decide": (type(controller), "_decide"),
    }[place]
    original, calls = getattr(owner, name), [0]

    def interrupted(*args: Any, **kwargs: Any) -> Any:
        calls[0] += 1
        if calls[0] % 3 == 1:
            raise error("cut off")
        return original(*args, **kwargs)

    seen = 0
    with monkeypatch.context() as patch:
        patch.setattr(owner, name, interrupted)
        for batch in range(60):
            rows = controller.statistics.rows
            try:
                fast(traffic.low(32) if batch < 30 else traffic.high(32))
            except error:
                seen += 1
                assert controller.statistics.rows in (rows, 0) or place != "statistics"
            assert any(fast.active()["0"].equal(choice["0"]) for choice in published)
            assert fast.active()["0"].equal(controller.plan.active["0"])
    assert seen > 0
    for _ in range(40):
        fast(traffic.low(32))
    x = traffic.low(16)
    fast.freeze()
    constants, mask = fast.constants()["0"], fast.active()["0"]
    dense = fast.restore()
    hidden = torch.where(mask, torch.relu(dense[0](x)), constants)
    torch.testing.assert_close(fast(x), dense[2](hidden), rtol=1e-5, atol=1e-5)
