"""3x3 conv2d + bias + ReLU + usage sums on a plan, against eager PyTorch of the compact size."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import pytest
import torch
import torch.nn.functional as F

from benchmarks.common import contestants, measure
from dynprune import ops


@dataclass(frozen=True)
class Shape:
    batch: int
    channels: int
    units: int
    size: int  # of the square image
    dense: int | None = None  # channels and units of the layer of which these are the active share

    @property
    def name(self) -> str:
        if self.dense is not None:
            return f"{self.batch}x{self.dense}-{self.size}px-{100 * self.units // self.dense}%"
        return f"{self.batch}x{self.channels}-{self.units}-{self.size}px"


SIZES = [
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
]
FRACTIONS = [
    Shape(batch, active, active, 16, dense=100) for batch in (1, 64) for active in (100, 75, 50, 25, 10)
]
SHAPES = SIZES + FRACTIONS


@contestants("ours", "eager", "eager-channels-last")
@pytest.mark.parametrize("shape", SHAPES, ids=[shape.name for shape in SHAPES])
def bench_conv2d(benchmark: Any, shape: Shape, contestant: str) -> None:
    g = torch.Generator().manual_seed(0)
    x = torch.randn(shape.batch, shape.channels, shape.size, shape.size, generator=g)
    weight = torch.randn(shape.units, shape.channels, 3, 3, generator=g) / (9 * shape.channels) ** 0.5
    bias = torch.randn(shape.units, generator=g)
    x_last, weight_last = (t.contiguous(memory_format=torch.channels_last) for t in (x, weight))
    packed = ops.pack_conv2d(weight)
    usage = torch.zeros(4, shape.units, dtype=torch.float64)
    conv2d = torch.ops.dynprune.conv2d
    runs = {
        "ours": lambda: conv2d(x_last, packed, bias, (1, 1), (1, 1), activation="relu", usage=usage),
        "eager": lambda: F.relu(F.conv2d(x, weight, bias, padding=1)),
        "eager-channels-last": lambda: F.relu(F.conv2d(x_last, weight_last, bias, padding=1)),
    }
    measure(benchmark, "conv2d", shape.name, contestant, runs)
