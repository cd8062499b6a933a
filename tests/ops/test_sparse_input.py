"""dynprune::sparse_input_linear against its reference in float64."""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch
from torch import Tensor

from dynprune import ops
from dynprune.ops import reference
from tests.ops.tolerance import assert_close, assert_usage_close

OP = torch.ops.dynprune.sparse_input_linear


def sparse(rows: int, depth: int, zeros: float, seed: int = 0) -> Tensor:
    g = torch.Generator().manual_seed(seed)
    x = torch.randn(rows, depth, generator=g)
    return torch.where(torch.rand(rows, depth, generator=g) < zeros, 0.0, x)


def compare(x: Tensor, units: int, **options: Any) -> Tensor:
    g = torch.Generator().manual_seed(units)
    packed = ops.pack_linear(torch.randn(units, x.shape[1], generator=g))
    bias = torch.randn(units, generator=g)
    usage, expected_usage = (torch.zeros(4, units, dtype=torch.float64) for _ in range(2))
    y: Tensor = OP(x, packed, bias, usage=usage, **options)
    expected = reference.sparse_input_linear(
        x.double(), packed.double(), bias.double(), usage=expected_usage, **options
    )
    assert_close(y, expected)
    assert_usage_close(usage, expected_usage)
    return y


@pytest.mark.parametrize("rows", range(9))
@pytest.mark.parametrize(
    ("depth", "units"), [(1, 1), (37, 15), (300, 72), (64, 130), (40, 340), (90, 24)], ids=str
)
@pytest.mark.parametrize("zeros", [0.0, 0.7, 1.0])
def test_against_reference(rows: int, depth: int, units: int, zeros: float) -> None:
    compare(sparse(rows, depth, zeros), units, activation="relu")


@pytest.mark.parametrize("threshold", [0.5, 10.0])
def test_threshold(threshold: float) -> None:
    x = sparse(2, 100, 0.3)
    y = compare(x, 40, threshold=threshold)
    assert not torch.allclose(y, compare(x, 40))


@pytest.mark.parametrize("rows", [1, 8, 9])
@pytest.mark.parametrize("zeros", [0.3, 0.8])
def test_linear_chooses_by_itself(rows: int, zeros: float) -> None:
    """Many zeros in few rows of a large layer: another kernel, the same answer and usage."""
    keep = torch.rand(500, generator=torch.Generator().manual_seed(5)) >= zeros
    x = torch.randn(rows, 500) * keep
    weight, bias = torch.randn(300, 500), torch.randn(300)
    usage, expected_usage = (torch.zeros(4, 300, dtype=torch.float64) for _ in range(2))
    y = torch.ops.dynprune.linear(x, ops.pack_linear(weight), bias, activation="relu", usage=usage)
    expected = reference.linear(
        x.double(), weight.double(), bias.double(), activation="relu", usage=expected_usage
    )
    assert_close(y, expected)
    assert_usage_close(usage, expected_usage)


def check_linear(x: Tensor, weight: Tensor, bias: Tensor | None, **options: Any) -> None:
    """``linear`` on a master or a packed weight, with usage, against its reference."""
    units = len(bias) if bias is not None else len(options.get("indices", weight))
    usage, expected_usage = (torch.zeros(4, units, dtype=torch.float64) for _ in range(2))
    y = torch.ops.dynprune.linear(x, weight, bias, usage=usage, **options)
    double = None if bias is None else bias.double()
    expected = reference.linear(x.double(), weight.double(), double, usage=expected_usage, **options)
    assert_close(y, expected)
    assert_usage_close(usage, expected_usage)


@pytest.mark.parametrize("rows", [0, 1, 8, 9])
@pytest.mark.parametrize(("depth", "units"), [(40, 20), (500, 300)], ids=str)
@pytest.mark.parametrize("threshold", [2.0, 10.0])
def test_linear_leaves_out_small_inputs(rows: int, depth: int, units: int, threshold: float) -> None:
    """Up to 8 rows, whatever the size; with a threshold above every input only the bias is left."""
    g = torch.Generator().manual_seed(rows)
    x, weight = torch.randn(rows, depth, generator=g), torch.randn(units, depth, generator=g)
    bias, packed = torch.randn(units, generator=g), ops.pack_linear(weight)
    check_linear(x, packed, bias, input_threshold=threshold)
    if 0 < rows <= 8:
        all_of_them = torch.ops.dynprune.linear(x, packed, bias)
        some = torch.ops.dynprune.linear(x, packed, bias, input_threshold=threshold)
        assert not torch.allclose(some, all_of_them)
        assert threshold < 10 or torch.equal(some, bias.expand(rows, units))


