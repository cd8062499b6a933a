"""What the launchers share."""

from __future__ import annotations

import contextlib
from typing import Any

import torch
from torch import Tensor

from dynprune.ops.checks import expect
from dynprune.ops.devices import tf32_allowed
from dynprune.ops.reference import ACTIVATIONS, USAGE_ROWS

DTYPES = (torch.float32, torch.float16, torch.bfloat16)


def precision(op: str) -> str:
    """How the float32 products of an op are taken: as PyTorch is allowed to take its own."""
    return "tf32" if tf32_allowed(op) else "ieee"


def on(x: Tensor) -> Any:
    """A context in which launches go to the device of ``x``."""
    return torch.cuda.device(x.device) if x.is_cuda else contextlib.nullcontext()


def expect_operands(op: str, input: Tensor, weight: Tensor, bias: Tensor | None) -> None:
    """Raise ValueError unless dtypes and devices are those of one product."""
    expect(input.dtype in DTYPES, op, "a float32, float16 or bfloat16 input", input.dtype)
    expect(weight.dtype == input.dtype, op, f"a weight of the input's dtype, {input.dtype}", weight.dtype)
    for name, t in (("weight", weight), ("bias", bias)):
        where = None if t is None else t.device
        expect(
            t is None or where == input.device, op, f"a {name} on the input's device, {input.device}", where
        )
    if bias is not None:
        allowed = (torch.float32, input.dtype)
        expect(bias.dtype in allowed, op, "a float32 bias, or one of the input's dtype", bias.dtype)


def expect_options(op: str, activation: str, usage: Tensor | None, units: int) -> None:
    """Raise ValueError unless the activation is known and ``usage`` is float64 ``[4, units]``."""
    expect(activation in ACTIVATIONS, op, f"an activation out of {', '.join(ACTIVATIONS)}", activation)
    if usage is not None:
        fits = usage.shape == (USAGE_ROWS, units) and usage.dtype == torch.float64
        fits = fits and (units < 2 or usage.stride(1) == 1)
        got = f"{usage.dtype} {list(usage.shape)}"
        expect(fits, op, f"float64 usage [4, {units}] with contiguous rows", got)


def usage_row(usage: Tensor | None) -> int:
    """Distance of the rows of ``usage``."""
    return 0 if usage is None else usage.stride(0)
