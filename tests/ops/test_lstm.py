"""dynprune::lstm against its reference in float64, and the reference against nn.LSTM."""

from __future__ import annotations

import itertools
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from dynprune import ops
from dynprune.ops import lstm_reference
from tests.ops.tolerance import assert_close

LSTM = torch.ops.dynprune.lstm


def gates_of(depth: int, units: list[int], seed: int = 0) -> tuple[list[tuple[Tensor, Tensor]], list[Tensor]]:
    """Weights of input and states, and biases, of each direction, float32."""
    g = torch.Generator().manual_seed(seed)
    weights, biases = [], []
    for n in units:
        scale = max(1, depth + n) ** -0.5
        w_ih, w_hh = torch.randn(4 * n, depth, generator=g), torch.randn(4 * n, n, generator=g)
        weights.append((w_ih * scale, w_hh * scale))
        biases.append(torch.randn(2, 4, n, generator=g))
    return weights, biases


def operands(depth: int, units: list[int], seed: int = 0) -> tuple[list[Tensor], list[Tensor]]:
    """Packed weights and biases of each direction, float32."""
    weights, biases = gates_of(depth, units, seed)
    return [ops.pack_lstm(*pair) for pair in weights], biases


def compare(x: Tensor, weights: list[Tensor], biases: list[Tensor], **options: Any) -> None:
    total = sum(b.shape[2] for b in biases)
    usage, expected_usage = (torch.ones(4, total, dtype=torch.float64) for _ in range(2))
    got = LSTM(x, weights, biases, usage=usage, **options)
    double = {
        k: v.double() if isinstance(v, Tensor) and v.is_floating_point() else v for k, v in options.items()
    }
    expected = lstm_reference.lstm(
        x.double(), [w.double() for w in weights], [b.double() for b in biases],
        usage=expected_usage, **double,
    )  # fmt: skip
    for ours, reference in zip(got, expected, strict=True):
        assert_close(ours, reference)
    assert torch.allclose(usage, expected_usage, rtol=1e-4, atol=1e-4)
    assert torch.equal(usage[3], expected_usage[3])


@pytest.mark.parametrize(
    ("steps", "batch", "depth", "units"),
    [
        (1, 1, 1, [1]),
        (7, 3, 5, [17]),
        (5, 70, 9, [16, 33]),
        (40, 2, 12, [20, 0]),
        (3, 4, 0, [5, 6]),
        (90, 1, 3, [64]),
    ],
    ids=str,
)
@pytest.mark.parametrize("batch_first", [False, True])
def test_against_reference(steps: int, batch: int, depth: int, units: list[int], batch_first: bool) -> None:
    g = torch.Generator().manual_seed(1)
    x = torch.randn((batch, steps, depth) if batch_first else (steps, batch, depth), generator=g)
    total = sum(units)
    lengths = torch.randint(0, steps + 1, (batch,), generator=g)
    states = {n: torch.randn(batch, total, generator=g) for n in ("hidden", "cell")}
    first = torch.randn(batch, 4 * total, generator=g)
    weights, biases = operands(depth, units)
    for use_lengths, use_states, use_first in itertools.product([False, True], repeat=3):
        options: dict[str, Any] = {"batch_first": batch_first}
        options |= {"lengths": lengths} if use_lengths else {}
        options |= states if use_states else {}
        options |= {"first": first} if use_first else {}
        compare(x, weights, biases, **options)


@pytest.mark.parametrize("shape", [(0, 3, 4), (3, 0, 4)], ids=["no steps", "no rows"])
def test_empty(shape: tuple[int, int, int]) -> None:
    weights, biases = operands(4, [6, 7])
    hidden = torch.randn(shape[1], 13)
    y, h, c = LSTM(torch.randn(shape), weights, biases, hidden=hidden)
    assert y.shape == (*shape[:2], 13)
    assert torch.equal(h, hidden)
    assert torch.equal(c, torch.zeros_like(hidden))


