"""The op ``conv2d`` against the reference in float64."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from dynprune import ops
from dynprune.ops import reference
from tests.ops.cases import (
    ACTIVE,
    CONV2D,
    TABLES,
    UNGROUPED,
    ActiveCase,
    ConvCase,
    TableCase,
    channels_last,
    names,
    seeded,
    subset,
)
from tests.ops.tolerance import assert_close, assert_usage_close

conv2d = torch.ops.dynprune.conv2d


def no_usage(units: int) -> Tensor:
    return torch.zeros(4, units, dtype=torch.float64)


def check(expected_of: tuple[Any, ...], call: tuple[Any, ...], **kwargs: Any) -> None:
    """``conv2d(*call, **kwargs)``, its usage too, is what the reference makes of ``expected_of``."""
    named = {k: v for k, v in kwargs.items() if k in ("activation", "slope")}
    in_double = [v.double() if isinstance(v, Tensor) else v for v in expected_of]
    expected = reference.conv2d(*in_double, **named)
    expected_usage, usage = reference.usage_sums(expected, 1), no_usage(expected.shape[1])
    actual = conv2d(*call, usage=usage, **kwargs)
    assert actual.is_contiguous(memory_format=torch.channels_last)
    assert_close(actual, expected)
    assert_usage_close(usage, expected_usage)


@pytest.mark.parametrize("case", UNGROUPED, ids=names(UNGROUPED))
def test_packed(case: ConvCase) -> None:
    x, weight, bias = case.tensors()
    call = (x, ops.pack_conv2d(weight), bias, *case.geometry)
    check((x, weight, bias, *case.geometry), call, activation="relu")


@pytest.mark.parametrize("case", CONV2D, ids=names(CONV2D))
def test_master(case: ConvCase) -> None:
    x, weight, _ = case.tensors()
    check((x, weight, None, *case.geometry, case.groups), (x, weight, None, *case.geometry, case.groups))


@pytest.mark.parametrize("case", TABLES, ids=names(TABLES))
def test_border_table(case: TableCase) -> None:
    """Both ways to look the table up agree: the kernel's and the reference's."""
    x, weight, _ = case.conv.tensors()
    table, packed = case.table(), ops.pack_conv2d(weight)
    in_double = reference.pack_conv2d(weight.double())
    check(
        (x, in_double, table, *case.conv.geometry), (x, packed, table, *case.conv.geometry), activation="tanh"
    )


@pytest.mark.parametrize(
    "layout", [torch.contiguous_format, torch.channels_last], ids=["nchw", "channels-last"]
)
def test_border_table_is_the_constant_inside_the_image(layout: torch.memory_format) -> None:
    """What the table is for: channels of one constant each, absent in the padding, become biases."""
    g = seeded("constants")
    x, weight = torch.randn(2, 5, 6, 7, generator=g), torch.randn(17, 5, 3, 3, generator=g)
    constants = torch.randn(2, generator=g)
    x[:, 3:] = constants[:, None, None]
    taps = torch.einsum("ochw,c->ohw", weight[:, 3:], constants)
    table = torch.stack(
        [
            taps[:, low_h : 3 - high_h, low_w : 3 - high_w].sum((1, 2))
            for low_h in (0, 1)
            for high_h in (0, 1)
            for low_w in (0, 1)
            for high_w in (0, 1)
        ]
    ).view(2, 2, 2, 2, 17)
    expected = torch.nn.functional.conv2d(x.double(), weight.double(), padding=1)
    active = torch.arange(3)
    packed = ops.pack_conv2d(weight, None, active)
    args = (packed, table, (1, 1), (1, 1))
    assert_close(conv2d(x[:, :3].contiguous(memory_format=layout), *args), expected)
    assert_close(conv2d(x.contiguous(memory_format=layout), *args, input_indices=active), expected)


@pytest.mark.parametrize("activation", reference.ACTIVATIONS)
def test_each_activation(activation: str) -> None:
    case = ConvCase(activation, (2, 5, 9, 8), 21, (3, 3), padding=(1, 1))
    x, weight, bias = case.tensors()
    call = (x, ops.pack_conv2d(weight), bias, *case.geometry)
    check((x, weight, bias, *case.geometry), call, activation=activation, slope=0.3)


@pytest.mark.parametrize("activation", reference.ACTIVATIONS)
def test_each_activation_with_groups(activation: str) -> None:
    case = ConvCase(activation, (2, 6, 5, 4), 9, (3, 3), padding=(1, 1), groups=3)
    args = (*case.tensors(), *case.geometry, 3)
    check(args, args, activation=activation, slope=0.3)


@pytest.mark.parametrize("case", ACTIVE, ids=names(ACTIVE))
def test_index_lists(case: ActiveCase) -> None:
    """Master with index lists and packed plan, full-width and compact input: all the same convolution."""
    g = seeded(case.name)
    weight, bias = (
        torch.randn(case.units, case.inputs, 3, 3, generator=g),
        torch.randn(case.units, generator=g),
    )
    x = channels_last(torch.randn(2, case.inputs, 6, 7, generator=g))
    units, inputs = case.index_lists()
    compact = x[:, inputs]
    geometry = ((1, 1), (1, 1))
    product = (compact, weight[units][:, inputs], bias[units], *geometry)
    packed = ops.pack_conv2d(weight, units, inputs)
    lists = {"indices": units, "input_indices": inputs}
    check(product, (x, weight, bias, *geometry), activation="relu", **lists)
    check(product, (compact, weight, bias, *geometry), activation="relu", **lists)
    check(product, (compact, packed, bias[units], *geometry), activation="relu")
    check(product, (x, packed, bias[units], *geometry), activation="relu", input_indices=inputs)
    check(product, (compact, packed, bias[units], *geometry), activation="relu", input_indices=inputs)


def test_gathers_from_nchw_and_for_1x1() -> None:
    inputs = torch.tensor([0, 2, 3, 7, 11, 16])
    for name, kernel in (("3x3", (3, 3)), ("1x1", (1, 1))):
        x, weight, bias = ConvCase(name, (2, 17, 6, 5), 18, kernel).tensors()
        product = (x[:, inputs], weight[:, inputs], bias)
        check(product, (x, weight, bias), input_indices=inputs)
        check(product, (channels_last(x), weight, bias), input_indices=inputs)


def test_indices_with_groups() -> None:
    x, weight, bias = ConvCase("groups", (2, 6, 5, 5), 9, (3, 3), groups=3).tensors()
    chosen, usage = torch.tensor([0, 4, 8]), no_usage(3)
    full = reference.conv2d(x.double(), weight.double(), bias.double(), groups=3)
    assert_close(conv2d(x, weight, bias, groups=3, indices=chosen, usage=usage), full[:, chosen])
    assert_usage_close(usage, reference.usage_sums(full[:, chosen], 1))


OPCHECK = [
    ("master", (torch.randn(2, 3, 6, 7), torch.randn(9, 3, 3, 3)), {}),
    (
        "geometry-and-usage",
        (torch.randn(2, 3, 6, 7), torch.randn(9, 3, 3, 2), torch.randn(9), (2, 1), (1, 0), (1, 2)),
        {"usage": no_usage(9)},
    ),
    (
        "packed-table",
        (
            torch.randn(2, 3, 6, 7),
            ops.pack_conv2d(torch.randn(9, 3, 3, 3)),
            torch.randn(2, 2, 2, 2, 9),
            (1, 1),
            (1, 1),
        ),
        {"activation": "gelu"},
    ),
    (
        "groups",
        (torch.randn(2, 4, 6, 7), torch.randn(6, 2, 3, 3), None, (1, 1), (1, 1), (1, 1), 2),
        {"usage": no_usage(6)},
    ),
    (
        "index-lists",
        (torch.randn(2, 3, 6, 7), torch.randn(9, 3, 3, 3), torch.randn(9)),
        {"indices": torch.tensor([1, 8]), "input_indices": torch.tensor([0, 2]), "usage": no_usage(2)},
    ),
]


@pytest.mark.parametrize(("args", "kwargs"), [row[1:] for row in OPCHECK], ids=[row[0] for row in OPCHECK])
def test_opcheck(args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
    torch.library.opcheck(conv2d.default, args, kwargs)


@pytest.mark.parametrize("case", CONV2D, ids=names(CONV2D))
def test_opcheck_of_cases(case: ConvCase) -> None:
    args, kwargs = (*case.tensors(), *case.geometry, case.groups), {"usage": no_usage(case.units)}
    torch.library.opcheck(conv2d.default, args, kwargs, test_utils=("test_schema", "test_faketensor"))


@pytest.mark.usefixtures("_threads_restored")
@pytest.mark.parametrize("batch", [1, 3])
def test_threads(batch: int) -> None:
    """One result for one number of threads, and the same up to rounding for another."""
    case = ConvCase("threads", (batch, 33, 20, 20), 66, (3, 3), padding=(1, 1), layout=channels_last)
    x, weight, bias = case.tensors()
    packed = ops.pack_conv2d(weight)

    def run(threads: int) -> tuple[Tensor, Tensor]:
        torch.set_num_threads(threads)
        usage = no_usage(66)
        return conv2d(x, packed, bias, *case.geometry, activation="gelu", usage=usage), usage

    for threads in (1, 2):
        for first, second in zip(run(threads), run(threads), strict=True):
            assert first.equal(second)
    one, two = run(1), run(2)
    assert_close(two[0], one[0].double())
    assert_usage_close(two[1], one[1])


X, W, B = torch.randn(2, 6, 5, 5), torch.randn(9, 6, 3, 3), torch.randn(9)
P, G = ops.pack_conv2d(W), torch.randn(8, 3, 3, 3)
ONE, FALLING = torch.tensor([1]), torch.tensor([3, 1])
BAD: list[tuple[str, tuple[Any, ...], dict[str, Any], str]] = [
    ("input-dims", (X[0], W), {}, r"an input \[batch, channels, height, width\], got \[6, 5, 5\]"),
    ("input-dtype", (X.double(), W), {}, "a float32 input, got Double"),
    ("weight-dtype", (X, W.half()), {}, "a float32 weight, got Half"),
    ("weight-dims", (X, W[0]), {}, r"a weight \[out, in, kh, kw\] or packed .*, got \[6, 3, 3\]"),
    ("channels", (X[:, :5], W), {}, "an input with 6 channels.*, got 5"),
    ("channels-packed", (X[:, :5], P, B), {}, r"an input with 6 \(active\) channels, got 5"),
    ("bias-shape", (X, W, B[:8]), {}, r"a bias \[9\], got \[8\]"),
    ("packed-without-bias", (X, P), {}, r"a bias \[n\] or .* rounded up to 16.*, got none"),
    ("table-with-master", (X, W, torch.randn(1, 1, 1, 1, 9)), {}, r"a bias \[9\], got \[1, 1, 1, 1, 9\]"),
    ("no-zones", (X, P, torch.randn(0, 1, 1, 1, 9)), {}, r"a bias .*, got \[0, 1, 1, 1, 9\]"),
    ("packed-with-indices", (X, P, B), {"indices": ONE}, r"no indices beside a packed weight, got \[1\]"),
    ("order", (X, W), {"indices": FALLING}, r"indices strictly increasing in \[0, 9\), got 1 after 3"),
    ("too-large", (X, W), {"input_indices": torch.tensor([6])}, "input_indices strictly increasing.*, got 6"),
    (
        "gather",
        (X, ops.pack_conv2d(W[:, :1]), B),
        {"input_indices": torch.tensor([6])},
        "input_indices.*, got 6",
    ),
    ("image-too-small", (X[..., :2], W), {}, "a padded input at least 3 wide, got 2"),
    ("image-too-low", (X[..., :3, :], W), {"dilation": (2, 2)}, "a padded input at least 5 high, got 3"),
    ("stride", (X, W), {"stride": (0, 1)}, "positive kernel, stride and .*, got 3, 0, 1, 0"),
    ("padding", (X, W), {"padding": (0, -1)}, "positive kernel, stride .*, got 3, 1, 1, -1"),
    ("activation", (X, W), {"activation": "swish"}, "an activation out of none, relu, .*, got swish"),
    ("usage-shape", (X, W), {"usage": no_usage(8)}, r"float64 usage \[4, 9\].*, got Double \[4, 8\]"),
    ("groups-packed", (X, P, B), {"groups": 2}, "a master weight .* with groups, got"),
    ("groups-zero", (X, G), {"groups": 0}, "positive groups .*, got 0"),
    ("groups-channels", (X[:, :5], G), {"groups": 2}, "an input with 6 channels, got 5"),
    ("groups-units", (X, G[:7]), {"groups": 2}, "positive groups that divide 7 units, got 2"),
    ("groups-bias", (X, G, B), {"groups": 2}, r"a bias \[8\], got \[9\]"),
    ("groups-order", (X, G), {"groups": 2, "indices": FALLING}, "indices strictly .*, got 1 after 3"),
    ("groups-image", (X[..., :2], G), {"groups": 2}, "a padded input at least 3 wide, got 2"),
    ("groups-usage", (X, G), {"groups": 2, "usage": no_usage(9)}, r"float64 usage \[4, 8\].*, got Double"),
]


@pytest.mark.parametrize(("args", "kwargs", "message"), [row[1:] for row in BAD], ids=[row[0] for row in BAD])
def test_bad_input(args: tuple[Any, ...], kwargs: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=f"^conv2d: expected {message}"):
        conv2d(*args, **kwargs)


@st.composite
def geometries(draw: st.DrawFn) -> ConvCase:
    kernel = draw(st.integers(1, 5)), draw(st.integers(1, 5))
    stride = draw(st.integers(1, 3)), draw(st.integers(1, 3))
    padding = draw(st.integers(0, 3)), draw(st.integers(0, 3))
    dilation = draw(st.integers(1, 2)), draw(st.integers(1, 2))
    reach = [(kernel[i] - 1) * dilation[i] + 1 - 2 * padding[i] for i in (0, 1)]
    size = [draw(st.integers(max(1, low), max(1, low) + 12)) for low in reach]
    channels, units = draw(st.integers(0, 20)), draw(st.integers(0, 40))
    layout = draw(st.sampled_from([torch.clone, channels_last]))
    shape = (draw(st.integers(0, 3)), channels, *size)
    name = str(draw(st.integers(0, 1000)))
    return ConvCase(name, shape, units, kernel, stride, padding, dilation, layout=layout)


@settings(max_examples=50, deadline=None, derandomize=True)
@given(geometries(), st.data())
def test_any_geometry_and_index_set(case: ConvCase, data: st.DataObject) -> None:
    x, weight, bias = case.tensors()
    g = seeded(case.name)
    indices = subset(case.units, data.draw(st.integers(0, case.units)), g)
    inputs = subset(case.shape[1], data.draw(st.integers(0, case.shape[1])), g)
    zones = [data.draw(st.integers(1, 3)) for _ in range(4)]
    table = torch.randn(*zones, len(indices), generator=g)
    chosen = weight[indices][:, inputs]
    check(
        (x[:, inputs], chosen, bias[indices], *case.geometry),
        (x, weight, bias, *case.geometry),
        indices=indices,
        input_indices=inputs,
        activation="relu",
    )
    check(
        (x[:, inputs], reference.pack_conv2d(chosen.double()), table, *case.geometry),
        (x, ops.pack_conv2d(weight, indices, inputs), table, *case.geometry),
        input_indices=inputs,
    )
