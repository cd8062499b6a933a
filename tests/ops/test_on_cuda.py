"""The ops on a GPU, by the backend that serves there (``DYNPRUNE_BACKEND``), against the reference.

Cases named "sanitized" are few and small: they run under compute-sanitizer as well.
"""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor

from dynprune import ops
from dynprune.ops import lstm_reference, packing, reference
from dynprune.plan.lstm import packed_gates
from tests.ops.cases import ACTIVE, CONV2D, LINEAR, ActiveCase, ConvCase, LinearCase, names, seeded
from tests.ops.test_lstm import gates_of
from tests.ops.tolerance import assert_close, assert_usage_close

pytestmark = pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device")
DTYPES = [torch.float32, torch.float16, torch.bfloat16]
SANITIZED_LINEAR = [
    case for case in LINEAR if case.name in ("63-rows-17-units", "8-rows-15-units", "sliced-features")
]
SANITIZED_CONV2D = [case for case in CONV2D if case.name in ("3x3-uneven", "1x1", "5x5-image-smaller")]


def no_usage(units: int, device: str = "cpu") -> Tensor:
    return torch.zeros(4, units, dtype=torch.float64, device=device)


def expect_linear(dtype: torch.dtype, x: Tensor, weight: Tensor, bias: Tensor, **lists: Tensor) -> None:
    x, weight = x.to(dtype), weight.to(dtype)
    units = len(lists.get("indices", weight))
    expected_usage, usage = no_usage(units), no_usage(units, "cuda")
    expected = reference.linear(
        x.double(), weight.double(), bias.double(), activation="gelu", usage=expected_usage, **lists
    )
    on_device = {name: t.cuda() for name, t in lists.items()}
    actual = torch.ops.dynprune.linear(
        x.cuda(), weight.cuda(), bias.cuda(), activation="gelu", usage=usage, **on_device
    )
    assert actual.dtype == dtype
    assert_close(actual.cpu(), expected)
    assert_usage_close(usage.cpu(), expected_usage)


def expect_conv2d(dtype: torch.dtype, case: ConvCase) -> None:
    x, weight, bias = case.tensors()
    x, weight = x.to(dtype), weight.to(dtype)
    expected_usage, usage = no_usage(case.units), no_usage(case.units, "cuda")
    rest = (*case.geometry, case.groups)
    options: dict[str, Any] = {"activation": "relu"}
    expected = reference.conv2d(
        x.double(), weight.double(), bias.double(), *rest, usage=expected_usage, **options
    )
    actual = torch.ops.dynprune.conv2d(x.cuda(), weight.cuda(), bias.cuda(), *rest, usage=usage, **options)
    assert actual.is_contiguous(memory_format=torch.channels_last)
    assert_close(actual.cpu(), expected)
    assert_usage_close(usage.cpu(), expected_usage)


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("case", LINEAR, ids=names(LINEAR))
def test_linear(case: LinearCase, dtype: torch.dtype) -> None:
    expect_linear(dtype, *case.tensors())


@pytest.mark.parametrize("case", ACTIVE, ids=names(ACTIVE))
def test_linear_index_lists(case: ActiveCase) -> None:
    g = seeded(case.name)
    weight, bias = torch.randn(case.units, case.inputs, generator=g), torch.randn(case.units, generator=g)
    units, inputs = case.index_lists()
    x = torch.randn(66, case.inputs, generator=g)
    expect_linear(torch.float32, x, weight, bias, indices=units, input_indices=inputs)
    expect_linear(torch.float32, x[:, inputs], weight, bias, indices=units, input_indices=inputs)


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("case", CONV2D, ids=names(CONV2D))
def test_conv2d(case: ConvCase, dtype: torch.dtype) -> None:
    expect_conv2d(dtype, case)


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize(
    ("batch", "units"),
    # 2100 units' rows of the weight are too long for shared memory: each step is a launch, behind a library's
    # product where the batch is large.
    [(3, [17]), (70, [16, 33]), (64, [128, 128]), (5, [2100]), (64, [2100])],
    ids=str,
)
def test_lstm(batch: int, units: list[int], dtype: torch.dtype) -> None:
    g = torch.Generator().manual_seed(0)
    gates, biases = gates_of(9, units)
    weights = [ops.pack_lstm(*pair) for pair in gates]
    total, lengths = sum(units), torch.randint(0, 12, (batch,), generator=g)
    x = torch.randn(11, batch, 9, generator=g).to(dtype)
    gates = [tuple(w.to(dtype) for w in pair) for pair in gates]
    weights = [w.to(dtype) for w in weights]
    states = {n: torch.randn(batch, total, generator=g).to(dtype) for n in ("hidden", "cell")}
    got = torch.ops.dynprune.lstm(
        x.cuda(), [packed_gates(*(w.cuda() for w in pair)) for pair in gates],
        [b.cuda() for b in biases], lengths.cuda(),
        **{n: s.cuda() for n, s in states.items()},
    )  # fmt: skip
    expected = lstm_reference.lstm(
        x.double(), [w.double() for w in weights], [b.double() for b in biases], lengths,
        **{n: s.double() for n, s in states.items()},
    )  # fmt: skip
    for ours, wanted in zip(got, expected, strict=True):
        assert_close(ours.cpu(), wanted)


@pytest.mark.parametrize("rows", [1, 8])
def test_sparse_input(rows: int) -> None:
    x, weight, bias = LinearCase("sparse", (rows, 300), 130).tensors()
    x = torch.relu(x)
    packed = packing.pack_plain(weight).cuda()
    actual = torch.ops.dynprune.sparse_input_linear(x.cuda(), packed, bias.cuda())
    assert_close(actual.cpu(), reference.linear(x.double(), weight.double(), bias.double()))


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("kernel", [(), (3, 2)], ids=str)
def test_gather_into(kernel: tuple[int, ...], dtype: torch.dtype) -> None:
    g = torch.Generator().manual_seed(0)
    weight = torch.randn(23, 19, *kernel, generator=g).to(dtype)
    lists = {
        "indices": torch.arange(0, 23, 3),
        "input_indices": torch.arange(1, 19, 2),
        "input_slots": torch.tensor([0, 1, 2, 3, 16, 17, 18, 19, 20]),
    }
    scale = torch.randn(23, generator=g)
    storage = torch.randn(16, *kernel, 32, generator=g).to(dtype)
    expected, got = storage.clone(), storage.cuda()
    for to, where in ((expected, "cpu"), (got, "cuda")):
        there = {name: t.to(where) for name, t in lists.items()}
        to = to.permute(0, 3, 1, 2) if kernel else to
        torch.ops.dynprune.gather_into(to, weight.to(where), scale=scale.to(where), **there)
    torch.testing.assert_close(got.cpu(), expected)
    assert not torch.equal(expected, storage)


def test_sanitized() -> None:
    for case in SANITIZED_LINEAR:
        expect_linear(torch.bfloat16, *case.tensors())
    for conv in SANITIZED_CONV2D:
        expect_conv2d(torch.bfloat16, conv)
    test_lstm(3, [17], torch.bfloat16)
    test_sparse_input(3)
    test_gather_into((3, 2), torch.bfloat16)
