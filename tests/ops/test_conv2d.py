"""The op ``conv2d`` against the reference in float64."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from dynprune import ops
from dynprune.ops import packing, reference
from tests.ops.cases import (
    ACTIVE,
    CONV2D,
    DEPTHWISE,
    PACKABLE,
    TABLES,
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


@pytest.mark.parametrize("case", PACKABLE, ids=names(PACKABLE))
def test_packed(case: ConvCase) -> None:
    x, weight, bias = case.tensors()
    geometry = (*case.geometry, case.groups)
    call = (x, ops.pack_conv2d(weight, groups=case.groups), bias, *geometry)
    check((x, weight, bias, *geometry), call, activation="relu")


@pytest.mark.parametrize("case", CONV2D, ids=names(CONV2D))
def test_master(case: ConvCase) -> None:
    x, weight, _ = case.tensors()
    check((x, weight, None, *case.geometry, case.groups), (x, weight, None, *case.geometry, case.groups))


@pytest.mark.parametrize("case", TABLES, ids=names(TABLES))
def test_border_table(case: TableCase) -> None:
    """Both ways to look the table up agree: the kernel's and the reference's."""
    x, weight, _ = case.conv.tensors()
    table, groups = case.table(), case.conv.groups
    packed, in_double = (
        ops.pack_conv2d(weight, groups=groups),
        packing.pack_conv2d(weight.double(), groups=groups),
    )
    geometry = (*case.conv.geometry, groups)
    check((x, in_double, table, *geometry), (x, packed, table, *geometry), activation="tanh")


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


@pytest.mark.parametrize("depth", [1, 2])
@pytest.mark.parametrize("chosen", [[0, 4, 8], [3, 4, 5], [0], [], list(range(9))], ids=str)
def test_indices_with_groups(depth: int, chosen: list[int]) -> None:
    """Units of one group, of all, of none: what a unit reads follows its number in the master."""
    x, weight, bias = ConvCase("groups", (2, 3 * depth, 5, 5), 9, (3, 3), groups=3).tensors()
    indices, usage = torch.tensor(chosen, dtype=torch.int64), no_usage(len(chosen))
    full = reference.conv2d(x.double(), weight.double(), bias.double(), groups=3)[:, chosen]
    for layout in (torch.contiguous_format, torch.channels_last):
        usage.zero_()
        x = x.contiguous(memory_format=layout)
        assert_close(conv2d(x, weight, bias, groups=3, indices=indices, usage=usage), full)
        assert_usage_close(usage, reference.usage_sums(full, 1))


@pytest.mark.parametrize("count", [0, 1, 19, 70])
@pytest.mark.parametrize("case", DEPTHWISE, ids=names(DEPTHWISE))
def test_depthwise_on_some_channels(case: ConvCase, count: int) -> None:
    """Master with indices and packed plan, full-width and compact input: all the same convolution."""
    x, weight, bias = case.tensors()
    if count > case.units:
        pytest.skip("fewer channels than that")
    chosen = subset(case.units, count, seeded(case.name))
    compact, packed = x[:, chosen], ops.pack_conv2d(weight, chosen)
    full = reference.conv2d(x.double(), weight.double(), bias.double(), *case.geometry, case.groups)
    expected = full[:, chosen].relu()
    calls: list[tuple[tuple[Any, ...], dict[str, Tensor]]] = [
        ((x, weight, bias, *case.geometry, case.groups), {"indices": chosen}),
        ((compact, packed, bias[chosen], *case.geometry, count), {}),
        ((channels_last(compact), packed, bias[chosen], *case.geometry, count), {}),
        ((x, packed, bias[chosen], *case.geometry, count), {"input_indices": chosen}),
    ]
    for args, lists in calls:
        usage = no_usage(count)
        assert_close(conv2d(*args, activation="relu", usage=usage, **lists), expected)
        assert_usage_close(usage, reference.usage_sums(expected, 1))
        in_double = [t.double() if isinstance(t, Tensor) else t for t in args]
        assert_close(reference.conv2d(*in_double, activation="relu", **lists).float(), expected)


def test_groups_leave_nan_out_of_the_usage() -> None:
    for groups in (9, 3):
        x, weight, bias = ConvCase("nan", (2, 9, 6, 5), 9, (3, 3), padding=(1, 1), groups=groups).tensors()
        x[0, 4, 2, 2] = float("nan")
        usage = no_usage(9)
        y = conv2d(x, weight, bias, padding=(1, 1), groups=groups, usage=usage)
        clean = torch.tensor([u for u in range(9) if u // (9 // groups) != 4 // (9 // groups)])
        assert usage.isfinite().all() and y.isnan().any()
        assert_usage_close(usage[:, clean], reference.usage_sums(y.double(), 1)[:, clean])


B9 = torch.randn(9)
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
        "packed-depthwise",
        (torch.randn(2, 9, 6, 7), ops.pack_conv2d(torch.randn(9, 1, 3, 3)), B9, (1, 1), (1, 1), (1, 1), 9),
        {"usage": no_usage(9)},
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
@pytest.mark.parametrize("groups", [1, 3, 66])
@pytest.mark.parametrize("batch", [1, 3])
def test_threads(batch: int, groups: int) -> None:
    """One result for one number of threads, and the same up to rounding for another."""
    shape = (batch, 66, 40, 40) if groups == 66 else (batch, 33, 20, 20)
    case = ConvCase("threads", shape, 66, (3, 3), padding=(1, 1), groups=groups, layout=channels_last)
    x, weight, bias = case.tensors()
    packed = ops.pack_conv2d(weight, groups=groups)

    def run(threads: int) -> tuple[Tensor, Tensor]:
        torch.set_num_threads(threads)
        usage = no_usage(66)
        return conv2d(x, packed, bias, *case.geometry, groups, activation="gelu", usage=usage), usage

    for threads in (1, 2):
        for first, second in zip(run(threads), run(threads), strict=True):
            assert first.equal(second)
    one, two = run(1), run(2)
    assert_close(two[0], one[0].double())
    assert_usage_close(two[1], one[1])


X, W, B = torch.randn(2, 6, 5, 5), torch.randn(9, 6, 3, 3), torch.randn(9)
P, G = ops.pack_conv2d(W), torch.randn(8, 3, 3, 3)
Q, D, D2 = ops.pack_conv2d(G, groups=2), *(ops.pack_conv2d(torch.randn(n, 1, 3, 3)) for n in (6, 2))
ONE, FALLING = torch.tensor([1]), torch.tensor([3, 1])
BAD: list[tuple[str, tuple[Any, ...], dict[str, Any], str]] = [
    ("input-dims", (X[0], W), {}, r"an input \[batch, channels, height, width\], got \[6, 5, 5\]"),
    ("input-dtype", (X.double(), W), {}, "a float32 or bfloat16 input, got Double"),
    ("weight-dtype", (X, W.half()), {}, "a weight of the input.s dtype, Float, got Half"),
    ("weight-dims", (X, W[0]), {}, r"a weight \[out, in, kh, kw\] or packed .*, got \[6, 3, 3\]"),
    ("channels", (X[:, :5], W), {}, r"an input with 6 \(active\) channels, got 5"),
    ("channels-packed", (X[:, :5], P, B), {}, r"an input with 6 \(active\) channels, got 5"),
    ("bias-shape", (X, W, B[:8]), {}, r"a bias \[9\], or \[low, high, low, high, 9\] .*, got \[8\]"),
    ("packed-without-bias", (X, P), {}, r"a bias \[n\] or .* rounded up to 16.*, got none"),
    (
        "table-with-indices",
        (X, W, torch.randn(1, 1, 1, 1, 9)),
        {"indices": torch.arange(3)},
        r"a bias \[9\].*, got \[1, 1, 1, 1, 9\]",
    ),
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
    ("groups-packed", (X, P, B), {"groups": 2}, r"a packed weight .* of 2 groups, got \[1, 3, 3, 6, 16\]"),
    ("groups-packed-bias", (X, Q, B), {"groups": 2}, r"a bias .* n / groups rounded up to 8 .*, got \[9\]"),
    (
        "groups-packed-channels",
        (X[:, :5], Q, B[:8]),
        {"groups": 2},
        r"an input with 6 \(active\) channels, got 5",
    ),
    (
        "groups-packed-inputs",
        (X, Q, B[:8]),
        {"groups": 2, "input_indices": ONE},
        "no input_indices beside .*1",
    ),
    ("groups-inputs", (X, G), {"groups": 2, "input_indices": ONE}, "no input_indices with groups, got 2"),
    ("depthwise-packed-groups", (X, D, B[:6]), {"groups": 3}, "as many groups as units, 6, got 3"),
    (
        "depthwise-packed-channels",
        (X[:, :5], D, B[:6]),
        {"groups": 6},
        r"an input with 6 \(active\) .*, got 5",
    ),
    (
        "depthwise-packed-order",
        (X, D2, B[:2]),
        {"groups": 2, "input_indices": FALLING},
        "input_indices .* after 3",
    ),
    ("groups-zero", (X, G), {"groups": 0}, "positive groups .*, got 0"),
    ("groups-channels", (X[:, :5], G), {"groups": 2}, r"an input with 6 \(active\) channels, got 5"),
    ("groups-units", (X, G[:7]), {"groups": 2}, "positive groups that divide 7 units, got 2"),
    ("groups-bias", (X, G, B), {"groups": 2}, r"a bias \[8\], or .*, got \[9\]"),
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
        (x[:, inputs], packing.pack_conv2d(chosen.double()), table, *case.geometry),
        (x, ops.pack_conv2d(weight, indices, inputs), table, *case.geometry),
        input_indices=inputs,
    )
