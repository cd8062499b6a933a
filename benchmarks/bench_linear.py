"""linear + bias + ReLU + usage sums on a plan, against eager PyTorch of the compact size."""

from __future__ import annotations

from dataclasses import dataclass
from functools import lru_cache
from typing import Any

import pytest
import torch
import torch.nn.functional as F

from benchmarks.common import Run, contestants, device, laid_out_linear, measure, usage_of


@dataclass(frozen=True)
class Shape:
    batch: int
    width: int  # inputs and units of the dense layer
    percent: int  # of both that are active

    @property
    def name(self) -> str:
        return f"{self.batch}x{self.width}-{self.percent}%"

    @property
    def active(self) -> int:
        return round(self.width * self.percent / 100)


SHAPES = [
    Shape(batch, width, percent)
    for batch in (1, 8, 64, 256, 1024)
    for width in (512, 768, 1024, 4096)
    if width < 4096 or batch <= 64
    for percent in (100, 75, 50, 25, 10)
]


@lru_cache(maxsize=1)  # the contestants of a case follow each other
def runs_of(shape: Shape) -> dict[str, Run]:
    g = torch.Generator().manual_seed(0)
    x = torch.randn(shape.batch, shape.active, generator=g).to(device())
    weight = (torch.randn(shape.active, shape.active, generator=g) / shape.active**0.5).to(device())
    bias = torch.randn(shape.active, generator=g).to(device())
    packed, usage = laid_out_linear(weight), usage_of(shape.active)
    linear = torch.ops.dynprune.linear.default  # as plans call it
    return {
        "ours": lambda: linear(x, packed, bias, activation="relu", usage=usage),
        "eager": lambda: F.relu(F.linear(x, weight, bias)),
    }


@contestants("ours", "eager")
@pytest.mark.parametrize("shape", SHAPES, ids=[shape.name for shape in SHAPES])
def bench_linear(benchmark: Any, shape: Shape, contestant: str) -> None:
    measure(benchmark, "linear", shape.name, contestant, runs_of(shape))
