"""What linear and conv2d do to a tile of products: activation, usage sums, denormals, NaN and infinity."""

from __future__ import annotations

import math

import pytest
import torch
from torch import Tensor

from dynprune.ops import reference

linear = torch.ops.dynprune.linear
conv2d = torch.ops.dynprune.conv2d


def through_linear(values: Tensor, **kwargs: object) -> Tensor:
    """The op on a layer with one input and one unit of weight 1."""
    return linear(values[:, None], torch.ones(1, 1), **kwargs)[:, 0]


@pytest.mark.parametrize("activation", reference.ACTIVATIONS)
def test_each_activation_pointwise(activation: str) -> None:
    """Small values count as well as large ones."""
    near_zero = torch.logspace(-30, 0, 61)
    x = torch.cat([torch.linspace(-20, 20, 2001), near_zero, -near_zero, torch.tensor([0.0, -200.0, 200.0])])
    actual = through_linear(x, activation=activation, slope=0.2).double()
    expected = reference.activate(x.double(), activation, 0.2)
    torch.testing.assert_close(actual, expected, rtol=1e-6, atol=1e-6)


@pytest.mark.parametrize("activation", reference.ACTIVATIONS)
def test_nan_and_infinity_pass_through_the_output(activation: str) -> None:
    x = torch.tensor([1.0, math.nan, -1.0, math.inf, 0.5, -math.inf, 2.0])
    actual = through_linear(x, activation=activation)
    expected = reference.activate(x.double(), activation).float()
    torch.testing.assert_close(actual, expected, rtol=1e-5, atol=1e-6, equal_nan=True)


def check_bad_values_left_out(usage: Tensor, rows: int, bad: int, mean: float) -> None:
    """Sums are finite, and count good rows only; the kernel may leave out the rest of a bad value's tile."""
    assert usage.isfinite().all()
    assert (usage[3] <= rows - bad).all()
    assert (usage[3] >= rows - 64 * bad).all()
    torch.testing.assert_close(usage[1], mean * usage[3])
    torch.testing.assert_close(usage[0], usage[1])
    torch.testing.assert_close(usage[2], mean**2 * usage[3])


@pytest.mark.parametrize("value", [math.nan, math.inf, -math.inf], ids=str)
def test_usage_leaves_out_nan_and_infinity(value: float) -> None:
    x, usage = torch.ones(200, 1), torch.zeros(4, 17, dtype=torch.float64)
    x[70] = value
    linear(x, torch.full((17, 1), 3.0), usage=usage)
    check_bad_values_left_out(usage, 200, 1, 3.0)
    image, usage = torch.ones(2, 1, 10, 10), torch.zeros(4, 17, dtype=torch.float64)
    image[1, 0, 4, 4] = value
    conv2d(image, torch.full((17, 1, 1, 1), 3.0), usage=usage)
    check_bad_values_left_out(usage, 200, 1, 3.0)


def test_usage_of_one_bad_unit_leaves_the_others_alone() -> None:
    usage, bias = torch.zeros(4, 20, dtype=torch.float64), torch.ones(20)
    bias[7] = math.nan
    linear(torch.zeros(100, 3), torch.ones(20, 3), bias, usage=usage)
    expected = torch.full((4, 20), 100.0, dtype=torch.float64)
    expected[:, 7] = 0
    assert usage.equal(expected)


@pytest.mark.parametrize("value", [3e38, 1e20], ids=["sum-overflows", "square-overflows"])
def test_usage_stays_finite_where_its_sums_overflow(value: float) -> None:
    usage = torch.zeros(4, 1, dtype=torch.float64)
    through_linear(torch.tensor([value, -value] * 64), usage=usage)
    through_linear(torch.full((128,), value), usage=usage)
    assert usage.isfinite().all()


def variance(usage: Tensor) -> Tensor:
    return usage[2] / usage[3] - (usage[1] / usage[3]) ** 2


@pytest.mark.parametrize("scale", [1.0, -1.0], ids=["positive", "negative"])
def test_variance_of_a_nearly_constant_unit(scale: float) -> None:
    """Mean 1000, standard deviation 0.01: float32 sums would lose the variance altogether."""
    x = scale * (1000 + 0.01 * torch.randn(5000, generator=torch.Generator().manual_seed(0)))
    true = x.double().var(correction=0).item()
    naive = abs(((x * x).mean() - x.mean() ** 2).item() - true) / true
    usage = torch.zeros(4, 1, dtype=torch.float64)
    through_linear(x, usage=usage)
    error = abs(variance(usage).item() - true) / true
    assert naive > 1
    assert error < 1e-3


def test_variance_over_pixels_and_calls() -> None:
    x = 1000 + 0.01 * torch.randn(4, 1, 30, 30, generator=torch.Generator().manual_seed(0))
    usage = torch.zeros(4, 1, dtype=torch.float64)
    for part in x.split(2):
        conv2d(part, torch.ones(1, 1, 1, 1), usage=usage)
    torch.testing.assert_close(variance(usage), x.double().var(correction=0).view(1), rtol=1e-3, atol=0)


@pytest.mark.skipif(torch.backends.cpu.get_cpu_capability() == "DEFAULT", reason="needs an x86 CPU")
def test_denormals_are_flushed_inside_and_left_alone_outside() -> None:
    denormal = torch.tensor([1e-40])
    assert through_linear(denormal * 1).eq(0).all()
    assert (denormal * 1).ne(0).all()
