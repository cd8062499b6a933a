"""Learning and building on a thread of its own."""

from __future__ import annotations

import copy
import gc
import threading
import weakref
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import pytest
import torch
from torch import Tensor

import dynprune
from tests.models.traffic import INPUTS, LOW, Traffic, two_halves


def background(**options: Any) -> dynprune.AcceleratedModel:
    options = {"background": True, **options}
    config = dynprune.Config(evidence=64, canary_interval=2, dwell=0, **options)
    return dynprune.accelerate(two_halves(), torch.randn(2, INPUTS), config)


def test_it_comes_to_the_same_choice() -> None:
    fast, traffic = background(), Traffic()
    for _ in range(20):
        fast(traffic.low(32))
        fast.wait()
    assert fast.active()["0"].equal(LOW)
    stats = fast.stats()
    assert stats["batches"] == 20 and stats["rows"] == 640
    fast.freeze()
    x = traffic.low(9)
    torch.testing.assert_close(fast(x), fast.restore()(x), rtol=1e-4, atol=1e-4)


def test_a_request_does_not_wait_for_a_plan(monkeypatch: pytest.MonkeyPatch) -> None:
    """While one is being built, requests are answered on the plan before, by this thread alone."""
    fast, traffic = background(), Traffic()
    builder = fast._controller.builder
    building, go_on, threads = threading.Event(), threading.Event(), set()
    original = builder.build

    def slow(*args: Any, **kwargs: Any) -> Any:
        threads.add(threading.current_thread())
        building.set()
        assert go_on.wait(30)
        return original(*args, **kwargs)

    monkeypatch.setattr(builder, "build", slow)
    for _ in range(200):
        fast(traffic.low(32))
        if building.wait(0.02):
            break
    assert building.is_set()
    serial = fast._controller.plan.serial
    for _ in range(20):
        assert fast(traffic.low(32)).shape == (32, 3)
    assert fast._controller.plan.serial == serial, "still the plan before"
    go_on.set()
    fast.wait()
    assert fast.active()["0"].equal(LOW)
    assert threads and threading.current_thread() not in threads


def test_what_a_callback_raises_reaches_a_later_call() -> None:
    fast, traffic = background(), Traffic()

    def refuse(choice: dict[str, Tensor]) -> None:
        raise RuntimeError("refused")

    fast.on_update(refuse)

    def serve_on() -> None:
        for _ in range(500):
            fast(traffic.low(32))

    with pytest.raises(RuntimeError, match="refused"):
        serve_on()
    assert fast.active()["0"].all(), "the choice was not adopted"
    assert fast(traffic.low(4)).shape == (4, 3)


@pytest.mark.parametrize("in_background", [False, True])
def test_what_comes_faster_than_it_is_learned_from_is_counted_only(in_background: bool) -> None:
    fast, traffic = background(background=in_background), Traffic()
    with ThreadPoolExecutor(1) as elsewhere, fast._controller.lock:
        for _ in range(400):
            elsewhere.submit(fast, traffic.low(2)).result()
        waiting = list(fast._controller.inbox.waiting)
    fast.wait()
    learned = sum(not seen.forgotten for seen in waiting)
    stats = fast.stats()
    assert 0 < learned < 100
    assert all(not seen.dense[0].usage and not seen.dense[0].reads for seen in waiting[learned:])
    assert (stats["batches"], stats["rows"], stats["unread_batches"]) == (400, 800, 400 - learned)
    assert stats["operations"] == stats["dense_operations"] > 0
    assert 0.9 * 2 * learned < fast.usage()["0"].count.max() <= 2 * learned, "window"
    assert not fast._controller.inbox.waiting


def test_copies_have_a_background_of_their_own_and_models_go_away() -> None:
    fast, traffic = background(), Traffic()
    for _ in range(10):
        fast(traffic.low(32))
    again = copy.deepcopy(fast)
    assert again.stats() == fast.stats()
    again(traffic.low(32))
    again.wait()
    assert again.stats()["batches"] == fast.stats()["batches"] + 1
    gone = weakref.ref(again)
    del again
    gc.collect()
    assert gone() is None
