"""Timing with a clock that the models themselves turn."""

from __future__ import annotations

from types import SimpleNamespace

import pytest
import torch
from torch import Tensor

from dynprune.experiments import timing
from dynprune.experiments.timing import time_interleaved


class Clock:
    def __init__(self) -> None:
        self.now = 0.0
        self.order: list[str] = []

    def model(self, name: str, seconds: list[float]) -> timing.Predict:
        """A model whose calls take ``seconds`` in turn, over and over."""
        calls = 0

        def predict(batch: Tensor) -> Tensor:
            nonlocal calls
            self.now += seconds[calls % len(seconds)]
            calls += 1
            self.order.append(name)
            return batch

        return predict


def test_medians_over_interleaved_passes(monkeypatch: pytest.MonkeyPatch) -> None:
    clock = Clock()
    monkeypatch.setattr(timing, "time", SimpleNamespace(perf_counter=lambda: clock.now))
    # Two calls per pass. Every fourth call of b is a slow one: a pass takes 0.02 or 0.05 s.
    models = {"a": clock.model("a", [0.03]), "b": clock.model("b", [0.01, 0.01, 0.01, 0.04])}
    times = time_interleaved(models, [(torch.zeros(4, 1),), (torch.zeros(4, 1),)], repeats=3)
    assert "".join(clock.order) == "aabb" + 3 * "aabb"
    assert times["a"].per_sample_ms == pytest.approx(1e3 * 0.06 / 8)
    # The counted passes take 0.05, 0.02 and 0.05 s: slow calls are part of the median.
    assert times["b"].per_sample_ms == pytest.approx(1e3 * 0.05 / 8)
    assert times["b"].per_sample_ms_p95 == pytest.approx(1e3 * 0.04 / 4)


def test_no_gradients_are_recorded() -> None:
    def predict(batch: Tensor) -> Tensor:
        assert torch.is_inference_mode_enabled()
        return batch

    time_interleaved({"a": predict}, [(torch.zeros(1, 1),)], repeats=1)
