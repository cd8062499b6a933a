"""Packed weights: the compiled functions and the reference agree to the bit."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from dynprune import ops
from dynprune.ops import packing
from tests.ops.cases import ACTIVE, CONV2D, LINEAR, ActiveCase, ConvCase, LinearCase, names, seeded

native = ops.native
if native is None:
    pytest.skip("dynprune._C is not there", allow_module_level=True)


@pytest.mark.parametrize("case", LINEAR, ids=names(LINEAR))
def test_linear(case: LinearCase) -> None:
    weight = case.tensors()[1]
    packed = native.pack_linear(weight)
    assert packed.shape == (1, case.shape[-1], packing.padded_units(case.units))
    assert packed.equal(packing.pack_linear(weight))
    assert native.pack_input_major(packed).equal(packing.pack_input_major(packed))
    unpacked = packing.unpack_panels(packed, case.units, case.shape[-1])
    assert unpacked.equal(weight)


@pytest.mark.parametrize("case", CONV2D, ids=names(CONV2D))
def test_conv2d(case: ConvCase) -> None:
    weight = case.tensors()[1]
    packed = native.pack_conv2d(weight)
    assert packed.shape == (1, *case.kernel, weight.shape[1], packing.padded_units(case.units))
    assert packed.equal(packing.pack_conv2d(weight))
    scale = torch.randn(case.units, generator=seeded(case.name))
    grouped = native.pack_conv2d(weight, scale=scale, groups=case.groups)
    assert grouped.equal(packing.pack_conv2d(weight, scale=scale, groups=case.groups))


@pytest.mark.parametrize("case", ACTIVE, ids=names(ACTIVE))
def test_index_lists_and_scale(case: ActiveCase) -> None:
    g = seeded(case.name)
    units, inputs = case.index_lists()
    scale = torch.randn(case.units, generator=g)
    weight = torch.randn(case.units, case.inputs, generator=g)
    assert native.pack_linear(weight, units, inputs, scale).equal(
        packing.pack_linear(weight, units, inputs, scale)
    )
    kernel = torch.randn(case.units, case.inputs, 3, 2, generator=g)
    packed = native.pack_conv2d(kernel, units, inputs, scale)
    assert packed.equal(packing.pack_conv2d(kernel, units, inputs, scale))


def test_linear_columns_in_any_order() -> None:
    g = seeded("columns")
    weight, columns = torch.randn(19, 12, generator=g), torch.tensor([11, 0, 5, 4, 3])
    assert native.pack_linear(weight, None, columns).equal(packing.pack_linear(weight, None, columns))


def test_large_weights() -> None:
    """They are written past the caches, but for a last panel that is not whole."""
    g = seeded("large")
    weight, columns = torch.randn(680, 520, generator=g), torch.arange(0, 520, 3)
    rows = torch.arange(0, 680, 5)
    assert native.pack_linear(weight).equal(packing.pack_linear(weight))
    wide = torch.randn(680, 2600, generator=g)
    assert native.pack_linear(wide, rows).equal(packing.pack_linear(wide, rows))
    assert native.pack_linear(wide, None, columns).equal(packing.pack_linear(wide, None, columns))


def test_weights_in_other_layouts() -> None:
    g = seeded("layouts")
    weight = torch.randn(12, 19, generator=g).t()
    assert native.pack_linear(weight).equal(packing.pack_linear(weight))
    kernel = torch.randn(19, 5, 3, 3, generator=g).contiguous(memory_format=torch.channels_last)
    assert native.pack_conv2d(kernel).equal(packing.pack_conv2d(kernel))


@pytest.mark.parametrize("kernel", [(), (3, 2)], ids=str)
def test_gather_into(kernel: tuple[int, ...]) -> None:
    g = seeded("gather_into")
    weight, scale = torch.randn(9, 7, *kernel, generator=g), torch.randn(9, generator=g)
    rows, columns, slots = torch.tensor([0, 4, 8]), torch.tensor([1, 2, 6]), torch.tensor([5, 0, 9])
    op = torch.ops.dynprune.gather_into
    to = torch.randn(5, 12, *kernel, generator=g)
    expected = to.clone()
    for i, row in enumerate(rows.tolist()):
        for column, slot in zip(columns.tolist(), slots.tolist(), strict=True):
            expected[i, slot] = weight[row, column] * scale[row]
    op(to, weight, indices=rows, input_indices=columns, scale=scale, input_slots=slots)
    assert torch.equal(to, expected)
    op(to[:, 5:], weight[:5])
    expected[:, 5:] = weight[:5]
    assert torch.equal(to, expected)
    torch.library.opcheck(op.default, (to[:, 5:], weight), {"indices": rows})
    for options, message in (
        ({}, r"room for a weight of at least \[9, 7"),
        ({"indices": rows, "input_slots": slots}, r"input_slots \[7\]"),
        ({"indices": rows, "scale": scale[:3]}, r"a scale \[9\]"),
        ({"indices": rows.int()}, r"contiguous int64 indices \[n\] on cpu"),
        ({"indices": rows + 1}, r"indices in \[0, 9\), got 1 to 9"),
        ({"indices": rows, "input_indices": columns - 2}, r"input_indices in \[0, 7\), got -1 to 4"),
        (
            {"indices": rows, "input_indices": columns, "input_slots": slots + 3},
            r"input_slots in \[0, 12\), got 3 to 12",
        ),
    ):
        with pytest.raises(ValueError, match=f"gather_into: expected {message}"):
            op(to, weight, **options)


W, K = torch.randn(9, 7), torch.randn(9, 7, 3, 3)
BAD: list[tuple[str, str, tuple[Any, ...], str]] = [
    ("weight", "pack_linear", (K,), r"a weight \[out, in\], got \[9, 7, 3, 3\]"),
    ("dtype", "pack_linear", (W.double(),), "a float32 or bfloat16 weight, got Double"),
    ("order", "pack_linear", (W, torch.tensor([2, 1])), "indices strictly increasing .*, got 1 after 2"),
    ("columns", "pack_linear", (W, None, torch.tensor([7])), r"distinct columns in \[0, 7\), got 7"),
    ("twice", "pack_linear", (W, None, torch.tensor([5, 5])), r"distinct columns in \[0, 7\), got 5"),
    (
        "values",
        "pack_linear",
        (W, None, None, None, torch.ones(3), torch.ones(1)),
        r"values \[n\], n a divisor of 7, got \[3\]",
    ),
    (
        "sums",
        "pack_conv2d",
        (K, None, None, None, 1, torch.ones(7), torch.ones(9, 9)),
        r"contiguous float64 sums \[9, 9\], got Float \[9, 9\]",
    ),
    ("scale", "pack_linear", (W, None, None, torch.ones(7)), r"a scale \[9\], got \[7\]"),
    ("conv-weight", "pack_conv2d", (W,), r"a weight \[out, in, kh, kw\], got \[9, 7\]"),
    (
        "conv-inputs",
        "pack_conv2d",
        (K, None, torch.tensor([7])),
        "input_indices strictly increasing .*, got 7",
    ),
    ("conv-scale", "pack_conv2d", (K, None, None, torch.ones(3)), r"a scale \[9\], got \[3\]"),
    ("conv-groups", "pack_conv2d", (K, None, None, None, 2), "positive groups that divide 9 units, got 2"),
    ("conv-groups-scale", "pack_conv2d", (K, None, None, torch.ones(3), 3), r"a scale \[9\], got \[3\]"),
    ("conv-groups-lists", "pack_conv2d", (K, torch.tensor([1]), None, None, 3), "no index lists .*, got 3"),
]


@pytest.mark.parametrize(("op", "args", "message"), [row[1:] for row in BAD], ids=[row[0] for row in BAD])
def test_bad_input(op: str, args: tuple[Any, ...], message: str) -> None:
    with pytest.raises(ValueError, match=f"^{op}: expected {message}"):
        getattr(native, op)(*args)


@pytest.mark.parametrize("case", CONV2D, ids=names(CONV2D))
def test_tap_sums(case: ConvCase) -> None:
    weight = case.tensors()[1]
    values = torch.randn(weight.shape[1], generator=seeded(case.name))
    for indices in (None, torch.arange(0, len(weight), 2)):
        sums = native.tap_sums(weight, values, indices)
        expected = packing.tap_sums(weight, values, indices)
        torch.testing.assert_close(sums, expected, rtol=1e-5, atol=1e-5)


def test_tap_sums_of_many_channels() -> None:
    weight, values = torch.randn(3, 515, 5, 3), torch.randn(515)
    expected = packing.tap_sums(weight, values)
    torch.testing.assert_close(native.tap_sums(weight, values), expected, rtol=1e-5, atol=1e-4)
    with pytest.raises(ValueError, match=r"tap_sums: expected values \[515\], got \[3\]"):
        native.tap_sums(weight, values[:3])


@pytest.mark.parametrize("case", ACTIVE, ids=names(ACTIVE))
def test_sums_on_the_way(case: ActiveCase) -> None:
    """Packing with values gives the same weights, and the sums of the pruned inputs beside them."""
    g = seeded(case.name)
    units, inputs = case.index_lists()
    rows = case.units if units is None else len(units)
    values = torch.randn(case.inputs, generator=g)
    kernel = torch.randn(case.units, case.inputs, 3, 2, generator=g)
    sums = torch.full((rows, 6), float("nan"), dtype=torch.float64)
    packed = native.pack_conv2d(
        kernel, units, inputs, torch.full((case.units,), 2.0), values=values, sums=sums
    )
    assert packed.equal(2 * packing.pack_conv2d(kernel, units, inputs))
    torch.testing.assert_close(sums, packing.tap_sums(kernel, values, units), rtol=1e-5, atol=1e-5)
    matrix = kernel.flatten(1)
    flat = torch.full((rows, 6), float("nan"), dtype=torch.float64)
    native.pack_linear(matrix, units, values=values, sums=flat)
    assert flat.equal(sums)
