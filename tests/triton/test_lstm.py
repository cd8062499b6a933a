"""The Triton kernel of ``lstm`` against the reference in float64."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor

from dynprune.ops import lstm_reference
from dynprune.ops.triton.lstm import lstm
from tests.ops.test_lstm import operands
from tests.ops.tolerance import assert_close, assert_usage_close


def check(device: str, dtype: torch.dtype, x: Tensor, units: list[int], **options: Any) -> None:
    weights, biases = operands(x.shape[2], units)
    total = sum(units)
    rounded = [x.to(dtype)], [w.to(dtype) for w in weights]
    moved = {k: v.to(device) if isinstance(v, Tensor) and k != "lengths" else v for k, v in options.items()}
    usage = torch.zeros(4, total, dtype=torch.float64, device=device)
    got = lstm(
        rounded[0][0].to(device), [w.to(device) for w in rounded[1]], [b.to(device) for b in biases],
        usage=usage, **moved,
    )  # fmt: skip
    wide = {
        k: v.double() if isinstance(v, Tensor) and v.is_floating_point() else v for k, v in options.items()
    }
    expected_usage = torch.zeros(4, total, dtype=torch.float64)
    expected = lstm_reference.lstm(
        rounded[0][0].double(), [w.double() for w in rounded[1]], [b.double() for b in biases],
        usage=expected_usage, **wide,
    )  # fmt: skip
    for ours, reference in zip(got, expected, strict=True):
        assert ours.dtype == dtype
        assert_close(ours.cpu(), reference)
    if dtype == torch.float32:
        assert_usage_close(usage.cpu(), expected_usage)


@pytest.mark.parametrize("batch_first", [False, True])
@pytest.mark.parametrize(
    ("steps", "batch", "depth", "units"),
    [(1, 1, 1, [1]), (4, 3, 5, [17]), (5, 18, 9, [16, 33]), (4, 2, 3, [20, 0]), (3, 4, 0, [5, 6])],
    ids=str,
)
def test_against_reference(
    device: str, steps: int, batch: int, depth: int, units: list[int], batch_first: bool
) -> None:
    g = torch.Generator().manual_seed(1)
    x = torch.randn((batch, steps, depth) if batch_first else (steps, batch, depth), generator=g)
    total = sum(units)
    lengths = torch.randint(0, steps + 1, (batch,), generator=g)
    states = {n: torch.randn(batch, total, generator=g) for n in ("hidden", "cell")}
    first = torch.randn(batch, 4 * total, generator=g)
    check(device, torch.float32, x, units, batch_first=batch_first)
    check(device, torch.float32, x, units, batch_first=batch_first, lengths=lengths, first=first, **states)


def test_half(device: str) -> None:
    check(device, torch.float16, torch.randn(6, 5, 9, generator=torch.Generator().manual_seed(0)), [19, 8])


def test_counts_in_device_memory(device: str) -> None:
    """Units and inputs beyond the counts are neither read nor written."""
    g = torch.Generator().manual_seed(3)
    weights, biases = operands(20, [48, 32])
    x, first = torch.randn(5, 3, 20, generator=g), torch.randn(3, 4 * 80, generator=g)
    x[..., 16:] = float("nan")
    counts = {
        n: torch.tensor(v, dtype=torch.int32) for n, v in (("unit_counts", [32, 16]), ("depth_count", [16]))
    }
    expected = lstm_reference.lstm(x, weights, biases, first=first, **counts)
    got = lstm(
        x.to(device), [w.to(device) for w in weights], [b.to(device) for b in biases],
        first=first.to(device), **{n: c.to(device) for n, c in counts.items()},
    )  # fmt: skip
    for ours, wanted in zip(got, expected, strict=True):
        there = ~wanted.isnan()
        assert int(there.sum()) == wanted.numel() * 48 // 80
        assert_close(ours.cpu()[there], wanted[there].double())


@pytest.mark.parametrize("shape", [(0, 3, 4), (3, 0, 4)], ids=["no steps", "no rows"])
def test_empty(device: str, shape: tuple[int, int, int]) -> None:
    weights, biases = operands(4, [6, 7])
    hidden = torch.randn(shape[1], 13).to(device)
    on = [w.to(device) for w in weights], [b.to(device) for b in biases]
    y, h, c = lstm(torch.randn(shape).to(device), *on, hidden=hidden)
    assert y.shape == (*shape[:2], 13)
    assert torch.equal(h, hidden)
    assert torch.equal(c, torch.zeros_like(hidden))


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"x": torch.randn(3, 4)}, r"an input \[steps, batch, features\]"),
        ({"lengths": torch.tensor([1, 6, 2])}, "lengths from 0 to 5, got 6"),
        ({"lengths": torch.tensor([1, 2])}, r"contiguous int64 lengths \[3\]"),
        ({"hidden": torch.randn(3, 8)}, r"a hidden state \[3, 9\], got \[3, 8\]"),
        ({"first": torch.randn(3, 9)}, r"first \[3, 36\], got \[3, 9\]"),
    ],
    ids=["dimensions", "too long", "lengths", "hidden", "first"],
)
def test_bad_input(changes: dict[str, Tensor], message: str) -> None:
    weights, biases = operands(4, [9])
    options: dict[str, Any] = dict(changes)
    x = options.pop("x", torch.randn(5, 3, 4))
    with pytest.raises(ValueError, match=f"^lstm: expected {message}"):
        lstm(x, weights, biases, **options)
