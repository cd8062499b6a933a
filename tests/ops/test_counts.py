"""Numbers of units and inputs in device memory: what the reference makes of them, and who refuses them."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor

from dynprune.ops import lstm_reference, packing, reference
from tests.ops.cases import seeded
from tests.ops.test_lstm import operands

UNITS, DEPTH, N, K = 32, 48, 16, 32


def count(*values: int) -> Tensor:
    return torch.tensor(values, dtype=torch.int32)


def clean(x: Tensor, there: int, dim: int) -> Tensor:
    """``x`` with NaN where nothing is: it must not be read."""
    x = x.clone()
    x.narrow(dim, there, x.shape[dim] - there).fill_(float("nan"))
    return x


def test_linear() -> None:
    g = seeded("counts")
    x, w = torch.randn(5, DEPTH, generator=g), torch.randn(UNITS, DEPTH, generator=g)
    bias, usage = torch.randn(UNITS, generator=g), torch.zeros(4, UNITS, dtype=torch.float64)
    counts = {"unit_count": count(N), "depth_count": count(K)}
    y = reference.linear(clean(x, K, 1), w, bias, activation="relu", usage=usage, **counts)
    small = torch.zeros(4, N, dtype=torch.float64)
    expected = reference.linear(x[:, :K], w[:N, :K], bias[:N], activation="relu", usage=small)
    assert torch.equal(y[:, :N], expected)
    assert y.shape == (5, UNITS)
    assert bool(y[:, N:].isnan().all())
    assert torch.equal(usage[:, :N], small)
    assert not usage[:, N:].any()


@pytest.mark.parametrize("table", [False, True], ids=["bias", "table"])
def test_conv2d(table: bool) -> None:
    g = seeded("counts")
    x, w = torch.randn(2, DEPTH, 5, 4, generator=g), torch.randn(UNITS, DEPTH, 3, 3, generator=g)
    bias = torch.randn(2, 2, 2, 2, UNITS, generator=g) if table else torch.randn(UNITS, generator=g)
    geometry = ((1, 1), (1, 1))
    counts = {"unit_count": count(N), "depth_count": count(K)}
    y = reference.conv2d(clean(x, K, 1), w, bias, *geometry, **counts)
    expected = reference.conv2d(x[:, :K], w[:N, :K], bias[..., :N].contiguous(), *geometry)
    assert torch.allclose(y[:, :N], expected, atol=1e-4)
    assert y.is_contiguous(memory_format=torch.channels_last)
    assert bool(y[:, N:].isnan().all())


def test_a_table_beside_a_master_is_that_beside_a_packed_weight() -> None:
    g = seeded("table")
    x, w = torch.randn(2, 7, 5, 4, generator=g), torch.randn(9, 7, 3, 3, generator=g)
    table = torch.randn(2, 2, 2, 2, 9, generator=g)
    op = torch.ops.dynprune.conv2d
    y = op(x, w, table, (1, 1), (1, 1), activation="relu")
    for expected in (
        op(x, packing.pack_conv2d(w), table, (1, 1), (1, 1), activation="relu"),
        reference.conv2d(x, w, table, (1, 1), (1, 1), activation="relu"),
    ):
        assert torch.allclose(y, expected, atol=1e-4)


def test_lstm() -> None:
    g = seeded("counts")
    weights, biases = operands(DEPTH, [32, 16])
    x = torch.randn(6, 3, DEPTH, generator=g)
    first, lengths = torch.randn(3, 4 * 48, generator=g), torch.tensor([6, 2, 0])
    options: dict[str, Any] = {"lengths": lengths, "first": first}
    y, h, c = lstm_reference.lstm(
        clean(x, K, 2), weights, biases, **options, unit_counts=count(16, 16), depth_count=count(K)
    )
    # The same with weights of zero where nothing is, and of the units that are there alone.
    unpacked = [lstm_reference._unpacked(w, n) for w, n in zip(weights, (32, 16), strict=True)]
    ih = [w[:, :16, :K].flatten(0, 1) for w in unpacked]
    hh = [w[:, :16, DEPTH : DEPTH + 16].flatten(0, 1) for w in unpacked]
    small = [lstm_reference.pack_lstm(a, b) for a, b in zip(ih, hh, strict=True)]
    parts = first[:, : 4 * 32].view(3, 4, 32)[:, :, :16], first[:, 4 * 32 :].view(3, 4, 16)
    expected = lstm_reference.lstm(
        x[:, :, :K], small, [b[:, :, :16].contiguous() for b in biases], lengths,
        first=torch.cat([part.flatten(1) for part in parts], 1),
    )  # fmt: skip
    for got, wanted in zip((y, h, c), expected, strict=True):
        assert torch.allclose(torch.cat([got[..., :16], got[..., 32:]], -1), wanted, atol=1e-5)
        assert bool(got[..., 16:32].isnan().all())


@pytest.mark.parametrize(
    ("op", "args"),
    [
        ("linear", (torch.randn(2, 8), torch.randn(8, 8))),
        ("conv2d", (torch.randn(2, 8, 3, 3), torch.randn(8, 8, 1, 1))),
        ("sparse_input_linear", (torch.randn(2, 8), torch.randn(1, 8, 8), torch.zeros(8))),
    ],
    ids=["linear", "conv2d", "sparse_input_linear"],
)
def test_refused_on_the_cpu(op: str, args: tuple[Tensor, ...]) -> None:
    with pytest.raises(ValueError, match=f"{op}: expected no unit_count and no depth_count on the CPU"):
        getattr(torch.ops.dynprune, op)(*args, unit_count=count(8))


@pytest.mark.parametrize(
    "wrong",
    [count(8, 8), torch.tensor([8]), torch.tensor(8, dtype=torch.int32)],
    ids=["two", "int64", "scalar"],
)
def test_bad_counts(wrong: Tensor) -> None:
    with pytest.raises(ValueError, match=r"linear: expected int32 unit_count \[1\], got"):
        reference.linear(torch.randn(2, 8), torch.randn(8, 8), unit_count=wrong)
