"""The op ``linear`` against the reference in float64."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from dynprune import ops
from dynprune.ops import reference
from tests.ops.cases import ACTIVE, LINEAR, ActiveCase, LinearCase, names, seeded, subset
from tests.ops.tolerance import assert_close, assert_usage_close

linear = torch.ops.dynprune.linear


def no_usage(units: int) -> Tensor:
    return torch.zeros(4, units, dtype=torch.float64)


def check(expected_of: tuple[Tensor, Tensor, Tensor | None], call: tuple[Any, ...], **kwargs: Any) -> None:
    """``linear(*call, **kwargs)``, its usage too, is what the reference makes of ``expected_of``."""
    x, weight, bias = expected_of
    named = {k: v for k, v in kwargs.items() if k in ("activation", "slope")}
    usage, expected_usage = no_usage(weight.shape[0]), no_usage(weight.shape[0])
    bias = None if bias is None else bias.double()
    expected = reference.linear(x.double(), weight.double(), bias, usage=expected_usage, **named)
    actual = linear(*call, usage=usage, **kwargs)
    assert actual.is_contiguous()
    assert_close(actual, expected)
    assert_usage_close(usage, expected_usage)


@pytest.mark.parametrize("case", LINEAR, ids=names(LINEAR))
def test_packed(case: LinearCase) -> None:
    x, weight, bias = case.tensors()
    check((x, weight, bias), (x, ops.pack_linear(weight), bias), activation="relu")


@pytest.mark.parametrize("case", LINEAR, ids=names(LINEAR))
def test_master(case: LinearCase) -> None:
    x, weight, _ = case.tensors()
    check((x, weight, None), (x, weight))


def test_many_weights() -> None:
    """More than L2 holds: tiles of rows take turns on each panel."""
    x, weight, bias = LinearCase("many weights", (200, 640), 641).tensors()
    check((x, weight, bias), (x, ops.pack_linear(weight), bias), activation="relu")


@pytest.mark.parametrize("activation", reference.ACTIVATIONS)
def test_each_activation(activation: str) -> None:
    x, weight, bias = LinearCase(activation, (67, 9), 21).tensors()
    call = (x, ops.pack_linear(weight), bias)
    check((x, weight, bias), call, activation=activation, slope=0.3)


@pytest.mark.parametrize("rows", [66, 257])  # the most that are multiplied without packing are 256
@pytest.mark.parametrize("case", ACTIVE, ids=names(ACTIVE))
def test_index_lists(case: ActiveCase, rows: int) -> None:
    """Master with index lists and packed plan, full-width and compact input: all the same product."""
    g = seeded(case.name)
    weight, bias = torch.randn(case.units, case.inputs, generator=g), torch.randn(case.units, generator=g)
    x = torch.randn(rows, case.inputs, generator=g)
    units, inputs = case.index_lists()
    compact = x[:, inputs]
    product = (compact, weight[units][:, inputs], bias[units])
    packed = ops.pack_linear(weight, units, inputs)
    lists = {"indices": units, "input_indices": inputs}
    check(product, (x, weight, bias), activation="relu", **lists)
    check(product, (compact, weight, bias), activation="relu", **lists)
    check(product, (compact, packed, bias[units]), activation="relu")
    check(product, (x, packed, bias[units]), activation="relu", input_indices=inputs)
    check(product, (compact, packed, bias[units]), activation="relu", input_indices=inputs)


def test_gathers_from_a_strided_input() -> None:
    x, weight, bias = LinearCase("gather", (3, 41, 23), 18).tensors()
    inputs = subset(23, 12, seeded("gather"))
    check((x[..., inputs], weight[:, inputs], bias), (x, weight, bias), input_indices=inputs)
    strided = x[1, ::2]
    check((strided[:, inputs], weight[:, inputs], bias), (strided, weight, bias), input_indices=inputs)


def test_usage_is_added_to() -> None:
    x, weight, bias = LinearCase("added", (70, 9), 18).tensors()
    usage = torch.full((4, 18), 5.0, dtype=torch.float64)
    linear(x, weight, bias, usage=usage)
    linear(x, weight, bias, usage=usage)
    once = no_usage(18)
    reference.linear(x.double(), weight.double(), bias.double(), usage=once)
    assert_usage_close(usage - 5, 2 * once)


def test_usage_rows_may_be_strided() -> None:
    x, weight, bias = LinearCase("strided", (70, 9), 18).tensors()
    wide, usage = torch.zeros(8, 30, dtype=torch.float64), no_usage(18)
    linear(x, weight, bias, usage=wide[::2, 5:23])
    linear(x, weight, bias, usage=usage)
    assert wide[::2, 5:23].equal(usage)
    assert wide.sum() == usage.sum()  # nothing beside it


OPCHECK = [
    ("master", (torch.randn(5, 7), torch.randn(9, 7)), {}),
    ("bias-and-usage", (torch.randn(2, 5, 7), torch.randn(9, 7), torch.randn(9)), {"usage": no_usage(9)}),
    (
        "packed",
        (torch.randn(5, 7), ops.pack_linear(torch.randn(9, 7)), torch.randn(9)),
        {"activation": "gelu"},
    ),
    (
        "index-lists",
        (torch.randn(5, 7), torch.randn(9, 7), torch.randn(9)),
        {"indices": torch.tensor([1, 8]), "input_indices": torch.tensor([0, 2, 6]), "usage": no_usage(2)},
    ),
]


@pytest.mark.parametrize(("args", "kwargs"), [row[1:] for row in OPCHECK], ids=[row[0] for row in OPCHECK])
def test_opcheck(args: tuple[Tensor, ...], kwargs: dict[str, Any]) -> None:
    torch.library.opcheck(linear.default, args, kwargs)


@pytest.mark.parametrize("case", LINEAR, ids=names(LINEAR))
def test_opcheck_of_cases(case: LinearCase) -> None:
    x, weight, bias = case.tensors()
    args, kwargs = (x, ops.pack_linear(weight), bias), {"usage": no_usage(case.units)}
    torch.library.opcheck(linear.default, args, kwargs, test_utils=("test_schema", "test_faketensor"))


@pytest.mark.usefixtures("_threads_restored")
def test_threads() -> None:
    """One result for one number of threads, and the same up to rounding for another."""
    x, weight, bias = LinearCase("threads", (257, 130), 130).tensors()
    packed = ops.pack_linear(weight)

    def run(threads: int) -> tuple[Tensor, Tensor]:
        torch.set_num_threads(threads)
        usage = no_usage(130)
        return linear(x, packed, bias, activation="gelu", usage=usage), usage

    for threads in (1, 2):
        for first, second in zip(run(threads), run(threads), strict=True):
            assert first.equal(second)
    one, two = run(1), run(2)
    assert_close(two[0], one[0].double())
    assert_usage_close(two[1], one[1])


X, W, B = torch.randn(5, 7), torch.randn(9, 7), torch.randn(9)
P = ops.pack_linear(W)
ONE, FALLING = torch.tensor([1]), torch.tensor([3, 1])
BAD: list[tuple[str, tuple[Any, ...], dict[str, Any], str]] = [
    ("scalar", (torch.tensor(1.0), W), {}, r"an input \[\.\.\., features\], got \[\]"),
    ("input-dtype", (X.double(), W), {}, "a float32 or bfloat16 input, got Double"),
    ("weight-dtype", (X, W.half()), {}, "a weight of the input.s dtype, Float, got Half"),
    ("bias-dtype", (X, W, B.double()), {}, "a float32 bias, got Double"),
    ("weight-shape", (X, W[0]), {}, r"a weight \[out, in\] or packed \[1, in, padded out\], got \[7\]"),
    ("features", (X[:, :6], W), {}, "an input with 7 features.*, got 6"),
    ("features-packed", (X[:, :6], P, B), {}, r"an input with 7 \(active\) features, got 6"),
    ("bias-shape", (X, W, B[:8]), {}, r"a bias \[9\], got \[8\]"),
    ("packed-without-bias", (X, P), {}, r"a bias \[n\] with n rounded up to 16.*, got none"),
    ("packed-with-indices", (X, P, B), {"indices": ONE}, r"no indices beside a packed weight, got \[1\]"),
    ("order", (X, W), {"indices": FALLING}, r"indices strictly increasing in \[0, 9\), got 1 after 3"),
    ("repeated", (X, W), {"indices": torch.tensor([3, 3])}, "indices strictly increasing.*, got 3 after 3"),
    ("too-large", (X, W), {"indices": torch.tensor([9])}, "indices strictly increasing.*, got 9 after -1"),
    (
        "negative",
        (X, W),
        {"input_indices": torch.tensor([-1])},
        "input_indices strictly increasing.*, got -1",
    ),
    (
        "int32",
        (X, W),
        {"indices": torch.tensor([1], dtype=torch.int32)},
        "contiguous int64 indices.*, got Int",
    ),
    (
        "gather",
        (X, ops.pack_linear(W[:, :1]), B),
        {"input_indices": torch.tensor([7])},
        "input_indices.*, got 7",
    ),
    ("activation", (X, W), {"activation": "swish"}, "an activation out of none, relu, .*, got swish"),
    ("usage-shape", (X, W), {"usage": no_usage(8)}, r"float64 usage \[4, 9\].*, got Double \[4, 8\]"),
    ("usage-dtype", (X, W), {"usage": torch.zeros(4, 9)}, "float64 usage.*, got Float"),
]


@pytest.mark.parametrize(("args", "kwargs", "message"), [row[1:] for row in BAD], ids=[row[0] for row in BAD])
def test_bad_input(args: tuple[Any, ...], kwargs: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=f"^linear: expected {message}"):
        linear(*args, **kwargs)


@st.composite
def problems(draw: st.DrawFn) -> tuple[int, int, int, int, int, int]:
    rows, inputs, units = draw(st.integers(0, 140)), draw(st.integers(0, 80)), draw(st.integers(0, 140))
    active = draw(st.integers(0, units)), draw(st.integers(0, inputs))
    return rows, inputs, units, *active, draw(st.integers(0, 1000))


@settings(max_examples=40, deadline=None, derandomize=True)
@given(problems())
def test_any_shape_and_index_set(problem: tuple[int, int, int, int, int, int]) -> None:
    rows, inputs, units, active_units, active_inputs, seed = problem
    g = torch.Generator().manual_seed(seed)
    x, weight = torch.randn(rows, inputs, generator=g), torch.randn(units, inputs, generator=g)
    bias = torch.randn(units, generator=g)
    indices, input_indices = subset(units, active_units, g), subset(inputs, active_inputs, g)
    product = (x[:, input_indices], weight[indices][:, input_indices], bias[indices])
    packed = ops.pack_linear(weight, indices, input_indices)
    check(product, (x, weight, bias), indices=indices, input_indices=input_indices)
    check(product, (x, packed, bias[indices]), input_indices=input_indices, activation="relu")
