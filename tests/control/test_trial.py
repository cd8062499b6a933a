"""Which compensation makes answers surer, and that a model follows it."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

import dynprune
from dynprune.control.trial import Trial
from tests.models.traffic import INPUTS, LOW, Traffic, two_halves


def scores(rows: int, sharpness: float, seed: int = 0) -> Tensor:
    return sharpness * torch.randn(rows, 5, generator=torch.Generator().manual_seed(seed))


def test_the_surer_answers_win_once_enough_rows_ran_both_ways() -> None:
    trial = Trial()
    assert trial.choice == "mean" and trial.other == "none" and trial.undecided
    assert not trial.add(scores(200, 1.0), scores(200, 2.0)) and trial.undecided
    assert trial.add(scores(100, 1.0), scores(100, 2.0)) and trial.choice == "none"
    assert not trial.add(scores(100, 2.0), scores(100, 1.0)), "now the first is without means"
    for _ in range(20):
        trial.add(scores(100, 1.0), scores(100, 1.0))
    assert trial.choice == "mean", "alike: means are the safer choice"


def test_nothing_is_learned_from_no_rows_or_bad_ones() -> None:
    trial = Trial()
    trial.add(scores(0, 1.0), scores(0, 1.0))
    trial.add(torch.full((500, 5), float("nan")), scores(500, 1.0))
    assert trial.undecided
    trial.restart()
    assert trial.add(scores(300, 1.0)[:, :1], scores(300, 9.0)[:, :1]), "a single score is one of two classes"


@pytest.mark.parametrize("better", ["mean", "none"])
def test_a_model_serves_what_is_surer(better: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """The trial is told which of both is surer; served is what it chooses, exactly."""
    config = dynprune.Config(compensation="auto", evidence=64, canary_interval=4, dwell=0)
    model = two_halves()
    fast, traffic = dynprune.accelerate(model, torch.randn(2, INPUTS), config), Traffic()
    entropies = {"mean": 1.0, "none": 1.0} | {better: 0.5}
    trial = fast._controller.trial
    assert trial is not None

    def told(scores: Tensor) -> Tensor:
        calls.append(len(scores))
        names = trial.choice, trial.other
        return torch.tensor(entropies[names[(len(calls) - 1) % 2]], dtype=torch.float64)

    calls: list[int] = []
    monkeypatch.setattr("dynprune.control.trial._entropy", told)
    for _ in range(60):
        fast(traffic.low(32))
    assert calls and fast.stats()["compensation"] == better
    assert fast.active()["0"].equal(LOW)
    fast.freeze()
    x = traffic.both(20)
    hidden = torch.relu(model[0](x))
    means = fast.usage()["0"].mean.float()
    stand_in = means if better == "mean" else torch.zeros_like(means)
    expected = model[2](torch.where(LOW, hidden, stand_in))
    torch.testing.assert_close(fast(x), expected, rtol=1e-3, atol=2e-2 if better == "mean" else 1e-5)
