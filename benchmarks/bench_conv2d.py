"""conv2d + bias + ReLU + usage sums on a plan, against eager PyTorch of the compact size."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import pytest
import torch
import torch.nn.functional as F

from benchmarks.common import Run, contestants, device, laid_out_conv2d, measure, usage_of


@dataclass(frozen=True)
class Shape:
    batch: int
    channels: int
    units: int
    size: int  # of the square image
    kernel: int = 3
    stride: int = 1
    groups: int = 1
    dense: int | None = None  # channels and units of the layer of which these are the active share

    @property
    def name(self) -> str:
        if self.dense is not None:
            return f"{self.batch}x{self.dense}-{self.size}px-{100 * self.units // self.dense}%"
        name = f"{self.batch}x{self.channels}-{self.units}-{self.size}px"
        if (self.kernel, self.stride) != (3, 1):
            name += f"-{self.kernel}x{self.kernel}"
        if self.stride != 1:
            name += f"-stride-{self.stride}"
        return name if self.groups == 1 else f"{name}-groups-{self.groups}"


def depthwise(batch: int, channels: int, size: int, kernel: int = 3, stride: int = 1) -> Shape:
    return Shape(batch, channels, channels, size, kernel, stride, groups=channels)


PLAIN = [
    Shape(1, 16, 16, 32),
    Shape(1, 33, 47, 32),
    Shape(1, 64, 64, 16),
    Shape(1, 100, 77, 16),
    Shape(1, 128, 128, 8),
    Shape(1, 256, 256, 8),
    Shape(1, 189, 211, 8),
    Shape(64, 16, 32, 32),
    Shape(64, 17, 31, 32),
    Shape(64, 32, 32, 28),
    Shape(64, 45, 51, 16),
    Shape(64, 64, 64, 16),
    Shape(64, 97, 113, 16),
    Shape(64, 128, 128, 8),
    Shape(64, 256, 256, 8),
    Shape(64, 131, 243, 8),
    Shape(1, 512, 512, 7),
    Shape(8, 512, 512, 7),
]
FIRST_LAYERS = [
    Shape(1, 3, 32, 224, stride=2),
    Shape(1, 3, 64, 224, 7, 2),
    Shape(1, 3, 64, 32),
    Shape(64, 1, 26, 28),
    Shape(64, 3, 32, 32),
    Shape(16, 3, 27, 64, stride=2),
    Shape(64, 1, 6, 28, 5),
]
STRIDE_2 = [
    Shape(1, 64, 128, 56, stride=2),
    Shape(1, 128, 256, 28, stride=2),
    Shape(1, 256, 512, 14, stride=2),
    Shape(1, 61, 119, 28, stride=2),
    Shape(64, 32, 64, 28, stride=2),
    Shape(64, 64, 128, 16, stride=2),
    Shape(64, 45, 77, 16, stride=2),
]
POINTWISE = [
    Shape(1, 16, 96, 56, 1),
    Shape(1, 32, 16, 112, 1),
    Shape(1, 64, 256, 56, 1),
    Shape(1, 101, 203, 28, 1),
    Shape(1, 144, 24, 56, 1),
    Shape(1, 256, 64, 56, 1),
    Shape(1, 256, 256, 14, 1),
    Shape(1, 512, 512, 14, 1),
    Shape(1, 512, 128, 7, 1),
    Shape(1, 64, 128, 56, 1, 2),
    Shape(64, 16, 96, 28, 1),
    Shape(64, 33, 65, 14, 1),
    Shape(64, 128, 128, 14, 1),
    Shape(64, 256, 512, 7, 1),
    Shape(64, 512, 256, 7, 1),
    Shape(64, 311, 499, 7, 1),
]
FIVE_WIDE = [
    Shape(1, 16, 32, 28, 5),
    Shape(1, 64, 64, 14, 5),
    Shape(64, 20, 50, 12, 5),
    Shape(64, 32, 64, 14, 5),
    Shape(64, 37, 53, 14, 5),
]
DEPTHWISE = [
    depthwise(1, 32, 112),
    depthwise(1, 33, 112),
    depthwise(1, 96, 112, stride=2),
    depthwise(1, 144, 56),
    depthwise(1, 144, 56, stride=2),
    depthwise(1, 256, 28),
    depthwise(1, 256, 28, stride=2),
    depthwise(1, 512, 14),
    depthwise(1, 512, 14, stride=2),
    depthwise(1, 512, 7),
    depthwise(1, 33, 56, 5),
    depthwise(1, 96, 56, 5, 2),
    depthwise(1, 144, 28, 5),
    depthwise(1, 256, 14, 5),
    depthwise(1, 512, 14, 5),
    depthwise(1, 512, 7, 5),
    depthwise(64, 32, 28),
    depthwise(64, 33, 28),
    depthwise(64, 96, 28, stride=2),
    depthwise(64, 144, 14),
    depthwise(64, 144, 14, stride=2),
    depthwise(64, 256, 14),
    depthwise(64, 512, 7),
    depthwise(64, 33, 14, 5),
    depthwise(64, 96, 14, 5, 2),
    depthwise(64, 256, 7, 5),
]
FRACTIONS = [
    Shape(batch, active, active, 16, dense=100) for batch in (1, 64) for active in (100, 75, 50, 25, 10)
]
SHAPES = PLAIN + FIRST_LAYERS + STRIDE_2 + POINTWISE + FIVE_WIDE + DEPTHWISE + FRACTIONS


@contestants("ours", "eager", "eager-channels-last")
@pytest.mark.parametrize("shape", SHAPES, ids=[shape.name for shape in SHAPES])
def bench_conv2d(benchmark: Any, shape: Shape, contestant: str) -> None:
    measure(benchmark, "conv2d", shape.name, contestant, runs_of(shape))


def runs_of(shape: Shape) -> dict[str, Run]:
    g = torch.Generator().manual_seed(0)
    x = torch.randn(shape.batch, shape.channels, shape.size, shape.size, generator=g).to(device())
    depth = shape.channels // shape.groups
    weight = torch.randn(shape.units, depth, shape.kernel, shape.kernel, generator=g).to(device())
    weight /= (depth * shape.kernel**2) ** 0.5
    bias = torch.randn(shape.units, generator=g).to(device())
    x_last, weight_last = (t.contiguous(memory_format=torch.channels_last) for t in (x, weight))
    packed, usage = laid_out_conv2d(weight), usage_of(shape.units)
    conv2d = torch.ops.dynprune.conv2d.default
    stride, padding, groups = (shape.stride,) * 2, (shape.kernel // 2,) * 2, shape.groups
    geometry = (stride, padding, (1, 1), groups)
    return {
        "ours": lambda: conv2d(x_last, packed, bias, *geometry, activation="relu", usage=usage),
        "eager": lambda: F.relu(F.conv2d(x, weight, bias, *geometry)),
        "eager-channels-last": lambda: F.relu(F.conv2d(x_last, weight_last, bias, *geometry)),
    }
