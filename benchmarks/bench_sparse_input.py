"""A linear layer that skips the zeros of one row, with usage sums, against eager PyTorch's dense product.

``input-major`` has the weights a second time, see ``Config(input_major=True)``.
"""

from __future__ import annotations

from functools import partial
from typing import Any

import pytest
import torch
import torch.nn.functional as F

from benchmarks.common import Times, contestants, device, laid_out_linear, measure, usage_of
from dynprune import ops

WIDTH = 4096


@contestants("ours", "input-major", "eager")
@pytest.mark.parametrize("percent", [50, 75, 90])
def bench_sparse_input(benchmark: Any, percent: int, contestant: str) -> None:
    g = torch.Generator().manual_seed(0)
    zero = torch.rand(1, WIDTH, generator=g) < percent / 100
    x = torch.where(zero, 0.0, torch.randn(1, WIDTH, generator=g)).to(device())
    weight = (torch.randn(WIDTH, WIDTH, generator=g) / WIDTH**0.5).to(device())
    bias = torch.randn(WIDTH, generator=g).to(device())
    packed, usage = laid_out_linear(weight), usage_of(WIDTH)
    major = ops.pack_input_major(packed) if device().type == "cpu" else weight.t().contiguous()
    linear = partial(torch.ops.dynprune.linear.default, x, packed, bias, activation="relu", usage=usage)
    runs = {
        "ours": linear,
        "input-major": partial(linear, input_major=major),
        "eager": lambda: F.relu(F.linear(x, weight, bias)),
    }

    def figures(times: Times) -> dict[str, float]:
        return {f"{percent}%: eager / {n}": times["eager"] / times[n] for n in ("ours", "input-major")}

    measure(benchmark, "sparse_input", f"1x{WIDTH}-{percent}% zeros", contestant, runs, figures)