def test_any_strides() -> None:
    weights, biases = operands(6, [9])
    compare(torch.randn(6, 5, 4).permute(2, 1, 0), weights, biases)


def test_threads_agree() -> None:
    weights, biases = operands(8, [24, 24])
    x, before, results = torch.randn(30, 50, 8), torch.get_num_threads(), []
    try:
        for threads in (1, 2, 3):
            torch.set_num_threads(threads)
            results.append(LSTM(x, weights, biases)[0])
    finally:
        torch.set_num_threads(before)
    assert all(torch.equal(results[0], other) for other in results[1:])


def test_values_that_are_not_finite_never_enter_the_usage() -> None:
    weights, biases = operands(3, [5])
    x = torch.randn(4, 6, 3)
    x[:, 2] = float("nan")
    usage = torch.zeros(4, 5, dtype=torch.float64)
    y, *_ = LSTM(x, weights, biases, usage=usage)
    assert y[:, 2].isnan().all()
    assert not y[:, [0, 1, 3, 4, 5]].isnan().any()
    assert usage.isfinite().all()


def test_reference_is_nn_lstm() -> None:
    torch.manual_seed(0)
    layer = nn.LSTM(7, 20, bidirectional=True).double().eval()
    x = torch.randn(9, 4, 7, dtype=torch.float64)
    weights, biases = [], []
    for name in ("l0", "l0_reverse"):
        part = {
            k: getattr(layer, f"{k}_{name}").detach()
            for k in ("weight_ih", "weight_hh", "bias_ih", "bias_hh")
        }
        weights.append(ops.pack_lstm(part["weight_ih"], part["weight_hh"]))
        bias = (part["bias_ih"] + part["bias_hh"]).view(4, -1)
        biases.append(torch.stack([bias, bias]))
    with torch.no_grad():
        expected, (h, c) = layer(x)
    got = lstm_reference.lstm(x, weights, biases)
    for ours, theirs in zip(got, (expected, torch.cat(list(h), 1), torch.cat(list(c), 1)), strict=True):
        torch.testing.assert_close(ours, theirs)


def test_opcheck() -> None:
    weights, biases = operands(5, [6, 9])
    usage = torch.zeros(4, 15, dtype=torch.float64)
    arguments = (torch.randn(4, 3, 5), weights, biases, torch.tensor([4, 2, 0]))
    torch.library.opcheck(LSTM.default, arguments, {"usage": usage})


WRONG: dict[str, tuple[dict[str, Any], str]] = {
    "input": ({"input": torch.randn(4, 5)}, r"expected an input \[steps, batch, features\]"),
    "directions": (
        {"weight": [], "bias": []},
        "expected a weight and a bias for each of one or two directions",
    ),
    "weight": (
        {"input": torch.randn(4, 3, 6)},
        r"expected a contiguous packed weight \[1, 12, 64\], got \[1, 11, 64\]",
    ),
    "lengths": ({"lengths": torch.tensor([4, 5, 1])}, "expected lengths from 0 to 4, got 5"),
    "count": ({"lengths": torch.tensor([4, 4])}, r"expected contiguous int64 lengths \[3\]"),
    "bias": ({"bias": [torch.randn(4, 6)]}, r"expected a contiguous bias \[2, 4, units\], got \[4, 6\]"),
    "first": ({"first": torch.randn(3, 6)}, r"expected first \[3, 24\], got \[3, 6\]"),
    "hidden": ({"hidden": torch.randn(3, 5)}, r"expected a hidden state \[3, 6\], got \[3, 5\]"),
}


@pytest.mark.parametrize(("change", "message"), WRONG.values(), ids=WRONG)
@pytest.mark.parametrize("op", [LSTM, lstm_reference.lstm], ids=["op", "reference"])
def test_errors(op: Any, change: dict[str, Any], message: str) -> None:
    weights, biases = operands(5, [6])
    arguments = {"input": torch.randn(4, 3, 5), "weight": weights, "bias": biases} | change
    with pytest.raises(ValueError, match=f"lstm: {message}"):
        op(**arguments)
