"""What follows a product while its tile is in registers: activation, and usage sums."""

import triton
import triton.language as tl


@triton.jit
def tanh(x):
    """Triton has none of its own; no overflow, and an error of one rounding of 1."""
    t = tl.exp(-2.0 * tl.abs(x))
    return tl.where(x < 0, -1.0, 1.0) * (1.0 - t) / (1.0 + t)


@triton.jit
def sigmoid(x):
    """No overflow at either end."""
    t = tl.exp(-tl.abs(x))
    return tl.where(x < 0, t, 1.0) / (1.0 + t)


@triton.jit
def activate(x, slope, KIND: tl.constexpr):
    """The activation functions of the reference ops, by name."""
    if KIND == "relu":
        # Not a maximum: that would lose NaN.
        x = tl.where(x < 0, 0.0, x)
    elif KIND == "leaky_relu":
        x = tl.where(x < 0, slope * x, x)
    elif KIND == "gelu":
        x = 0.5 * x * (1.0 + tl.erf(x * 0.7071067811865476))
    elif KIND == "gelu_tanh":
        x = 0.5 * x * (1.0 + tanh(0.7978845608028654 * (x + 0.044715 * x * x * x)))
    elif KIND == "silu":
        x = x * sigmoid(x)
    elif KIND == "tanh":
        x = tanh(x)
    elif KIND == "sigmoid":
        x = sigmoid(x)
    return x


@triton.jit
def add_usage(usage, stride, units, a, there, unit_there):
    """Add sum |a|, sum a, sum a^2 and count of each column of a tile ``a`` to ``usage`` [4, stride], float64.

    Sums are taken in float32 about the tile's mean, so that a unit far from zero keeps its variance. NaN
    and infinity stay outside, of the count too.
    """
    good = there & (tl.abs(a) < float("inf"))
    a = tl.where(good, a, 0.0)
    count = tl.sum(good.to(tl.float32), 0)
    middle = tl.sum(a, 0) / tl.maximum(count, 1.0)
    about = tl.where(good, a - middle[None, :], 0.0)
    rest, square = tl.sum(about, 0).to(tl.float64), tl.sum(about * about, 0).to(tl.float64)
    n, m = count.to(tl.float64), middle.to(tl.float64)
    at = usage + units
    tl.atomic_add(at, tl.sum(tl.abs(a), 0).to(tl.float64), mask=unit_there, sem="relaxed")
    tl.atomic_add(at + stride, m * n + rest, mask=unit_there, sem="relaxed")
    tl.atomic_add(at + 2 * stride, square + m * (2 * rest + n * m), mask=unit_there, sem="relaxed")
    tl.atomic_add(at + 3 * stride, n, mask=unit_there, sem="relaxed")
