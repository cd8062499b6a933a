"""The Triton kernel of ``linear`` against the reference in float64."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor

from dynprune.ops import packing, reference
from dynprune.ops.triton.linear import linear
from tests.ops.cases import ACTIVE, LINEAR, ActiveCase, LinearCase, names, seeded, subset
from tests.ops.tolerance import assert_close, assert_usage_close

# The interpreter's product of bfloat16 is wrong; a GPU's is not.
DTYPES = [torch.float32, torch.float16] + [torch.bfloat16] * torch.cuda.is_available()


def check(
    device: str, dtype: torch.dtype, x: Tensor, weight: Tensor, bias: Tensor | None, **options: Any
) -> None:
    """``linear`` in ``dtype``, usage too, is the reference's result of the same rounded operands."""
    x, weight = x.to(device, dtype), weight.to(device, dtype)
    lists = {k: v for k, v in options.items() if isinstance(v, Tensor)}
    units = len(lists["indices"]) if "indices" in lists else len(weight)
    expected_usage = torch.zeros(4, units, dtype=torch.float64)
    wide_bias = None if bias is None else bias.double()
    expected = reference.linear(
        x.cpu().double(), weight.cpu().double(), wide_bias, usage=expected_usage, **options
    )
    usage = torch.zeros(4, units, dtype=torch.float64, device=device)
    moved = options | {k: v.to(device) for k, v in lists.items()}
    actual = linear(x, weight, None if bias is None else bias.to(device), usage=usage, **moved)
    assert actual.dtype == dtype and actual.is_contiguous()
    assert_close(actual.cpu(), expected)
    assert_usage_close(usage.cpu(), expected_usage)


@pytest.mark.parametrize("case", LINEAR, ids=names(LINEAR))
def test_cases(device: str, case: LinearCase) -> None:
    check(device, torch.float32, *case.tensors(), activation="relu")


@pytest.mark.parametrize("activation", reference.ACTIVATIONS)
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_activations(device: str, dtype: torch.dtype, activation: str) -> None:
    check(device, dtype, *LinearCase(activation, (37, 33), 21).tensors(), activation=activation, slope=0.3)


@pytest.mark.parametrize("rows", [16, 17, 300])
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_tiles(device: str, dtype: torch.dtype, rows: int) -> None:
    check(device, dtype, *LinearCase("tiles", (rows, 140), 70).tensors())


@pytest.mark.parametrize("case", ACTIVE, ids=names(ACTIVE))
def test_index_lists(device: str, case: ActiveCase) -> None:
    g = seeded(case.name)
    weight, bias = torch.randn(case.units, case.inputs, generator=g), torch.randn(case.units, generator=g)
    x = torch.randn(18, case.inputs, generator=g)
    units, inputs = case.index_lists()
    lists = {"indices": units, "input_indices": inputs}
    check(device, torch.float32, x, weight, bias, **lists)
    check(device, torch.float32, x[:, inputs], weight, bias, **lists)
    check(device, torch.float32, x, weight, None, indices=units)


def test_gathers_from_a_strided_input(device: str) -> None:
    x, weight, bias = LinearCase("gather", (3, 41, 23), 18).tensors()
    check(device, torch.float32, x[1, ::2], weight, bias, input_indices=subset(23, 12, seeded("gather")))


def test_packed_weight(device: str) -> None:
    x, weight, bias = (t.to(device) for t in LinearCase("packed", (5, 40), 75).tensors())
    packed = packing.pack_plain(weight)
    torch.testing.assert_close(linear(x, packed, bias), linear(x, weight, bias))
    inputs = torch.arange(0, 40, 3, device=device)
    packed = packing.pack_plain(weight[:, inputs])
    expected = linear(x[:, inputs].contiguous(), weight[:, inputs].contiguous(), bias)
    torch.testing.assert_close(linear(x, packed, bias, input_indices=inputs), expected)


@pytest.mark.parametrize(("units", "depth"), [(32, 48), (0, 16), (64, 0), (64, 64)])
def test_counts_in_device_memory(device: str, units: int, depth: int) -> None:
    """Units and inputs beyond the counts are neither read nor written."""
    x, weight, bias = (t.to(device) for t in LinearCase("counts", (19, 64), 64).tensors())
    x[:, depth:], weight[:, depth:], weight[units:] = (float("nan"),) * 3
    counts = {
        "unit_count": torch.tensor([units], dtype=torch.int32, device=device),
        "depth_count": torch.tensor([depth], dtype=torch.int32, device=device),
    }
    usage = torch.zeros(4, 64, dtype=torch.float64, device=device)
    actual = linear(x, weight, bias, usage=usage, **counts)
    expected = reference.linear(x[:, :depth].double(), weight[:units, :depth].double(), bias[:units].double())
    assert_close(actual[:, :units].cpu(), expected.cpu())
    assert usage[3].tolist() == [19.0] * units + [0.0] * (64 - units)


def test_usage_keeps_a_small_variance_beside_a_large_mean(device: str) -> None:
    x = torch.randn(200, 1, generator=seeded("variance")).to(device)
    usage = torch.zeros(4, 1, dtype=torch.float64, device=device)
    linear(x, torch.full((1, 1), 0.01, device=device), torch.full((1,), 1000.0, device=device), usage=usage)
    _, total, square, count = usage[:, 0].tolist()
    variance = square / count - (total / count) ** 2
    # A step of float32 at 1000 is 6e-5.
    assert variance == pytest.approx(float((0.01 * x).var(correction=0)), rel=0.02)


def test_values_that_are_not_finite_never_enter_the_usage(device: str) -> None:
    x, weight, bias = (t.to(device) for t in LinearCase("finite", (20, 9), 5).tensors())
    x[3], x[7] = float("nan"), float("inf")
    usage = torch.zeros(4, 5, dtype=torch.float64, device=device)
    y = linear(x, weight, bias, usage=usage)
    assert y[3].isnan().all()
    assert usage.isfinite().all()
    assert usage[3].tolist() == [18.0] * 5


X, W, B = torch.randn(5, 7), torch.randn(9, 7), torch.randn(9)
BAD: list[tuple[str, tuple[Any, ...], dict[str, Any], str]] = [
    ("scalar", (torch.tensor(1.0), W), {}, r"an input \[\.\.\., features\], got \[\]"),
    ("input-dtype", (X.double(), W.double()), {}, "a float32, float16 or bfloat16 input"),
    ("weight-dtype", (X, W.half()), {}, "a weight of the input's dtype, torch.float32, got torch.float16"),
    ("bias-dtype", (X, W, B.double()), {}, "a float32 bias"),
    ("weight-shape", (X, W[0]), {}, r"a weight \[out, in\]"),
    ("features", (X[:, :6], W), {}, r"an input with 7 \(active\) features, got 6"),
    ("bias-shape", (X, W, B[:8]), {}, r"a bias \[9\], got \[8\]"),
    ("packed-without-bias", (X, packing.pack_linear(W)), {}, "a bias .* beside a packed weight, got none"),
    ("int32", (X, W), {"indices": torch.tensor([1], dtype=torch.int32)}, "contiguous int64 indices"),
    ("activation", (X, W), {"activation": "swish"}, "an activation out of none, relu, .*, got swish"),
    ("usage-shape", (X, W), {"usage": torch.zeros(4, 8).double()}, r"float64 usage \[4, 9\]"),
]  # fmt: skip


@pytest.mark.parametrize(("args", "kwargs", "message"), [row[1:] for row in BAD], ids=[row[0] for row in BAD])
def test_bad_input(args: tuple[Any, ...], kwargs: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=f"^linear: expected {message}"):
        linear(*args, **kwargs)