def test_threshold_with_index_lists_and_other_shapes() -> None:
    """It is the inputs that are read which need to be small, in all rows of all dimensions."""
    weight, lists = torch.randn(20, 40), torch.arange(0, 40, 3)
    x = torch.where(torch.rand(40) < 0.5, 0.1, 1.0) * torch.randn(2, 3, 40).sign()
    check_linear(x, weight, None, indices=torch.arange(0, 20, 2), input_indices=lists, input_threshold=0.5)
    check_linear(x[0, 0], ops.pack_linear(weight), torch.randn(20), input_threshold=0.5)
    compact = ops.pack_linear(weight, None, lists)
    check_linear(x, compact, torch.randn(20), input_indices=lists, input_threshold=0.5)


@pytest.mark.parametrize("rows", range(10))
@pytest.mark.parametrize(("depth", "units"), [(500, 300), (64, 4300), (300, 8)], ids=str)
@pytest.mark.parametrize("zeros", [0.0, 0.8, 1.0])
def test_input_major(rows: int, depth: int, units: int, zeros: float) -> None:
    x = sparse(rows, depth, zeros)
    weight, bias = torch.randn(units, depth), torch.randn(units)
    packed = ops.pack_linear(weight)
    check_linear(x, packed, bias, input_major=ops.pack_input_major(packed), activation="relu")
    check_linear(x, packed, bias, input_major=ops.pack_input_major(packed), input_threshold=0.5)


def test_input_major_keeps_infinite_weights_to_their_inputs() -> None:
    weight, x = torch.randn(300, 300), torch.randn(1, 300)
    weight[:, 7], x[0, 7] = math.inf, 0.0
    packed = ops.pack_linear(weight)
    y = torch.ops.dynprune.linear(x, packed, torch.zeros(300), input_major=ops.pack_input_major(packed))
    assert y.isfinite().all()


def test_nan_is_not_left_out() -> None:
    x = sparse(1, 30, 0.5)
    x[0, 3] = math.nan
    assert OP(x, ops.pack_linear(torch.randn(9, 30)), torch.zeros(9)).isnan().all()


def test_any_strides() -> None:
    compare(sparse(33, 8, 0.5).T, 20)
    compare(sparse(4, 66, 0.5)[:, :33], 20)


def test_opcheck() -> None:
    usage = torch.zeros(4, 20, dtype=torch.float64)
    arguments = (sparse(3, 33, 0.5), ops.pack_linear(torch.randn(20, 33)), torch.randn(20))
    torch.library.opcheck(OP.default, arguments, {"usage": usage, "activation": "relu"})


WRONG: dict[str, tuple[dict[str, Any], str]] = {
    "rows": (
        {"input": torch.randn(9, 5)},
        r"expected an input \[rows, features\] of at most 8 rows, got \[9, 5\]",
    ),
    "weight": ({"weight": torch.randn(1, 5, 16)}, r"expected a contiguous packed weight \[1, 5, 8\]"),
    "bias": ({"bias": torch.randn(2, 4)}, r"expected a bias \[units\], got \[2, 4\]"),
    "threshold": ({"threshold": math.nan}, "expected a threshold of at least 0, got nan"),
}


@pytest.mark.parametrize(("change", "message"), WRONG.values(), ids=WRONG)
@pytest.mark.parametrize("op", [OP, reference.sparse_input_linear], ids=["op", "reference"])
def test_errors(op: Any, change: dict[str, Any], message: str) -> None:
    arguments = {"input": torch.randn(2, 5), "weight": torch.randn(1, 5, 8), "bias": torch.randn(7)} | change
    with pytest.raises(ValueError, match=f"sparse_input_linear: {message}"):
        op(**arguments)
