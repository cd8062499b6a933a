"""``indices=`` and ``input_indices=`` on the master weight, against the plan entry of the same sets."""

from __future__ import annotations

from functools import lru_cache
from typing import Any

import pytest
import torch

from benchmarks.common import (
    Run,
    Times,
    contestants,
    device,
    laid_out_conv2d,
    laid_out_linear,
    measure,
)


def half(units: int, generator: torch.Generator) -> torch.Tensor:
    """Indices of half of ``units``, increasing."""
    return torch.randperm(units, generator=generator)[: units // 2].sort().values


def linear() -> dict[str, Run]:
    g = torch.Generator().manual_seed(0)
    rows, columns = half(1024, g), half(1024, g)
    x = torch.randn(64, len(columns), generator=g).to(device())
    weight, bias = (torch.randn(1024, 1024, generator=g) / 32).to(device()), torch.randn(1024, generator=g)
    rows, columns, bias = rows.to(device()), columns.to(device()), bias.to(device())
    packed, kept = laid_out_linear(weight[rows][:, columns]), bias[rows]
    op = torch.ops.dynprune.linear.default
    return {
        "ours": lambda: op(x, weight, bias, indices=rows, input_indices=columns, activation="relu"),
        "plan-entry": lambda: op(x, packed, kept, activation="relu"),
    }


def conv2d() -> dict[str, Run]:
    g = torch.Generator().manual_seed(0)
    rows, columns = half(128, g), half(128, g)
    x = torch.randn(64, len(columns), 16, 16, generator=g).to(device(), memory_format=torch.channels_last)
    weight, bias = (torch.randn(128, 128, 3, 3, generator=g) / 34).to(device()), torch.randn(128, generator=g)
    rows, columns, bias = rows.to(device()), columns.to(device()), bias.to(device())
    packed, kept = laid_out_conv2d(weight[rows][:, columns]), bias[rows]
    op, one = torch.ops.dynprune.conv2d.default, (1, 1)
    return {
        "ours": lambda: op(x, weight, bias, one, one, indices=rows, input_indices=columns, activation="relu"),
        "plan-entry": lambda: op(x, packed, kept, one, one, activation="relu"),
    }


LAYERS = {"linear 64x1024-1024": lru_cache(linear), "conv2d 64x128-128-16px": lru_cache(conv2d)}


def cost(times: Times) -> dict[str, float]:
    return {"indices / plan entry": times["ours"] / times["plan-entry"]}


@contestants("ours", "plan-entry")
@pytest.mark.parametrize("layer", LAYERS)
def bench_gather(benchmark: Any, layer: str, contestant: str) -> None:
    measure(benchmark, "gather", layer, contestant, LAYERS[layer](), cost)
