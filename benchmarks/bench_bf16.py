"""linear and conv2d in bfloat16 with bias, ReLU and usage sums, against eager PyTorch and our float32.

The bars are for machines with AMX; the summary's machine says whether this one has it.
"""

from __future__ import annotations

from typing import Any

import pytest
import torch
import torch.nn.functional as F

from benchmarks.bench_conv2d import Shape
from benchmarks.common import (
    Run,
    Times,
    contestants,
    device,
    laid_out_conv2d,
    laid_out_linear,
    measure,
    usage_of,
)

LINEAR = [
    (rows, width)
    for rows in (8, 16, 64, 256)
    for width in (512, 768, 1024, 4096)
    if width < 4096 or rows <= 64
]
CONV2D = [
    Shape(1, 64, 64, 56),
    Shape(1, 256, 256, 14),
    Shape(1, 3, 64, 224, 7, 2),
    Shape(1, 256, 64, 56, 1),
    Shape(16, 3, 32, 32),
    Shape(16, 32, 32, 28),
    Shape(16, 45, 51, 16),
    Shape(16, 64, 64, 16),
    Shape(16, 64, 128, 16, stride=2),
    Shape(16, 128, 128, 8),
    Shape(16, 256, 512, 7, 1),
    Shape(8, 512, 512, 7),
]


@contestants("ours", "eager")
@pytest.mark.parametrize(("rows", "width"), LINEAR, ids=[f"{rows}x{width}" for rows, width in LINEAR])
def bench_linear(benchmark: Any, rows: int, width: int, contestant: str) -> None:
    runs = linear_runs(rows, width)
    del runs["ours-float32"]
    measure(benchmark, "bf16 linear", f"{rows}x{width}", contestant, runs)


@contestants("ours", "ours-float32")
def bench_against_float32(benchmark: Any, contestant: str) -> None:
    runs = linear_runs(256, 1024)
    del runs["eager"]
    measure(benchmark, "bf16 gain", "256x1024x1024", contestant, runs, gain)


@contestants("ours", "eager-channels-last")
@pytest.mark.parametrize("shape", CONV2D, ids=[shape.name for shape in CONV2D])
def bench_conv2d(benchmark: Any, shape: Shape, contestant: str) -> None:
    measure(benchmark, "bf16 conv2d", shape.name, contestant, conv2d_runs(shape))


def gain(times: Times) -> dict[str, float]:
    return {"float32 / ours": times["ours-float32"] / times["ours"]}


def linear_runs(rows: int, width: int) -> dict[str, Run]:
    g = torch.Generator().manual_seed(0)
    x = torch.randn(rows, width, generator=g).bfloat16().to(device())
    weight = (torch.randn(width, width, generator=g) / width**0.5).bfloat16().to(device())
    bias = torch.randn(width, generator=g).to(device())
    packed, bias_narrow = laid_out_linear(weight), bias.bfloat16()
    x_wide, packed_wide = x.float(), laid_out_linear(weight.float())
    usage = usage_of(width)
    linear = torch.ops.dynprune.linear.default
    return {
        "ours": lambda: linear(x, packed, bias, activation="relu", usage=usage),
        "eager": lambda: F.relu(F.linear(x, weight, bias_narrow)),
        "ours-float32": lambda: linear(x_wide, packed_wide, bias, activation="relu", usage=usage),
    }


def conv2d_runs(shape: Shape) -> dict[str, Run]:
    g = torch.Generator().manual_seed(0)
    x = torch.randn(shape.batch, shape.channels, shape.size, shape.size, generator=g).bfloat16().to(device())
    weight = torch.randn(shape.units, shape.channels, shape.kernel, shape.kernel, generator=g)
    weight = (weight / weight[0].numel() ** 0.5).bfloat16().to(device())
    bias = torch.randn(shape.units, generator=g).to(device())
    packed, bias_narrow = laid_out_conv2d(weight), bias.bfloat16()
    x, weight = (t.contiguous(memory_format=torch.channels_last) for t in (x, weight))
    usage = usage_of(shape.units)
    geometry = ((shape.stride,) * 2, (shape.kernel // 2,) * 2)
    conv2d = torch.ops.dynprune.conv2d.default
    return {
        "ours": lambda: conv2d(x, packed, bias, *geometry, activation="relu", usage=usage),
        "eager-channels-last": lambda: F.relu(F.conv2d(x, weight, bias_narrow, *geometry)),
    }
