"""A linear layer that skips the zeros of one row, with usage sums, against eager PyTorch's dense product."""

from __future__ import annotations

from typing import Any

import pytest
import torch
import torch.nn.functional as F

from benchmarks.common import contestants, measure
from dynprune import ops

WIDTH = 4096


@contestants("ours", "eager")
@pytest.mark.parametrize("percent", [50, 75, 90])
def bench_sparse_input(benchmark: Any, percent: int, contestant: str) -> None:
    g = torch.Generator().manual_seed(0)
    zero = torch.rand(1, WIDTH, generator=g) < percent / 100
    x = torch.where(zero, 0.0, torch.randn(1, WIDTH, generator=g))
    weight = torch.randn(WIDTH, WIDTH, generator=g) / WIDTH**0.5
    bias = torch.randn(WIDTH, generator=g)
    packed = ops.pack_linear(weight)
    usage = torch.zeros(4, WIDTH, dtype=torch.float64)
    runs = {
        "ours": lambda: torch.ops.dynprune.sparse_input_linear(
            x, packed, bias, activation="relu", usage=usage
        ),
        "eager": lambda: F.relu(F.linear(x, weight, bias)),
    }
    measure(benchmark, "sparse_input", f"1x{WIDTH}-{percent}% zeros", contestant, runs)
