"""The Triton kernel of ``conv2d`` against the reference in float64."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor

from dynprune.ops import packing, reference
from dynprune.ops.triton.conv2d import conv2d
from tests.ops.cases import CONV2D, TABLES, ConvCase, TableCase, names, seeded, subset
from tests.ops.tolerance import assert_close, assert_usage_close

# The interpreter takes its time for every tap of every tile: small cases, and none that PyTorch computes.
SMALL = [
    case for case in CONV2D
    if case.shape[0] * case.shape[2] * case.shape[3] <= 200
    and (case.groups == 1 or case.shape[1] >= 8 * case.groups)
]  # fmt: skip
HALF = [case for case in SMALL if case.name in ("3x3-uneven", "1x1-sliced-channels", "groups-2-wide", "1x7")]


def check(
    device: str, case: ConvCase, dtype: torch.dtype, bias: Tensor | None = None, **options: Any
) -> None:
    x, weight, own = case.tensors()
    bias = own if bias is None else bias
    x, weight = x.to(dtype), weight.to(dtype)
    indices = options.get("indices")
    units = case.units if indices is None else len(indices)
    expected_usage = torch.zeros(4, units, dtype=torch.float64)
    master = weight.double()
    if bias.dim() == 5:
        master = packing.pack_conv2d(master, groups=case.groups)
    expected = reference.conv2d(
        x.double(), master, bias.double(), *case.geometry, case.groups, usage=expected_usage, **options
    )
    usage = torch.zeros(4, units, dtype=torch.float64, device=device)
    moved = {k: v.to(device) if isinstance(v, Tensor) else v for k, v in options.items()}
    actual = conv2d(
        x.to(device), weight.to(device), bias.to(device), *case.geometry, case.groups, usage=usage, **moved
    )
    assert actual.is_contiguous(memory_format=torch.channels_last)
    assert_close(actual.cpu(), expected)
    assert_usage_close(usage.cpu(), expected_usage)


@pytest.mark.parametrize("case", SMALL, ids=names(SMALL))
def test_cases(device: str, case: ConvCase) -> None:
    check(device, case, torch.float32, activation="relu")


@pytest.mark.parametrize("case", HALF, ids=names(HALF))
def test_half(device: str, case: ConvCase) -> None:
    check(device, case, torch.float16, activation="silu")


TABLE_CASES = [case for case in TABLES if case.conv in SMALL and case.conv.groups == 1]


@pytest.mark.parametrize("case", TABLE_CASES, ids=names(TABLE_CASES))
def test_tables_of_biases(device: str, case: TableCase) -> None:
    check(device, case.conv, torch.float32, case.table())


def test_index_lists(device: str) -> None:
    g = seeded("lists")
    x, weight, bias = ConvCase("lists", (2, 19, 6, 5), 40, (3, 3)).tensors()
    units, channels = subset(40, 21, g), subset(19, 7, g)
    expected = reference.conv2d(
        x[:, channels].double(), weight[units][:, channels].double(), bias[units].double(), padding=(1, 1)
    )
    lists = {"indices": units.to(device), "input_indices": channels.to(device)}
    for given in (x, x[:, channels]):
        actual = conv2d(given.to(device), weight.to(device), bias.to(device), padding=(1, 1), **lists)
        assert_close(actual.cpu(), expected)


def test_counts_in_device_memory(device: str) -> None:
    x, weight, bias = (t.to(device) for t in ConvCase("counts", (2, 32, 5, 4), 48, (3, 3)).tensors())
    x[:, 16:], weight[:, 16:], weight[32:] = (float("nan"),) * 3
    counts = {
        n: torch.tensor([c], dtype=torch.int32, device=device)
        for n, c in (("unit_count", 32), ("depth_count", 16))
    }
    actual = conv2d(x, weight, bias, padding=(1, 1), **counts)
    expected = reference.conv2d(
        x[:, :16].double(), weight[:32, :16].double(), bias[:32].double(), padding=(1, 1)
    )
    assert_close(actual[:, :32].cpu(), expected.cpu())


def test_tables_with_counts(device: str) -> None:
    """A row of the table has all units, whatever their number."""
    x, weight, _ = (t.to(device) for t in ConvCase("table counts", (2, 16, 5, 4), 32, (3, 3)).tensors())
    table = torch.randn(2, 2, 2, 2, 32, generator=torch.Generator().manual_seed(0)).to(device)
    count = torch.tensor([16], dtype=torch.int32, device=device)
    actual = conv2d(x, weight, table, padding=(1, 1), unit_count=count)[:, :16]
    expected = reference.conv2d(x.cpu().double(), weight.cpu().double(), table.cpu().double(), padding=(1, 1))
    assert_close(actual.cpu(), expected[:, :16])


@pytest.mark.parametrize("name", ["depthwise-3x3", "groups-2"])
@pytest.mark.parametrize("picks", [False, True], ids=["all", "picked"])
def test_narrow_groups_take_the_reference(device: str, name: str, picks: bool) -> None:
    case = next(case for case in CONV2D if case.name == name)
    picked = {"indices": subset(case.units, case.units // 2, seeded(name))} if picks else {}
    check(device, case, torch.float32, activation="relu", **picked)


def test_bad_lists_beside_narrow_groups(device: str) -> None:
    x, weight = torch.randn(2, 6, 5, 5, device=device), torch.randn(6, 1, 3, 3, device=device)
    units = torch.tensor([1, 4], device=device)
    with pytest.raises(ValueError, match=r"^conv2d: expected contiguous int64 indices \[n\]"):
        conv2d(x, weight, groups=6, indices=units.int())
    usage = torch.zeros(4, 1, dtype=torch.float64, device=device)
    with pytest.raises(ValueError, match=r"^conv2d: expected float64 usage \[4, 2\]"):
        conv2d(x, weight, groups=6, indices=units, usage=usage)


X, W = torch.randn(2, 7, 5, 5), torch.randn(9, 7, 3, 3)


@pytest.mark.parametrize(
    ("args", "message"),
    [
        ((X[0], W), r"an input \[batch, channels, height, width\]"),
        ((X, W[0]), r"a weight \[out, in, kh, kw\]"),
        ((X[:, :6], W), "an input with 7 channels, got 6"),
        ((X, W, torch.randn(8)), r"a bias \[9\]"),
        ((X, W.half()), "a weight of the input's dtype"),
    ],
    ids=["dimensions", "weight", "channels", "bias", "dtype"],
)
def test_bad_input(args: tuple[Tensor, ...], message: str) -> None:
    with pytest.raises(ValueError, match=f"^conv2d: expected {message}"):
        conv2d(*args)
