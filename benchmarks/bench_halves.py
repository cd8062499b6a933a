"""What pruning half of a layer's inputs and half of its outputs saves, beside our own time for all of it."""

from __future__ import annotations

from functools import lru_cache
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from benchmarks.common import (
    Run,
    Times,
    contestants,
    device,
    laid_out_conv2d,
    laid_out_linear,
    measure,
)


def linear(active: int) -> tuple[Run, Run]:
    """Ours and eager PyTorch on 64 rows, ``active`` inputs and units."""
    g = torch.Generator().manual_seed(0)
    x = torch.randn(64, active, generator=g).to(device())
    weight = (torch.randn(active, active, generator=g) / active**0.5).to(device())
    bias = torch.randn(active, generator=g).to(device())
    packed, op = laid_out_linear(weight), torch.ops.dynprune.linear.default
    return (
        lambda: op(x, packed, bias, activation="relu"),
        lambda: F.relu(F.linear(x, weight, bias)),
    )


def conv2d(active: int) -> tuple[Run, Run]:
    """Ours and eager PyTorch on 64 maps of 16 x 16, ``active`` channels and units."""
    g = torch.Generator().manual_seed(0)
    x = torch.randn(64, active, 16, 16, generator=g).to(device(), memory_format=torch.channels_last)
    weight = (torch.randn(active, active, 3, 3, generator=g) / (9 * active) ** 0.5).to(device())
    bias = torch.randn(active, generator=g).to(device())
    packed = laid_out_conv2d(weight)

    def ours() -> Tensor:
        y: Tensor = torch.ops.dynprune.conv2d.default(x, packed, bias, (1, 1), (1, 1), activation="relu")
        return y

    return ours, lambda: F.relu(F.conv2d(x, weight, bias, padding=1))


LAYERS = {"linear 64x1024-1024": (linear, 1024), "conv2d 64x128-128-16px": (conv2d, 128)}


@lru_cache(maxsize=1)
def runs_of(layer: str) -> dict[str, Run]:
    make, width = LAYERS[layer]
    half, half_eager = make(width // 2)
    whole, whole_eager = make(width)
    return {"ours": half, "all": whole, "eager": half_eager, "all-eager": whole_eager}


def saving(times: Times) -> dict[str, float]:
    return {"half / all": times["ours"] / times["all"]}


@contestants("ours", "all", "eager", "all-eager")
@pytest.mark.parametrize("layer", LAYERS)
def bench_halves(benchmark: Any, layer: str, contestant: str) -> None:
    alike = [("ours", "eager"), ("all", "all-eager")]
    measure(benchmark, "halves", layer, contestant, runs_of(layer), saving, alike)
