"""What ``benchmarks.streams`` makes of the batches of a stream."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest

from benchmarks import streams
from benchmarks.streams import phase_summaries


def _row(phase: int, gain: float, changed: float, back: bool) -> dict[str, object]:
    return {
        "phase": phase,
        "operations": 0.5 + 0.1 * phase,
        "gain": gain,
        "changed": changed,
        "flips": 0.001,
        "back": back,
        "missing_back": back,
    }


def test_phases_are_summed_up_by_their_parts() -> None:
    first = [_row(0, 0.0, 0.0, True)] * 60
    second = [_row(1, -0.1, 0.5, False)] * 8 + [_row(1, -0.04, 0.02, True)] * 8
    second += [_row(1, -0.01, 0.02, True)] * 64 + [_row(1, 0.02, 0.01, True)] * 50
    one, two = phase_summaries([*first, *second])
    assert (one["phase"], one["returned"], one["operations"]) == (0, 0, 0.5)
    assert (two["phase"], two["returned"], two["missing_returned"]) == (1, 8, 8)
    assert two["gain"] == pytest.approx(0.02), "the last 50"
    assert two["gain_9_16"] == pytest.approx(-0.04)
    assert two["gain_17_80"] == pytest.approx(-0.01)
    assert two["changed_first"] == pytest.approx((8 * 0.5 + 12 * 0.02) / 20)
    assert two["changed_worst"] == pytest.approx((60 * 0.02 + 40 * 0.01) / 100)


def test_a_phase_that_comes_round_again_is_summed_up_again() -> None:
    rows = [_row(phase, 0.0, 0.0, False) for phase in (0, 0, 1, 1, 0, 0)]
    assert [each["phase"] for each in phase_summaries(rows)] == [0, 1, 0]
    assert [each["returned"] for each in phase_summaries(rows)] == [2, 2, 2]


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["nothing"], "experiment: expected one of"),
        (["mnist-mlp", "--seeds", "0"], "--seeds: expected a whole number of at least 1, got '0'"),
        (["mnist-mlp", "--thresholds", "0.3", "0.2"], "Config: expected prune_threshold at most"),
        (["mnist-mlp", "--weights", "nowhere"], "expected a file nowhere"),
    ],
)
def test_what_a_user_gets_wrong_is_one_error(
    arguments: list[str],
    message: str,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    more = ["--data-dir", str(tmp_path), "--stream", "sudden:0>1", "--out", str(tmp_path / "out.json")]
    monkeypatch.setattr(sys, "argv", ["streams", *arguments, *more])
    with pytest.raises(SystemExit):
        streams.main()
    assert message in capsys.readouterr().err.splitlines()[-1]
    assert not (tmp_path / "out.json").exists()
