"""linear and conv2d in bfloat16 against the reference in float64, on the same rounded operands."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor

from dynprune import ops
from dynprune.ops import packing, reference
from tests.ops.cases import (
    ACTIVE,
    CONV2D,
    LINEAR,
    PACKABLE,
    TABLES,
    ActiveCase,
    ConvCase,
    LinearCase,
    TableCase,
    names,
    seeded,
)
from tests.ops.tolerance import assert_close, assert_usage_close

OPS = torch.ops.dynprune


def narrowed(t: Tensor) -> Tensor:
    """``t`` in bfloat16, with the same strides."""
    whole = t.as_strided((t.untyped_storage().nbytes() // t.element_size(),), (1,), 0)
    return whole.bfloat16().as_strided(t.shape, t.stride(), t.storage_offset())


def tensors(case: LinearCase | ConvCase) -> tuple[Tensor, Tensor, Tensor]:
    x, weight, bias = case.tensors()
    return narrowed(x), weight.bfloat16(), bias


def check(op: str, expected_of: tuple[Any, ...], call: tuple[Any, ...], **kwargs: Any) -> None:
    """The op, and its usage, on ``call`` is what the reference makes of ``expected_of`` in float64."""
    named = {k: v for k, v in kwargs.items() if k in ("activation", "slope")}
    in_double = [v.double() if isinstance(v, Tensor) else v for v in expected_of]
    expected = getattr(reference, op)(*in_double, **named)
    expected_usage = reference.usage_sums(expected, 1 if op == "conv2d" else -1)
    usage = torch.zeros_like(expected_usage)
    actual = getattr(OPS, op)(*call, usage=usage, **kwargs)
    assert actual.dtype == torch.bfloat16
    assert_close(actual, expected)
    assert_usage_close(usage, expected_usage, 1e-4)  # of values that are not rounded yet


@pytest.mark.parametrize("case", LINEAR, ids=names(LINEAR))
def test_linear(case: LinearCase) -> None:
    x, weight, bias = tensors(case)
    check("linear", (x, weight, bias), (x, ops.pack_linear(weight), bias), activation="relu")
    check("linear", (x, weight), (x, weight))


@pytest.mark.parametrize("activation", reference.ACTIVATIONS)
def test_each_activation(activation: str) -> None:
    x, weight, bias = tensors(LinearCase(activation, (67, 9), 21))
    call = (x, ops.pack_linear(weight), bias)
    check("linear", (x, weight, bias), call, activation=activation, slope=0.3)


@pytest.mark.parametrize("case", ACTIVE, ids=names(ACTIVE))
def test_index_lists(case: ActiveCase) -> None:
    g = seeded(case.name)
    units, inputs = case.index_lists()
    weight, bias = torch.randn(case.units, case.inputs, generator=g).bfloat16(), torch.randn(case.units)
    kernel = torch.randn(case.units, case.inputs, 3, 2, generator=g).bfloat16()
    x = torch.randn(66, case.inputs, generator=g).bfloat16()
    images = torch.randn(2, case.inputs, 5, 4, generator=g).bfloat16()
    lists = {"indices": units, "input_indices": inputs}
    product = (x[:, inputs], weight[units][:, inputs], bias[units])
    packed = ops.pack_linear(weight, units, inputs)
    check("linear", product, (x, weight, bias), **lists)
    check("linear", product, (x, packed, bias[units]), input_indices=inputs)
    check("linear", product, (x[:, inputs], packed, bias[units]))
    product = (images[:, inputs], kernel[units][:, inputs], bias[units])
    packed = ops.pack_conv2d(kernel, units, inputs)
    check("conv2d", product, (images, kernel, bias), **lists)
    check("conv2d", product, (images, packed, bias[units]), input_indices=inputs)
    check("conv2d", product, (images[:, inputs], packed, bias[units]))


@pytest.mark.parametrize("case", CONV2D, ids=names(CONV2D))
def test_conv2d(case: ConvCase) -> None:
    x, weight, bias = tensors(case)
    geometry = (*case.geometry, case.groups)
    if case in PACKABLE:
        call = (x, ops.pack_conv2d(weight, groups=case.groups), bias, *geometry)
        check("conv2d", (x, weight, bias, *geometry), call, activation="relu")
    check("conv2d", (x, weight, None, *geometry), (x, weight, None, *geometry))


# Large enough for AMX to read a staged image, or to read a panel once for several tiles.
LARGE = [
    ConvCase("odd channels", (2, 45, 17, 16), 51, (3, 3), padding=(1, 1)),
    ConvCase("first layer", (2, 3, 40, 33), 64, (7, 7), stride=(2, 2), padding=(3, 3)),
    ConvCase("many units", (3, 64, 12, 14), 200, (3, 3), padding=(1, 1)),
    ConvCase("many weights", (8, 300, 6, 6), 300, (3, 3), padding=(1, 1)),
]


@pytest.mark.parametrize("case", LARGE, ids=names(LARGE))
def test_large_conv2d(case: ConvCase) -> None:
    x, weight, bias = tensors(case)
    call = (x, ops.pack_conv2d(weight), bias, *case.geometry)
    check("conv2d", (x, weight, bias, *case.geometry), call, activation="relu")


def test_many_weights() -> None:
    x, weight, bias = tensors(LinearCase("many weights", (200, 900), 901))
    check("linear", (x, weight, bias), (x, ops.pack_linear(weight), bias), activation="relu")


@pytest.mark.parametrize("case", TABLES, ids=names(TABLES))
def test_border_table(case: TableCase) -> None:
    x, weight, _ = tensors(case.conv)
    table, groups = case.table(), case.conv.groups
    wide = packing.pack_conv2d(weight.double(), groups=groups)
    geometry = (*case.conv.geometry, groups)
    packed = ops.pack_conv2d(weight, groups=groups)
    check("conv2d", (x, wide, table, *geometry), (x, packed, table, *geometry), activation="tanh")


@pytest.mark.parametrize("case", LINEAR, ids=names(LINEAR))
def test_packing_linear(case: LinearCase) -> None:
    """To the bit as the reference: scaled in float32, rounded once."""
    _, weight, _ = tensors(case)
    scale = torch.randn(case.units, generator=seeded(case.name))
    packed = ops.pack_linear(weight, scale=scale)
    assert packed.shape == (1, case.shape[-1], packing.padded_units(case.units))
    assert packed.equal(packing.pack_linear(weight, scale=scale))
    unpacked = packing.unpack_panels(packed, case.units, case.shape[-1])
    assert unpacked.equal((weight.float() * scale[:, None]).bfloat16())


@pytest.mark.parametrize("case", CONV2D, ids=names(CONV2D))
def test_packing_conv2d(case: ConvCase) -> None:
    _, weight, _ = tensors(case)
    scale = torch.randn(case.units, generator=seeded(case.name))
    ours = ops.pack_conv2d(weight, scale=scale, groups=case.groups)
    assert ours.equal(packing.pack_conv2d(weight, scale=scale, groups=case.groups))


@pytest.mark.parametrize("case", ACTIVE, ids=names(ACTIVE))
def test_packing_index_lists(case: ActiveCase) -> None:
    weight = torch.randn(case.units, case.inputs, 3, 3, generator=seeded(case.name)).bfloat16()
    lists = case.index_lists()
    assert ops.pack_conv2d(weight, *lists).equal(packing.pack_conv2d(weight, *lists))
    weight = weight[:, :, 0, 0]
    assert ops.pack_linear(weight, *lists).equal(packing.pack_linear(weight, *lists))


def test_rounding_and_values_that_are_no_numbers() -> None:
    """Ties go to the even neighbour; infinities and NaN stay; the largest float32 becomes infinite."""
    one = torch.ones(1, 1).bfloat16()
    values = [1 + 2**-8, 1 + 3 * 2**-8, -1 - 2**-8, float("inf"), float("-inf"), float("nan"), 3.4e38, 1e-30]
    bias = torch.tensor(values)
    weight = torch.zeros(len(values), 1).bfloat16()
    actual = OPS.linear(one, ops.pack_linear(weight), bias)
    torch.testing.assert_close(actual[0], bias.bfloat16(), rtol=0, atol=0, equal_nan=True)


@pytest.mark.usefixtures("_threads_restored")
@pytest.mark.parametrize("op", ["linear", "conv2d"])
def test_threads(op: str) -> None:
    """Each output is computed alike, however many threads there are."""
    g = seeded("threads")
    shape, kernel = ((257, 130), (1, 1)) if op == "linear" else ((3, 40, 19, 18), (3, 3))
    x = torch.randn(shape, generator=g).bfloat16()
    weight = torch.randn(130, shape[1], *(kernel if op == "conv2d" else ()), generator=g).bfloat16() / 16
    packed = ops.pack_linear(weight) if op == "linear" else ops.pack_conv2d(weight)

    def run(threads: int) -> tuple[Tensor, Tensor]:
        torch.set_num_threads(threads)
        usage = torch.zeros(4, 130, dtype=torch.float64)
        return getattr(OPS, op)(x, packed, torch.ones(130), activation="gelu", usage=usage), usage

    one, two, again = run(1), run(2), run(2)
    assert two[0].equal(again[0])
    assert two[1].equal(again[1])
    assert_close(two[0], one[0].double())
    assert_usage_close(two[1], one[1])


X, W, B = torch.zeros(2, 4), torch.zeros(3, 4), torch.zeros(3)
IMAGE, KERNEL = torch.zeros(1, 4, 5, 5), torch.zeros(3, 4, 3, 3)


@pytest.mark.parametrize("op", ["linear", "conv2d"])
def test_mixed_dtypes(op: str) -> None:
    x, weight = (X, W) if op == "linear" else (IMAGE, KERNEL)
    pack = ops.pack_linear if op == "linear" else ops.pack_conv2d
    for w in (weight, pack(weight)):
        with pytest.raises(
            ValueError, match=rf"^{op}: expected a weight of the input's dtype, .*BFloat16, got Float"
        ):
            getattr(OPS, op)(x.bfloat16(), w, B)
        with pytest.raises(
            ValueError, match=rf"^{op}: expected a weight of the input's dtype, torch.bfloat16, got"
        ):
            getattr(reference, op)(x.bfloat16(), w, B)
    with pytest.raises(
        ValueError, match=rf"^{op}: expected a weight of the input's dtype, Float, got BFloat16"
    ):
        getattr(OPS, op)(x, weight.bfloat16(), B)
    with pytest.raises(ValueError, match=rf"^{op}: expected a float32 bias, got BFloat16"):
        getattr(OPS, op)(x.bfloat16(), weight.bfloat16(), B.bfloat16())


def test_opcheck() -> None:
    x, weight, bias = torch.randn(5, 7).bfloat16(), torch.randn(9, 7).bfloat16(), torch.randn(9)
    torch.library.opcheck(OPS.linear.default, (x, weight, bias), {"activation": "gelu"})
    image, kernel = torch.randn(2, 3, 6, 5).bfloat16(), torch.randn(9, 3, 3, 3).bfloat16()
    torch.library.opcheck(OPS.conv2d.default, (image, ops.pack_conv2d(kernel), bias), {})


@pytest.mark.parametrize("op", ["linear", "conv2d"])
def test_autocast(op: str) -> None:
    """As PyTorch's own layers do; a packed weight is not cast, and decides what is computed."""
    g = seeded("autocast")
    shape = (5, 7) if op == "linear" else (2, 7, 6, 5)
    x, bias = torch.randn(shape, generator=g), torch.randn(9, generator=g)
    weight = torch.randn(9, 7, *([3, 3] if op == "conv2d" else []), generator=g)
    pack = ops.pack_linear if op == "linear" else ops.pack_conv2d
    run, narrow = getattr(OPS, op), (x.bfloat16(), weight.bfloat16(), bias)
    expected = run(*narrow)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        assert run(x, weight, bias).equal(expected)
        assert run(x.bfloat16(), weight, bias).equal(expected)
        assert run(x, pack(weight.bfloat16()), bias).equal(expected)
        assert run(x, pack(weight), bias).equal(run(x.float(), pack(weight), bias))
        assert run(x.bfloat16(), pack(weight), bias).dtype == torch.float32
    with torch.autocast("cpu", dtype=torch.float16):
        assert_close(run(x, weight, bias), run(x, weight, bias).double())
    assert run(x, weight, bias).dtype == torch.float32
